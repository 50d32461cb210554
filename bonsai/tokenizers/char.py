"""Characters as tokens: the vocabulary is the sorted set of the characters in one text."""

from collections.abc import Iterable

from bonsai.system.errors import UserError
from bonsai.tokenizers.base import REPLACEMENT, Tokenizer, UnknownText, well_formed


class CharTokenizer(Tokenizer):
    """One id per character, in the order of code points, as nanoGPT numbers them.

    Unlike the other tokenizers it only knows the characters that it was made from, and has no
    end-of-text token.

    >>> CharTokenizer.from_text("hello").encode("hole")
    [1, 3, 2, 0]
    """

    complete = False

    def __init__(self, chars: Iterable[str]):
        self.chars = list(chars)
        if not all(isinstance(c, str) and len(c) == 1 for c in self.chars):
            raise UserError("a char tokenizer needs a list of single characters")
        self._ids = {c: i for i, c in enumerate(self.chars)}
        if not self.chars or len(self._ids) < len(self.chars):
            raise UserError(
                f"a char tokenizer needs distinct characters, at least one: got {len(self.chars)} "
                f"of which {len(self._ids)} differ"
            )
        self.vocab_size = len(self.chars)

    @classmethod
    def from_texts(cls, texts: Iterable[str], vocab_size: int = 0) -> "CharTokenizer":
        """As many tokens as there are characters."""
        return cls.from_text("".join(texts))

    @classmethod
    def from_text(cls, text: Iterable[str]) -> "CharTokenizer":
        """The tokenizer of all characters in `text` (a string, or a set of characters)."""
        return cls(sorted(set(text)))

    def encode(self, text: str, allow_special: bool = False) -> list[int]:
        """Raises UnknownText for a character outside the vocabulary. allow_special changes
        nothing: there is no end-of-text token."""
        ids = self._ids
        try:
            return [ids[c] for c in text]
        except KeyError as e:
            c = e.args[0]
            raise UnknownText(
                f"character {c!r} (U+{ord(c):04X}) at position {text.index(c)} is not among the "
                f"{self.vocab_size} characters of this vocabulary"
            ) from None

    def decode(self, ids: Iterable[int]) -> str:
        n = self.vocab_size
        return "".join(self.chars[i] if 0 <= i < n else REPLACEMENT for i in map(int, ids))

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        return well_formed(self.decode(ids)).encode("utf-8")

    def to_dict(self) -> dict:
        return {"type": "char", "chars": self.chars}

    @classmethod
    def from_dict(cls, state: dict) -> "CharTokenizer":
        if not isinstance(state.get("chars"), list):
            raise UserError('a char tokenizer needs its list of characters under "chars"')
        return cls(state["chars"])

    def nanogpt_meta(self) -> dict:
        return {
            "vocab_size": self.vocab_size,
            "itos": dict(enumerate(self.chars)),
            "stoi": dict(self._ids),
        }
