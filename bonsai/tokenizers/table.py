"""Any texts as tokens, by a table: words, pairs of letters, characters and an <END>."""

from collections.abc import Iterable, Mapping, Sequence

from bonsai.system.errors import UserError
from bonsai.tokenizers.base import REPLACEMENT, Tokenizer, UnknownText, well_formed

LONGEST = 256  # characters: longer tokens are never looked for, as that takes too long


class TableTokenizer(Tokenizer):
    """One id per text of a table. Encoding takes the longest token that fits, from left to right.

    Such tables are in the meta.pkl of nanoGPT's users. nanoGPT's sample.py encodes character by
    character; the ids are the same unless a longer token fits. Then it is taken, because the data
    were written with it: where they have a token <END>, a prompt with <END> means that one, and
    not five characters that never follow one another in the data.

    tokens: the text of each id; None where there is none. ids: the id of each text, if that is not
    the first one with it in `tokens`: a table may have several texts for one id.

    >>> TableTokenizer(["a", "b", "ab", "<END>"]).encode("aab<END>")
    [0, 2, 3]
    """

    complete = False

    def __init__(self, tokens: Sequence[str | None], ids: Mapping[str, int] | None = None):
        self.tokens = list(tokens)
        if not all(isinstance(t, str | None) for t in self.tokens) or not any(self.tokens):
            raise UserError("a table tokenizer needs a list of texts, at least one, or null")
        self.vocab_size = len(self.tokens)
        self.ids = self._first_ids() if ids is None else dict(ids)
        if not all(isinstance(t, str) and self._is_id(i) for t, i in self.ids.items()):
            raise UserError(f"a table tokenizer needs ids from 0 to {self.vocab_size - 1:,}")
        self._bytes = [well_formed(REPLACEMENT if t is None else t).encode() for t in self.tokens]
        lengths: dict[str, set[int]] = {}
        for token in self.ids:
            if 0 < len(token) <= LONGEST:
                lengths.setdefault(token[0], set()).add(len(token))
        # first character -> lengths of the tokens that begin with it, the longest first
        self._lengths = {first: sorted(found, reverse=True) for first, found in lengths.items()}

    def _first_ids(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for i, token in enumerate(self.tokens):
            if token is not None:
                found.setdefault(token, i)
        return found

    def _is_id(self, value: object) -> bool:
        return type(value) is int and 0 <= value < self.vocab_size

    @classmethod
    def from_texts(cls, texts: Iterable[str], vocab_size: int = 350) -> "TableTokenizer":
        """All characters of the texts, and the words that are most frequent."""
        counts: dict[str, int] = {}
        for text in texts:
            for word in [*text, *text.split()]:
                counts[word] = counts.get(word, 0) + 1
        chars = sorted(word for word in counts if len(word) == 1)
        words = sorted((w for w in counts if len(w) > 1), key=lambda w: (-counts[w], w))
        return cls(chars + words[: max(0, vocab_size - len(chars))])

    def encode(self, text: str, allow_special: bool = False) -> list[int]:
        """Raises UnknownText where no token fits. allow_special changes nothing: there is no
        end-of-text token."""
        ids, at, known, lengths = [], 0, self.ids, self._lengths
        while at < len(text):
            for n in lengths.get(text[at], ()):
                if (token := text[at : at + n]) in known:
                    ids.append(known[token])
                    at += len(token)
                    break
            else:
                raise UnknownText(
                    f"no token of this vocabulary is the beginning of {text[at : at + 20]!r}, "
                    f"at position {at}"
                )
        return ids

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        n, unknown = self.vocab_size, REPLACEMENT.encode()
        return b"".join(self._bytes[i] if 0 <= i < n else unknown for i in map(int, ids))

    def to_dict(self) -> dict:
        state = {"type": "table", "tokens": self.tokens}
        return state if self.ids == self._first_ids() else {**state, "ids": self.ids}

    @classmethod
    def from_dict(cls, state: dict) -> "TableTokenizer":
        tokens, ids = state.get("tokens"), state.get("ids")
        if not isinstance(tokens, list) or not isinstance(ids, dict | None):
            raise UserError('a table tokenizer needs its list of texts under "tokens"')
        return cls(tokens, ids)

    def nanogpt_meta(self) -> dict:
        itos = {i: token for i, token in enumerate(self.tokens) if token is not None}
        return {"vocab_size": self.vocab_size, "itos": itos, "stoi": dict(self.ids)}
