"""Byte-pair encoding, whole: how a vocabulary is learnt from text, and text encoded with it.

    tokenizer = BPETokenizer.train(texts, vocab_size=4096)
    ids = tokenizer.encode("hello world")

The idea (Gage 1994; Sennrich et al. 2016; on bytes since Radford et al. 2019): begin with the 256
bytes as tokens, find the pair of neighbours that occurs most often, make it a token, repeat. Text
is encoded by the same merges in the order in which they were learnt.

In this order: recount_merges (training, as short as it can be said), learn_merges (the same, fast
enough to use), merge (encoding one chunk), BPETokenizer, and the libraries that do the same faster
still: rustbpe to train, tiktoken to encode. Tests check that all of them agree.
"""

import base64
import binascii
import heapq
import logging
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from itertools import pairwise

from bonsai.system.cores import allowed_cores
from bonsai.system.errors import UserError, end_if_told
from bonsai.tokenizers.base import EOT_TEXT, REPLACEMENT, Tokenizer, well_formed
from bonsai.tokenizers.patterns import (
    GPT4,
    PATTERNS,
    WHOLE_TEXT,
    checked_pattern,
    has_long_blank,
    runs_in_rust,
    splitter,
)

Pair = tuple[int, int]
Progress = Callable[[int], object]  # is told how many merges have been learnt

BYTES = [bytes([i]) for i in range(256)]
# Control characters of ASCII, and bytes of no character that Unicode has assigned. A vocabulary
# that was learnt from text alone may lack them, as SmolLM's does.
RARE = {*range(9), 11, 12, *range(14, 32), 127, 0xC0, 0xC1, 0xF1, 0xF2, *range(0xF5, 256)}
END = -1  # stands between chunks: no id, so no pair reaches over it
LARGEST = 10_000_000  # ids: a vocabulary of more is a damaged file
UNTRIED = 20_000  # characters that no pattern takes long for
LONGEST_NAMES = 1 << 20  # characters of all special tokens, which are one regular expression
CACHE = 1 << 17  # chunks whose ids are remembered while encoding
BUFFER = 256  # texts that rustbpe holds at a time


# -- training --------------------------------------------------------------------------------------


def count_chunks(texts: Iterable[str], pattern: str | None) -> Counter[bytes]:
    """How often each chunk occurs. A text of millions of words has few different ones, and training
    works on these alone."""
    split, counts = splitter(pattern), Counter()
    for text in texts:
        end_if_told()
        counts.update(split(well_formed(text)))
    return Counter({chunk.encode("utf-8"): n for chunk, n in counts.items()})


def recount_merges(chunks: Mapping[bytes, int], n: int) -> list[Pair]:
    """The first `n` merges by the plainest loop: count all pairs, merge the most frequent, repeat.

    To be read, and to test learn_merges, which gives the same. chunks: how often each occurs.

    >>> recount_merges({b"abab": 10, b"abc": 1}, 9)
    [(97, 98), (256, 256), (256, 99)]
    """
    words, merges = [(list(chunk), count) for chunk, count in chunks.items()], []
    while len(merges) < n:
        counts: Counter[Pair] = Counter()
        for ids, count in words:
            for pair in pairwise(ids):
                counts[pair] += count
        if not counts:  # every chunk is one token
            break
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        for ids, _ in words:
            i = 0
            while i < len(ids) - 1:
                if (ids[i], ids[i + 1]) == best:
                    ids[i : i + 2] = [256 + len(merges)]
                i += 1
        merges.append(best)
    return merges


def learn_merges(
    chunks: Mapping[bytes, int], n: int, progress: Progress | None = None
) -> list[Pair]:
    """The first `n` merges, in order; fewer if every chunk has become one token before.

    Merge number k joins two ids into id 256 + k. Each step takes the pair that occurs most often,
    among equals the one with the smallest ids: so the result depends on the counts alone.

    Unlike recount_merges it counts nothing twice. A merge changes only the counts of the pairs
    beside it, and makes a chunk shorter by one token, so all steps together touch each byte of
    `chunks` about once.
    """
    # All chunks in one row of ids, each position linked to those left and right of it, so that two
    # neighbours become one without moving the rest. `weight`: how often the chunk occurs.
    ids, weight = [END], [0]
    for chunk, count in chunks.items():
        ids += [*chunk, END]
        weight += [count] * (len(chunk) + 1)
    left, right = list(range(-1, len(ids) - 1)), list(range(1, len(ids) + 1))

    counts: dict[Pair, int] = defaultdict(int)
    places: dict[Pair, list[int]] = defaultdict(list)  # where its left id stands, ascending
    for i, pair in enumerate(pairwise(ids)):
        if END not in pair:
            counts[pair] += weight[i]
            places[pair].append(i)

    # New places of a pair come up in one step only, that of its younger id; from then on its count
    # can only fall. So the heap holds upper bounds: one that is too high goes back with its count.
    heap = [(-count, pair) for pair, count in counts.items()]
    heapq.heapify(heap)
    merges: list[Pair] = []
    while heap and len(merges) < n:
        end_if_told()
        bound, pair = heapq.heappop(heap)
        if -bound != counts[pair]:
            if counts[pair] > 0:
                heapq.heappush(heap, (-counts[pair], pair))
            continue

        (a, b), new = pair, 256 + len(merges)
        made: dict[Pair, list[int]] = defaultdict(list)
        for i in places.pop(pair):
            j = right[i]
            if ids[i] != a or ids[j] != b:  # one of the two is part of another token by now
                continue
            before, after, w = left[i], right[j], weight[i]
            x, y = ids[before], ids[after]  # x a b y  ->  x new y
            ids[i], ids[j] = new, END
            right[i], left[after] = after, i
            if x != END:
                counts[x, a] -= w
                counts[x, new] += w
                made[x, new].append(before)
            if y != END:
                counts[b, y] -= w
                counts[new, y] += w
                made[new, y].append(i)
        del counts[pair]
        for pair, where in made.items():
            if counts[pair] > 0:  # 0: in "aaaa" the pair (aa, a) was there only for a moment
                places[pair] = where
                heapq.heappush(heap, (-counts[pair], pair))
        merges.append((a, b))
        if progress:
            progress(len(merges))
    return merges


def tokens_of(merges: Iterable[Pair]) -> list[bytes | None]:
    """The bytes of every id: the 256 bytes, then one token per merge. In the rare case that two
    merges spell the same bytes the younger one is never used, and is None."""
    spelt, known = list(BYTES), set(BYTES)
    tokens: list[bytes | None] = list(BYTES)
    for a, b in merges:
        token = spelt[a] + spelt[b]
        tokens.append(None if token in known else token)
        spelt.append(token)
        known.add(token)
    return tokens


# -- encoding --------------------------------------------------------------------------------------


def merge(chunk: bytes, ranks: Mapping[bytes, int], limit: float = float("inf")) -> list[bytes]:
    """Cut `chunk` into tokens: of all neighbours that together are a token, join those whose token
    was learnt first (has the lowest rank), the leftmost if there are several; repeat.

    limit: only tokens of a lower rank are made.

    >>> merge(b"abab", {b"a": 97, b"b": 98, b"ab": 256})
    [b'ab', b'ab']

    O(n log n), so that a chunk of a million bytes is no trouble: candidates wait in a heap, and
    positions are linked as in training.
    """
    parts = [chunk[i : i + 1] for i in range(len(chunk))] + [b""]  # b"": the end, or joined away
    left, right = list(range(-1, len(chunk))), list(range(1, len(chunk) + 2))
    heap: list[tuple[int, int]] = []

    def offer(i: int) -> None:
        if i >= 0 and parts[right[i]]:
            rank = ranks.get(parts[i] + parts[right[i]], limit)
            if rank < limit:
                heapq.heappush(heap, (rank, i))

    for i in range(len(chunk)):
        offer(i)
    while heap:
        rank, i = heapq.heappop(heap)
        j = right[i]
        if not parts[i] or not parts[j] or ranks.get(parts[i] + parts[j]) != rank:
            continue  # one of the two has changed since
        parts[i], parts[j] = parts[i] + parts[j], b""
        right[i] = right[j]
        left[right[j]] = i
        offer(i)
        offer(left[i])
    return [part for part in parts if part]


# -- the tokenizer ---------------------------------------------------------------------------------


class BPETokenizer(Tokenizer):
    """A vocabulary of byte sequences, trained here or read from a rank file (see ranks.py).

    Unlike gpt2 and gpt4, which are names of tiktoken's vocabularies, it carries its own.

    tokens: the bytes of each id, all 256 bytes among them, or all but some of RARE, which are an
        error in a text then; None for an id that stands for nothing.
        A token's id is its rank: lower ones are joined first.
    pattern: cuts text into chunks (see patterns.py), over whose borders no token reaches; None:
        a text is one chunk.
    special_tokens: name -> id. They are found in a text only when encode is told to.
    eot: the name of the special token that ends a text.
    fast: let tiktoken encode, if it takes the pattern; False: use the code of this file, which
        gives the same ids.
    """

    complete = False

    def __init__(
        self,
        tokens: Sequence[bytes | None],
        pattern: str | None = GPT4,
        special_tokens: Mapping[str, int] | None = None,
        fast: bool = True,
        eot: str = EOT_TEXT,
    ):
        self.tokens = list(tokens)
        self.pattern = None if pattern is None else checked_pattern(pattern)
        self.special_tokens = dict(special_tokens or {})
        self.fast = fast and runs_in_rust(self.pattern)
        self.ranks = {token: i for i, token in enumerate(self.tokens) if token is not None}
        self._check()
        self.eot_text, self.eot = eot, self.special_tokens.get(eot)
        self.vocab_size = max(len(self.tokens), 1 + max(self.special_tokens.values(), default=0))
        self._bytes = dict(enumerate(self.tokens)) | {
            i: name.encode("utf-8") for name, i in self.special_tokens.items()
        }
        self._split = splitter(self.pattern)
        self._cache: dict[bytes, list[int]] = {}

    def _check(self) -> None:
        missing = [byte for byte in BYTES if byte not in self.ranks]
        self.lacking = b"".join(missing)
        if not RARE.issuperset(self.lacking):
            raise UserError(
                f"a BPE vocabulary holds all 256 bytes: {len(missing)} are missing, {missing[0]!r} "
                f"first"
            )
        if len(self.ranks) < sum(token is not None for token in self.tokens) or b"" in self.ranks:
            raise UserError("a BPE vocabulary needs tokens that differ, none of them empty")
        names, taken = self.special_tokens, self.special_tokens.values()
        if len(set(taken)) < len(names) or any(
            not 0 <= i < LARGEST or (i < len(self.tokens) and self.tokens[i] is not None)
            for i in taken
        ):
            raise UserError(
                f"the special tokens {dict(names)!s:.200} need ids of their own, after the "
                f"others and below {LARGEST:,}"
            )
        if sum(map(len, names)) > LONGEST_NAMES:
            raise UserError(f"special tokens have more than {LONGEST_NAMES:,} characters together")
        if not all(names) or any(well_formed(name) != name for name in names):
            raise UserError("a special token needs a name, of whole characters")

    @classmethod
    def from_texts(cls, texts: Iterable[str], vocab_size: int = 350) -> "BPETokenizer":
        return cls.train(texts, vocab_size)

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        vocab_size: int,
        pattern: str | None = GPT4,
        special_tokens: Sequence[str] = (EOT_TEXT,),
        fast: bool = True,
        progress: Progress | None = None,
    ) -> "BPETokenizer":
        """Learn a vocabulary of `vocab_size` ids: 256 bytes, merges, special tokens. It is smaller
        if there is nothing left to merge.

        fast: count and merge in rustbpe, about ten times faster with the same result. Without a
        pattern it is not used, as it would walk through whole documents at each merge.
        """
        names = list(dict.fromkeys(special_tokens))
        n = vocab_size - 256 - len(names)
        if n < 0:
            raise UserError(
                f"vocab_size is {vocab_size}: it must be at least {256 + len(names)}, for the 256 "
                f"bytes{f' and {len(names)} special tokens' if names else ''}"
            )
        pattern = None if pattern is None else checked_pattern(pattern)
        if fast and pattern is not None and runs_in_rust(pattern):
            tokens = rust_tokens(texts, n, pattern, progress)
        else:
            tokens = tokens_of(learn_merges(count_chunks(texts, pattern), n, progress))
        return cls(tokens, pattern, {name: len(tokens) + i for i, name in enumerate(names)})

    def encode(self, text: str, allow_special: bool = False) -> list[int]:
        """With allow_special, every special token is found; of two that begin alike, the longer."""
        if not (allow_special and self.special_tokens):
            return self._encode_plain(text)
        ids: list[int] = []
        for part in self._special.split(text):
            special = self.special_tokens.get(part)
            ids += self._encode_plain(part) if special is None else [special]
        return ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        if not all(map(self._goes_to_rust, texts)):
            return super().encode_batch(texts)
        for text in texts:
            self._check_bytes(text)
        return self._tiktoken.encode_ordinary_batch(list(texts), num_threads=allowed_cores())

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        unknown = REPLACEMENT.encode("utf-8")
        return b"".join(self._bytes.get(int(i)) or unknown for i in ids)

    def _encode_plain(self, text: str) -> list[int]:
        """The ids of `text` without special tokens."""
        self._check_bytes(text)
        if self._goes_to_rust(text):
            return self._tiktoken.encode_ordinary(text)
        ids: list[int] = []
        for chunk in self._split(well_formed(text)):
            ids += self._encode_chunk(chunk.encode("utf-8"))
        return ids

    def _check_bytes(self, text: str) -> None:
        """Raise UserError for a byte that the vocabulary lacks."""
        if not self.lacking:
            return
        data = well_formed(text).encode("utf-8")
        if len(data.translate(None, self.lacking)) < len(data):
            byte = next(byte for byte in data if byte in self.lacking)
            raise UserError(f"the text has the byte {byte:#04x}, for which there is no token")

    def _encode_chunk(self, chunk: bytes) -> list[int]:
        whole = self.ranks.get(chunk)
        if whole is not None:
            return [whole]
        ids = self._cache.get(chunk)
        if ids is None:
            ids = [self.ranks[part] for part in merge(chunk, self.ranks)]
            if len(self._cache) < CACHE:
                self._cache[chunk] = ids
        return ids

    def merges(self) -> list[tuple[bytes, bytes] | None]:
        """The two tokens that each token past the bytes was made of, in the order of the ids; None
        for an id that stands for nothing or was not made by a merge."""
        pairs: list[tuple[bytes, bytes] | None] = []
        for i, token in enumerate(self.tokens):
            if token is None or len(token) > 1:
                parts = merge(token, self.ranks, limit=i) if token else []
                pairs.append((parts[0], parts[1]) if len(parts) == 2 else None)
        return pairs

    def first(self, vocab_size: int) -> "BPETokenizer":
        """The smaller vocabulary that training would have stopped at: the first tokens of this."""
        names = list(self.special_tokens)
        tokens = self.tokens[: max(256, vocab_size - len(names))]
        special = {name: len(tokens) + i for i, name in enumerate(names)}
        return type(self)(tokens, self.pattern, special, eot=self.eot_text)

    def to_dict(self) -> dict:
        return {
            "type": "bpe",
            "pattern": self.pattern,
            "special_tokens": self.special_tokens,
            "tokens": [None if t is None else base64.b64encode(t).decode() for t in self.tokens],
            **({} if self.eot_text == EOT_TEXT else {"eot": self.eot_text}),
        }

    @classmethod
    def from_dict(cls, state: dict) -> "BPETokenizer":
        tokens, special = state.get("tokens"), state.get("special_tokens")
        pattern, eot = state.get("pattern"), state.get("eot", EOT_TEXT)
        if (
            not isinstance(tokens, list)
            or not isinstance(special, dict)
            or not isinstance(pattern, str | None)
            or not isinstance(eot, str)
            or not all(isinstance(token, str | None) for token in tokens)
            or not all(isinstance(name, str) for name in special)
            or not all(type(i) is int for i in special.values())
        ):
            raise UserError('a bpe tokenizer needs "tokens" in base64, "pattern", "special_tokens"')
        try:
            tokens = [None if t is None else base64.b64decode(t, validate=True) for t in tokens]
        except (binascii.Error, ValueError):
            raise UserError("the tokens of this bpe tokenizer are not in base64") from None
        return cls(tokens, pattern, special, eot=eot)

    # -- the same, faster --------------------------------------------------------------------------

    def _goes_to_rust(self, text: str) -> bool:
        """Whether tiktoken encodes a text. With a pattern of the user's own a long text is first
        split here, where a pattern that takes too long is an error: tiktoken cannot be stopped."""
        if not self.fast or has_long_blank(text) or self._tiktoken is None:
            return False
        if len(text) > UNTRIED and self.pattern not in PATTERNS.values():
            self._split(text)
        return True

    @cached_property
    def _tiktoken(self):
        """tiktoken's encoder with this vocabulary: the same rule in Rust. None if it does not take
        the pattern."""
        try:
            import tiktoken
        except ImportError:
            raise UserError("encoding needs tiktoken: pip install tiktoken") from None
        pattern = WHOLE_TEXT if self.pattern is None else self.pattern
        try:
            return tiktoken.Encoding(
                "bpe", pat_str=pattern, mergeable_ranks=self.ranks, special_tokens={}
            )
        except ValueError:  # too large for it, or written as Python writes it
            return None

    @cached_property
    def _special(self):
        """Splits a text at its special tokens, and keeps these."""
        names = sorted(self.special_tokens, key=len, reverse=True)
        return re.compile(f"({'|'.join(map(re.escape, names))})")


def rust_tokens(
    texts: Iterable[str], n: int, pattern: str, progress: Progress | None = None
) -> list[bytes | None]:
    """tokens_of(learn_merges(count_chunks(texts, pattern), n)), by rustbpe, which breaks ties in
    the same way. It counts in 32 bits: texts in which one pair occurs 2**31 times are too long."""
    try:
        import rustbpe
    except ImportError:
        raise UserError(
            "fast training needs rustbpe: pip install rustbpe, or --fast=False"
        ) from None
    trainer, log, reporter = rustbpe.Tokenizer(), logging.getLogger("rustbpe"), _Reporter(progress)
    log.setLevel(logging.INFO)  # always: rustbpe remembers the level that it found first
    log.propagate = False
    log.addHandler(reporter)
    try:
        trainer.train_from_iterator(
            map(_for_rust, texts), 256 + n, buffer_size=BUFFER, pattern=pattern
        )
    except ValueError as e:
        raise UserError(f"rustbpe does not take the pattern {pattern!r}: {e}") from None
    finally:
        log.removeHandler(reporter)
    tokens, known = [], set()
    for token, _ in trainer.get_mergeable_ranks():
        tokens.append(None if token in known else bytes(token))
        known.add(token)
    return tokens


class _Reporter(logging.Handler):
    """Reports progress: reads from rustbpe's log, which has a line at every per cent, how many
    merges it has learnt."""

    def __init__(self, progress: Progress | None):
        super().__init__()
        self.progress = progress

    def emit(self, record: logging.LogRecord) -> None:
        if self.progress and (count := re.search(r"\((\d+)/\d+ merges\)", record.getMessage())):
            self.progress(int(count[1]))


def _for_rust(text: str) -> str:
    end_if_told()
    if has_long_blank(text):
        raise UserError(
            "fast training cannot split a text with 900,000 blanks in a row: use --fast=False"
        )
    return well_formed(text)
