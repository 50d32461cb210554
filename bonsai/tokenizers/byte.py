"""Bytes as tokens: ids 0-255 are the UTF-8 bytes, 256 ends a text. Nothing to train or download."""

from collections.abc import Iterable

from bonsai.tokenizers.base import EOT_TEXT, REPLACEMENT, Tokenizer, well_formed


class ByteTokenizer(Tokenizer):
    """Encodes any text. Unlike the other tokenizers, its ids can stand for any bytes at all.

    >>> ByteTokenizer().encode("aé")
    [97, 195, 169]
    """

    vocab_size = 257
    eot = 256

    def encode(self, text: str, allow_special: bool = False) -> list[int]:
        if not allow_special:
            return list(well_formed(text).encode("utf-8"))
        ids: list[int] = []
        for part in text.split(EOT_TEXT):
            ids += [*self.encode(part), self.eot]
        return ids[:-1]  # the split has one part more than it has separators

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        ids = [int(i) for i in ids]
        try:
            return bytes(ids)
        except ValueError:  # an id that is not a byte
            other = {self.eot: EOT_TEXT.encode()}
            unknown = REPLACEMENT.encode()
            return b"".join(bytes([i]) if 0 <= i < 256 else other.get(i, unknown) for i in ids)

    def to_dict(self) -> dict:
        return {"type": "byte"}
