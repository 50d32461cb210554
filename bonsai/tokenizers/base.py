"""What every tokenizer does."""

from collections.abc import Iterable, Sequence

from bonsai.system.errors import UserError

EOT_TEXT = "<|endoftext|>"  # how the end-of-text token is written and shown
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class MissingLibrary(UserError):
    """A tokenizer cannot be made here; its description may well be right."""


class Tokenizer:
    """Text to token ids and back: what a subclass has to give, and what the shared tests hold.

    - vocab_size, eot, encode, decode_bytes and to_dict; the rest follows from them.
    - encode takes any text at all, decode any ids at all: an id outside the vocabulary becomes
      U+FFFD. Every text comes back from its ids as it was; a tokenizer that does not know every
      character raises UserError instead, and has no eot.
    - The bytes of several ids are those of each, one after another.
    - from_dict makes the same tokenizer of what to_dict returned, after a trip through JSON, and
      raises UserError for anything else: the dict may come from a stranger.
    - A subclass with state of its own is made from text by from_texts, and says complete = False.
    - Imports of libraries stand where they are needed, so that a data set opens without them.

    vocab_size: ids are 0 ... vocab_size - 1.
    eot: id of the end-of-text token that separates documents, None where there is none.
    complete: whether its name is enough to make it, as in --tokenizer=byte.
    """

    vocab_size: int
    eot: int | None = None
    complete = True

    @classmethod
    def from_texts(cls, texts: Sequence[str], vocab_size: int = 350) -> "Tokenizer":
        """One made from these texts, with about so many tokens; a complete one as it is."""
        return cls()

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
        """The inverse of to_dict. Raises UserError for what it has not written."""
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
