"""BPE vocabularies in other projects' files: .tiktoken rank files, and GPT-2's vocab.bpe.

    tokenizer = BPETokenizer(read_ranks("cl100k_base.tiktoken"), GPT4, {"<|endoftext|>": 100257})

Such a file holds only the tokens; pattern and special tokens have to be known.
"""

import base64
import binascii
from collections.abc import Sequence
from pathlib import Path

from bonsai.files.access import SETTINGS
from bonsai.files.atomic import whole_file
from bonsai.files.textfile import read_text
from bonsai.system.errors import UserError
from bonsai.tokenizers.bpe import BYTES, LARGEST


def read_ranks(path: str | Path) -> list[bytes | None]:
    """The tokens of a .tiktoken file, by id. Its lines hold a token in base64 and its rank; ranks
    that the file leaves out are None."""
    ranks: dict[int, bytes] = {}
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        try:
            token, rank = line.split()
            i = int(rank)
            if not 0 <= i < LARGEST or i in ranks:
                raise ValueError
            ranks[i] = base64.b64decode(token, validate=True)
        except (ValueError, binascii.Error):
            raise UserError(
                f"{path} line {number} is not a token in base64 and a rank of its own: "
                f"{line.strip()[:40]!r}"
            ) from None
    return [ranks.get(i) for i in range(max(ranks, default=-1) + 1)]


def write_ranks(path: str | Path, tokens: Sequence[bytes | None]) -> None:
    """Write the tokens of a BPETokenizer as a .tiktoken file."""
    with whole_file(path) as f:
        for i, token in enumerate(tokens):
            if token is not None:
                f.write(base64.b64encode(token) + f" {i}\n".encode())


def read_vocab_bpe(path: str | Path) -> list[bytes | None]:
    """The tokens of GPT-2's vocab.bpe, or a file like it: a line with the version, then one merge
    per line, its two tokens written in the characters of `gpt2_alphabet`."""
    alphabet = gpt2_alphabet()
    tokens: list[bytes | None] = [bytes([byte]) for byte in alphabet.values()]
    for number, line in enumerate(_lines(path), 1):
        if not line.strip() or (number == 1 and line.startswith("#version")):
            continue
        try:
            a, b = line.split()
            tokens.append(bytes(alphabet[c] for c in a + b))
        except (ValueError, KeyError):
            raise UserError(f"{path} line {number} is not a merge: {line.strip()[:40]!r}") from None
    return tokens


def gpt2_alphabet() -> dict[str, int]:
    """Character -> byte, in the order of GPT-2's ids: a printable Latin-1 character stands for
    itself; the 68 other bytes are written as the characters from U+0100 on."""
    printable = [byte[0] for byte in BYTES if byte.decode("latin-1").isprintable()]
    printable.remove(0x20)  # the space separates the tokens of a line
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(0x100 + i): b for i, b in enumerate(others)}


def _lines(path: str | Path) -> list[str]:
    return read_text(path, limit=SETTINGS).splitlines()
