"""Where text may be cut before byte pairs are merged: no token crosses a border between chunks.

Without such borders BPE spends its vocabulary on "dog.", "dog!" and "dog?" (Radford et al. 2019,
section 2.2). A pattern is a regular expression whose matches, one after another, are the chunks:

    >>> splitter(GPT2)("I've 1234 cats")
    ['I', "'ve", ' 1234', ' cats']
    >>> splitter(GPT4)("I'VE 1234 cats")
    ['I', "'VE", ' ', '123', '4', ' cats']
"""

import re
from collections.abc import Callable

from bonsai.system.errors import UserError

# The alternatives are tried in this order at every place. \p{L} is any letter, \p{N} any digit.
# The first two cut every text as tiktoken's do, which are written so that its engine needs less
# memory; the third as the tokenizers of SmolLM and StarCoder do.
GPT2 = "|".join(
    [
        r"'(?:[sdmt]|ll|ve|re)",  # the end of it's, I'd, I'm, don't, we'll, I've, you're
        r" ?\p{L}+",  # letters, with the space before them
        r" ?\p{N}+",  # digits, however many
        r" ?[^\s\p{L}\p{N}]+",  # signs
        r"\s+(?!\S)",  # white space, except the last one before a word, which joins the word
        r"\s+",
    ]
)
GPT4 = "|".join(
    [
        r"'(?i:[sdmt]|ll|ve|re)",  # in capitals too
        r"[^\r\n\p{L}\p{N}]?+\p{L}+",  # letters, with the space, tab or sign before them
        r"\p{N}{1,3}",  # at most three digits
        r" ?[^\s\p{L}\p{N}]++[\r\n]*",  # signs, with the line ends after them
        r"\s*[\r\n]",  # blank lines, with their indentation
        r"\s+(?!\S)",
        r"\s+",
    ]
)
DIGITS = "|".join(
    [
        r"'(?:[sdmt]|ll|ve|re)",
        r" ?\p{L}+",
        r"\p{N}",  # each digit by itself, without the space before it; all else as in GPT-2
        r" ?[^\s\p{L}\p{N}]+",
        r"\s+(?![^\s\p{N}])",
        r"\s+",
    ]
)
BUILT_IN = (GPT2, GPT4, DIGITS)
PATTERNS: dict[str, str | None] = {"gpt2": GPT2, "gpt4": GPT4, "digits": DIGITS, "none": None}
WHOLE_TEXT = r"(?s:.+)"  # what "none" means to libraries that want a pattern

# Letters and digits that are new in Unicode 17 or later; first and last of each range. Python's
# regex module knows them; tiktoken and rustbpe, which are based on Unicode 16, do not.
_YOUNG = """
0558 058B-058C 088F 0C5C 0CDC 208F 209D-209F A7CE-A7CF A7D2 A7D4 A7DD A7E2 A7F1 AB6C-AB6D
107BB-107BF 10940-10959 10EC5-10EC7 10ED9-10EEE 11B0A 11DB0-11DDB 11DE0-11DE9 11DF1 1246F
12475-1247F 12550-12686 16EA0-16EB8 16EBB-16ED3 16FF2-16FF6 187F8-187FF 18CD6-18CDA 18D09-18D20
18D80-18DF2 18E00-19191 191A0-191D2 1B123-1B128 1B168 1D6A6 1DF1F-1DF24 1DF2B-1DF81 1DF90-1DF96
1DFCD-1DFFF 1E6C0-1E6DE 1E6E0-1E6E2 1E6E4-1E6E5 1E6E7-1E6ED 1E6F0-1E6F4 1E6FE-1E6FF 2B73A-2B73F
2B81E 2CEA2-2CEAD 323B0-33479 3D000-3FC3F
"""
ANY_OTHER = "|(?s:.)"  # completes a pattern, so that it loses no character
LONGEST = 5000  # characters of a pattern
SIGNS = "!" + "".join(map(chr, range(33, 127)))  # whatever a pattern insists on is among them
RUNS = [*(c * 40 for c in "aZ1 .\t\n\u00e9\u4e00"), "a1" * 20, "a " * 20, "ab" * 20]
PROBES = ["", *(run + SIGNS for run in RUNS)]
PROBE_SECONDS = 0.5
# a text may take this many seconds, and one more for so many characters (ours take 0.1 s for them)
SECONDS, LEAST_RATE = 5, 100_000
LONG_BLANK = 900_000  # white space in a row; at 1,000,000 the engine of tiktoken and rustbpe panics
_UNASSIGNED = "\uffff"  # neither letter nor digit nor space, and never will be


def named_pattern(name: str) -> str | None:
    """The pattern called "gpt2", "gpt4", "digits" or "none"; anything else is a pattern itself."""
    if name in PATTERNS:
        return PATTERNS[name]
    if re.fullmatch(r"[\w-]*", name):  # a regular expression that cuts out one word alone
        known = ", ".join(PATTERNS)
        raise UserError(f"no pattern is called {name!r}: use {known} or a regular expression")
    return checked_pattern(name)


def checked_pattern(pattern: str) -> str:
    """A user's pattern, completed so that it loses no text: a character that it does not match is a
    chunk by itself. Raises UserError for what is no usable regular expression.

    It may come from a stranger's file. So its length is limited, and it is tried on PROBES, on
    which a pattern that takes exponential time runs out of time. For each text, too, it has only a
    limited time (see `splitter`). The built-in patterns need neither.
    """
    if pattern in BUILT_IN:
        return pattern
    import regex

    if len(pattern) > LONGEST:
        raise UserError(f"the pattern has {len(pattern):,} characters, more than {LONGEST:,}")
    complete = pattern if pattern.endswith(ANY_OTHER) else pattern + ANY_OTHER
    try:
        regex.compile(pattern)  # first, so that an error names a place in what the user gave
        compiled = regex.compile(complete)
    except (regex.error, RecursionError, OverflowError) as e:
        raise UserError(f"the pattern {pattern!r:.80} is not a regular expression: {e}") from None
    if compiled.groups:
        raise UserError(f"the pattern {pattern!r:.80} has a group: write (?:...) instead of (...)")
    for probe in PROBES:
        chunks = _in_time(compiled, compiled.findall, probe, PROBE_SECONDS)
        if "" in chunks:
            raise UserError(f"the pattern {pattern!r:.80} matches empty text: use + instead of *")
        if "".join(chunks) != probe:
            raise UserError(f"the pattern {pattern!r:.80} loses text, or turns it round")
    return complete


def runs_in_rust(pattern: str | None) -> bool:
    """Whether the Rust libraries can use a pattern. They split in linear time, unless it looks
    around, refers back or forbids backtracking: then they panic after a million steps. Nor may it
    match between characters, or use what Python and Rust read differently. For other patterns there
    is our own code, which stops in time."""
    if pattern in (*BUILT_IN, None):
        return True
    return not any(
        (word[0] == "\\" and word[1] in r"123456789bBAzZGKRXmML<>gkhHNQEC")
        or (word.startswith("[") and re.search(r"\[|&&|--|~~|\|\|", word[1:]))
        or (word.startswith("(?") and not re.match(r"\(\?(?:[ims]*:|[ims]+\))", word))
        or re.fullmatch(r"[*+?}]\+|[\^$]|\{[^}]*[^}\d,].*", word)
        for branch in _branches(pattern)
        if branch != r"\s+(?!\S)"  # GPT-2's, for which has_long_blank avoids the panic
        for word in _WORD.findall(branch)
    )


# The words of a pattern: an escape, a class, the beginning of a group, a count, a possessive sign.
_WORD = re.compile(
    r"\\[pP]\{[^}]*\}|\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|\(\?[^:)]*[:)]|\{[^}]*\}\+?|[*+?]\+|.", re.S
)


def _branches(pattern: str) -> list[str]:
    """The alternatives of a pattern, cut at its outermost bars."""
    branches, depth = [""], 0
    for word in _WORD.findall(pattern):
        depth += word[0] == "(" and not word.endswith(")")
        depth -= word == ")"
        if word == "|" and depth == 0:
            branches.append("")
        else:
            branches[-1] += word
    return branches


def splitter(pattern: str | None) -> Callable[[str], list[str]]:
    """The function that cuts a text into the chunks of `pattern`; None leaves it whole. It raises
    UserError if a user's pattern takes too long for the length of a text."""
    if pattern is None:
        return lambda text: [text] if text else []
    import regex  # the standard library's re has no \p{L}

    chunks, young = regex.compile(pattern), _young_letters()
    is_custom = pattern not in BUILT_IN

    def split(text: str) -> list[str]:
        seconds = SECONDS + len(text) / LEAST_RATE if is_custom else None
        if text.isascii() or not young.search(text):
            return _in_time(chunks, chunks.findall, text, seconds)
        seen = young.sub(_UNASSIGNED, text)  # so that both engines see the same
        spans = _in_time(chunks, lambda *a, **k: [*chunks.finditer(*a, **k)], seen, seconds)
        return [text[slice(*match.span())] for match in spans]

    return split


def _in_time(chunks, find: Callable[..., list], text: str, seconds: float | None) -> list:
    """What `find` finds in a text; UserError if that takes longer than `seconds`."""
    if seconds is None:
        return find(text)
    try:  # concurrent=True lets other threads run meanwhile
        return find(text, concurrent=True, timeout=seconds)
    except TimeoutError:
        raise UserError(
            f"the pattern {chunks.pattern!r:.80} takes more than {seconds:.1f} s to split "
            f"{len(text):,} characters: use one without nested repetitions"
        ) from None


def _young_letters():
    """A compiled pattern for one of the characters of _YOUNG."""
    import regex

    ends = [part.split("-") for part in _YOUNG.split()]
    return regex.compile("[" + "".join(rf"\U{a[0]:0>8}-\U{a[-1]:0>8}" for a in ends) + "]")


def has_long_blank(text: str) -> bool:
    """Whether the Rust libraries cannot split `text`."""
    return len(text) > LONG_BLANK and re.search(rf"\s{{{LONG_BLANK}}}", text) is not None
