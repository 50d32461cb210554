"""Fast encoding for the preparation of data: many documents at a time, bytes in, an array out.

    encode = fast_encoder(get("gpt2"))
    ids = encode([(b"one document", True), (b"the beginning of another, ", False)])

A tokenizer makes lists of Python ints, and defines which ids are right. An encoder makes the same
ids as an array, and can be called by several threads at once. Bytes and characters are looked up in
a table. Byte-pair encodings with the pattern of GPT-2 or GPT-4 go through gigatoken, if it is
installed, which is about ten times as fast as tiktoken; the beginning of every batch is compared
with the tokenizer's own ids.
"""

import base64
import functools
import os
import tempfile
from collections.abc import Mapping, Sequence

import numpy as np

from bonsai.data.meta import dtype_of
from bonsai.data.readers import safe_cut
from bonsai.system.errors import UserError
from bonsai.tokenizers import EOT_TEXT, BPETokenizer, ByteTokenizer, CharTokenizer, Tokenizer
from bonsai.tokenizers.gpt import TiktokenTokenizer
from bonsai.tokenizers.patterns import GPT2, GPT4

LETTERS = b"etaoinshrdlu"  # so common that one of them ends a word in any 4096 bytes of prose
SAMPLE = 4096  # about how many bytes of each batch the tokenizer encodes, too, to compare
LOOKED_AT = 8  # documents of each batch that are decoded again
ENCODERS = ("auto", "gigatoken", "tokenizer")

Text = tuple[bytes, bool]  # UTF-8, and whether a document ends here


def fast_encoder(tokenizer: Tokenizer, eot: bool = True, name: str = "auto") -> "Encoder":
    """The fastest encoder for a tokenizer. eot: documents end with the end-of-text token. name:
    "tokenizer" uses the tokenizer's own code, "gigatoken" insists on that library."""
    if name not in ENCODERS:
        raise UserError(f"no encoder {name!r}: known are {', '.join(ENCODERS)}")
    if isinstance(tokenizer, ByteTokenizer):
        return ByteEncoder(tokenizer, eot)
    if isinstance(tokenizer, CharTokenizer):
        return CharEncoder(tokenizer, eot)
    if name != "tokenizer":
        try:
            return GigatokenEncoder(tokenizer, eot)
        except _NotPossible as e:
            if name == "gigatoken":
                raise UserError(f"{e}: leave out --encoder=gigatoken") from None
    return Encoder(tokenizer, eot)


class Encoder:
    """Encodes with the tokenizer's own code, whichever it is.

    loses_text: whether the beginning of a batch, decoded, was another text: words became <unk>, for
    example. Then bits per byte would be too low, and are not to be computed.
    """

    name = "the tokenizer itself"

    def __init__(self, tokenizer: Tokenizer, eot: bool = True):
        self.tokenizer, self.loses_text = tokenizer, False
        self.eot = tokenizer.eot if eot else None
        self.dtype = dtype_of(tokenizer.vocab_size)

    def __call__(self, texts: Sequence[Text]) -> np.ndarray:
        """The ids (n,) of all `texts`, one after another, with a mark at each document's end."""
        parts = []
        for (_, ends), ids in zip(texts, self._encode_batch([data for data, _ in texts])):
            parts.append(np.asarray(ids, dtype=self.dtype))
            if ends and self.eot is not None:
                parts.append(np.asarray([self.eot], dtype=self.dtype))
        return np.concatenate(parts) if parts else np.empty(0, self.dtype)

    def _encode_batch(self, texts: Sequence[bytes]) -> Sequence[Sequence[int] | np.ndarray]:
        # one by one: write_documents already gives each of its threads a batch
        encode, decode = self.tokenizer.encode, self.tokenizer.decode
        begins = (data[:SAMPLE].decode("utf-8", "ignore") for data in texts[:LOOKED_AT])
        self.loses_text = self.loses_text or any(decode(encode(text)) != text for text in begins)
        return [encode(data.decode("utf-8")) for data in texts]


class ByteEncoder(Encoder):
    """Bytes are their ids."""

    name = "bytes"

    def _encode_batch(self, texts: Sequence[bytes]) -> Sequence[np.ndarray]:
        return [np.frombuffer(data, np.uint8) for data in texts]


class CharEncoder(Encoder):
    """Looks characters up in a table with a place for every code point."""

    name = "characters"

    def __init__(self, tokenizer: CharTokenizer, eot: bool = True):
        super().__init__(tokenizer, eot)
        self._ids = np.full(0x110000, -1, np.int32)
        self._ids[[ord(c) for c in tokenizer.chars]] = np.arange(tokenizer.vocab_size)

    def _encode_batch(self, texts: Sequence[bytes]) -> Sequence[np.ndarray]:
        result = []
        for data in texts:
            text = data.decode("utf-8")
            ids = self._ids[np.frombuffer(text.encode("utf-32-le"), "<u4")]
            if ids.size and ids.min() < 0:
                self.tokenizer.encode(text)  # raises, and names the character
            result.append(ids)
        return result


class _NotPossible(Exception):
    """gigatoken cannot encode for this tokenizer."""


class GigatokenEncoder(Encoder):
    """A byte-pair encoding through gigatoken (Roed 2026, github.com/marcelroed/gigatoken).

    Documents are joined by the name of the end-of-text token, which gigatoken turns into its id,
    and are encoded in one call. If that name occurs in one of them, they are encoded one by one
    without special tokens, so that it stays text.
    """

    name = "gigatoken"

    def __init__(self, tokenizer: Tokenizer, eot: bool = True):
        super().__init__(tokenizer, eot)
        vocabulary = _ranks_and_pattern(tokenizer)
        try:
            import gigatoken.gigatoken_rs as library
        except ImportError:
            raise _NotPossible("gigatoken is not installed") from None
        self._library, self._vocabulary = library, vocabulary
        self._padding = library.PadTruncate(0)
        # Without such a token an id beyond the vocabulary marks the ends, and is removed again
        self._border = tokenizer.vocab_size if self.eot is None else self.eot
        self._joining = _load(library, *vocabulary, {EOT_TEXT: self._border})
        self._separator = EOT_TEXT.encode()

    def __call__(self, texts: Sequence[Text]) -> np.ndarray:
        if not texts:
            return np.empty(0, self.dtype)
        separator = self._separator
        joined = b"".join([data + separator if ends else data for data, ends in texts])
        if joined.count(separator) != sum(ends for _, ends in texts):
            ids = super().__call__(texts)
        else:
            ids = self._encode(self._joining, joined)
            if self.eot is None:
                ids = ids[ids != self._border]
            ids = ids.astype(self.dtype)
        self._check(texts, ids)
        return ids

    @functools.cached_property
    def _plain(self):
        """gigatoken's tokenizer without special tokens; made only when a text needs it."""
        return _load(self._library, *self._vocabulary, None)

    def _encode_batch(self, texts: Sequence[bytes]) -> Sequence[np.ndarray]:
        return [self._encode(self._plain, data) for data in texts]

    def _encode(self, encoding, data: bytes) -> np.ndarray:
        """The ids (n,) uint32 of one text.

        Of gigatoken's functions only this one lets other threads run meanwhile and does not need
        awkward, a library that takes 0.4 s to import. A single text is never padded.
        """
        source = self._library.BytesSource(data)
        rows, lengths = encoding.encode_batch_padded(source, self._padding, parallel=False)
        return rows[0, : lengths[0]] if len(lengths) else np.empty(0, np.uint32)

    def _check(self, texts: Sequence[Text], ids: np.ndarray) -> None:
        """Raise UserError if the tokenizer encodes the beginning of a batch differently."""
        data, ends = texts[0]
        if len(data) > SAMPLE:
            # If there is no line end, a space after a letter ends a chunk, too; text with neither
            # (Chinese in one line, say) is compared as a whole.
            letter = max((data.rfind(b"%c " % c, 0, SAMPLE) for c in LETTERS), default=-1)
            cut = safe_cut(data[:SAMPLE]) or letter + 1 or len(data)
            data, ends = data[:cut], ends and cut == len(data)
        wanted = self.tokenizer.encode(data.decode("utf-8"))
        if ends and self.eot is not None:
            wanted.append(self.eot)
        if ids[: len(wanted)].tolist() != wanted:
            raise UserError(
                f"gigatoken's ids are not the tokenizer's in the text that begins with "
                f"{data[:40].decode('utf-8', 'ignore')!r}: prepare again with --encoder=tokenizer"
            )


def _ranks_and_pattern(tokenizer: Tokenizer) -> tuple[Mapping[bytes, int], str]:
    if isinstance(tokenizer, TiktokenTokenizer):
        ranks, pattern = tokenizer._bpe._mergeable_ranks, tokenizer.pattern
    elif isinstance(tokenizer, BPETokenizer) and not tokenizer.lacking:
        ranks, pattern = tokenizer.ranks, tokenizer.pattern
    else:
        raise _NotPossible("gigatoken takes byte-pair encodings of all bytes only")
    names = {GPT2: "gpt2", GPT4: "gpt4"}
    if pattern not in names:
        raise _NotPossible("gigatoken takes the patterns of GPT-2 and GPT-4 only")
    if sorted(ranks.values()) != list(range(len(ranks))):
        raise _NotPossible("gigatoken takes vocabularies without gaps only")
    return ranks, names[pattern]


def _load(library, ranks: Mapping[bytes, int], pattern: str, special: dict[str, int] | None):
    """gigatoken's tokenizer; it reads ranks from a file only."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "ranks.tiktoken")
        with open(path, "wb") as f:
            f.writelines(base64.b64encode(token) + b" %d\n" % i for token, i in ranks.items())
        return library.BPETokenizer.from_tiktoken(path, pattern, special)
