"""What every tokenizer does. Subclasses give vocab_size, eot, encode, decode_bytes, to_dict."""

from collections.abc import Iterable, Sequence

EOT_TEXT = "<|endoftext|>"  # how the end-of-text token is written and shown
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class Tokenizer:
    """Text to token ids and back.

    vocab_size: ids are 0 ... vocab_size - 1.
    eot: id of the end-of-text token that separates documents, None where there is none.
    """

    vocab_size: int
    eot: int | None = None

    def encode(self, text: str, allow_special: bool = False) -> list[int]:
        """The ids of `text`. With allow_special, "<|endoftext|>" in it becomes the eot token;
        without, it is text like any other. Lone surrogates count as U+FFFD."""
        raise NotImplementedError

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """[encode(text) for text in texts], faster where the tokenizer can."""
        return [self.encode(text) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; bytes that are not UTF-8 (half a character, say) become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The UTF-8 bytes of `ids`; an id outside the vocabulary becomes U+FFFD."""
        raise NotImplementedError

    def to_dict(self) -> dict:
        """All that is needed to make this tokenizer again, as JSON-able values."""
        raise NotImplementedError

    @classmethod
    def from_dict(cls, state: dict) -> "Tokenizer":
        """The inverse of to_dict."""
        return cls()


def well_formed(text: str) -> str:
    """`text` with lone surrogates, which no UTF-8 file can hold, replaced by U+FFFD.

    They come from JSON escapes such as "\\ud83d" cut off in mid-emoji; tiktoken does the same.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
