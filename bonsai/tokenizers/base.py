"""What every tokenizer has to do."""

from collections.abc import Iterable, Sequence

from bonsai.system.errors import UserError

EOT_TEXT = "<|endoftext|>"  # how the end-of-text token is written and shown
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class MissingLibrary(UserError):
    """A tokenizer needs a library that is not installed; its description may still be right."""


class UnknownText(UserError):
    """A text has characters for which the vocabulary has no token."""


class Tokenizer:
    """Text to token ids and back: what a subclass has to provide, and what the shared tests check.

    - A subclass has vocab_size, eot, encode, decode_bytes and to_dict; the rest follows from them.
    - encode takes any text, decode any ids: an id outside the vocabulary becomes U+FFFD. Decoding
      the ids of a text gives that text; a tokenizer that does not know every character raises
      UnknownText instead.
    - The bytes of several ids are the bytes of each, one after another.
    - from_dict makes the same tokenizer from what to_dict returned, even after a trip through JSON.
      It raises UserError for anything else, as the dict may come from a stranger.
    - A subclass with its own vocabulary is made from text by from_texts, and has complete = False.
    - Libraries are imported where they are needed, so that a data set opens without them.

    vocab_size: ids are 0 ... vocab_size - 1.
    eot: id of the end-of-text token, which separates documents; None if there is none.
    complete: whether the name is enough to make the tokenizer, as in --tokenizer=byte.
    """

    vocab_size: int
    eot: int | None = None
    complete = True

    @classmethod
    def from_texts(cls, texts: Sequence[str], vocab_size: int = 350) -> "Tokenizer":
        """A tokenizer made from these texts, with about vocab_size tokens; a complete one is made
        as it always is."""
        return cls()

    def encode(self, text: str, allow_special: bool = False) -> list[int]:
        """The ids of `text`. With allow_special, "<|endoftext|>" in it becomes the eot token; else
        it is text like any other. Lone surrogates count as U+FFFD."""
        raise NotImplementedError

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """[encode(text) for text in texts], which some tokenizers can do faster."""
        return [self.encode(text) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; bytes that are not UTF-8 (half a character, say) become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The UTF-8 bytes of `ids`; an id outside the vocabulary becomes U+FFFD."""
        raise NotImplementedError

    def to_dict(self) -> dict:
        """All that is needed to make this tokenizer again, as values that JSON can hold."""
        raise NotImplementedError

    @classmethod
    def from_dict(cls, state: dict) -> "Tokenizer":
        """The inverse of to_dict. Raises UserError for anything that to_dict does not return."""
        return cls()

    def nanogpt_meta(self) -> dict | None:
        """What nanoGPT's programs expect in meta.pkl: vocab_size, stoi (text -> id), itos (id ->
        text). None for a tokenizer that is no table of texts."""
        return None


def well_formed(text: str) -> str:
    """`text` with lone surrogates, which no UTF-8 file can hold, replaced by U+FFFD.

    They come from JSON escapes such as "\\ud83d" cut off in mid-emoji; tiktoken does the same.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
