"""A tokenizer of one's own, as small as they come: the example that keeps the contract honest.

Copied to bonsai/tokenizers/toy.py, with its import and its line in TOKENIZERS, it is one like the
others.
"""

from collections.abc import Iterable

from bonsai.tokenizers.base import EOT_TEXT, REPLACEMENT, Tokenizer, well_formed


class ToyTokenizer(Tokenizer):
    """Bytes counted from the other end: 0 ends a text, 256 is the byte 0."""

    vocab_size, eot = 257, 0

    def encode(self, text: str, allow_special: bool = False) -> list[int]:
        ids: list[int] = []
        for part in text.split(EOT_TEXT) if allow_special else [text]:
            ids += [*(256 - byte for byte in well_formed(part).encode("utf-8")), self.eot]
        return ids[:-1]

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        special = {self.eot: EOT_TEXT.encode()}
        return b"".join(
            bytes([256 - i]) if 0 < i <= 256 else special.get(i, REPLACEMENT.encode())
            for i in map(int, ids)
        )

    def to_dict(self) -> dict:
        return {"type": "toy"}
