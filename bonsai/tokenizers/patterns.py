"""Where text may be cut before byte pairs are merged: no token crosses a border between chunks.

Without borders BPE spends its vocabulary on "dog.", "dog!" and "dog?" (Radford et al. 2019, section
2.2). A pattern is a regular expression whose matches, one after another, are the chunks:

    >>> splitter(GPT2)("I've 1234 cats")
    ['I', "'ve", ' 1234', ' cats']
    >>> splitter(GPT4)("I'VE 1234 cats")
    ['I', "'VE", ' ', '123', '4', ' cats']
"""

import re
from collections.abc import Callable

from bonsai.errors import UserError

# The alternatives are tried in this order at every place. \p{L} is any letter, \p{N} any digit.
# Both equal tiktoken's on every text; tiktoken writes them so that its engine needs less memory.
GPT2 = "|".join(
    [
        r"'(?:[sdmt]|ll|ve|re)",  # the end of it's, I'd, I'm, don't, we'll, I've, you're
        r" ?\p{L}+",  # letters, with the space before them
        r" ?\p{N}+",  # digits, however many
        r" ?[^\s\p{L}\p{N}]+",  # signs
        r"\s+(?!\S)",  # white space, but for the last one before a word, which joins the word
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
PATTERNS: dict[str, str | None] = {"gpt2": GPT2, "gpt4": GPT4, "none": None}
WHOLE_TEXT = r"(?s:.+)"  # what "none" means to libraries that want a pattern

# Letters and digits that Unicode 17 and later know and Unicode 16, on which tiktoken and rustbpe
# stand, does not: first and last of each range. Python's regex module is ahead of them.
_YOUNG = """
0558 058B-058C 088F 0C5C 0CDC 208F 209D-209F A7CE-A7CF A7D2 A7D4 A7DD A7E2 A7F1 AB6C-AB6D
107BB-107BF 10940-10959 10EC5-10EC7 10ED9-10EEE 11B0A 11DB0-11DDB 11DE0-11DE9 11DF1 1246F
12475-1247F 12550-12686 16EA0-16EB8 16EBB-16ED3 16FF2-16FF6 187F8-187FF 18CD6-18CDA 18D09-18D20
18D80-18DF2 18E00-19191 191A0-191D2 1B123-1B128 1B168 1D6A6 1DF1F-1DF24 1DF2B-1DF81 1DF90-1DF96
1DFCD-1DFFF 1E6C0-1E6DE 1E6E0-1E6E2 1E6E4-1E6E5 1E6E7-1E6ED 1E6F0-1E6F4 1E6FE-1E6FF 2B73A-2B73F
2B81E 2CEA2-2CEAD 323B0-33479 3D000-3FC3F
"""
LONG_BLANK = 900_000  # white space in a row; at 1,000,000 the engine of tiktoken and rustbpe panics
_UNASSIGNED = "\uffff"  # neither letter nor digit nor space, and never will be


def named_pattern(name: str) -> str | None:
    """The pattern called "gpt2", "gpt4" or "none"; anything else is a pattern itself."""
    return PATTERNS[name] if name in PATTERNS else checked_pattern(name)


def checked_pattern(pattern: str) -> str:
    """A pattern of one's own, completed so that it loses no text: a character that it matches
    nowhere is a chunk by itself. Raises UserError for what is no usable regular expression."""
    import regex

    complete = pattern if pattern in (GPT2, GPT4) or pattern.endswith("|(?s:.)") else None
    complete = complete or f"{pattern}|(?s:.)"
    try:
        compiled = regex.compile(complete)
    except regex.error as e:
        raise UserError(f"the pattern {pattern!r} is not a regular expression: {e}") from None
    if compiled.groups:
        raise UserError(f"the pattern {pattern!r} has a group: write (?:...) instead of (...)")
    if regex.match(pattern, "") is not None:
        raise UserError(f"the pattern {pattern!r} matches nothing at all: use + instead of *")
    return complete


def splitter(pattern: str | None) -> Callable[[str], list[str]]:
    """The function that cuts a text into the chunks of `pattern`; None leaves it whole."""
    if pattern is None:
        return lambda text: [text] if text else []
    import regex  # the standard library's re has no \p{L}

    chunks, young = regex.compile(pattern), _young_letters()

    def split(text: str) -> list[str]:
        if text.isascii() or not young.search(text):
            return chunks.findall(text)
        seen = young.sub(_UNASSIGNED, text)  # other characters at the same places
        return [text[slice(*match.span())] for match in chunks.finditer(seen)]

    return split


def _young_letters():
    """A compiled pattern for one of the characters of _YOUNG."""
    import regex

    ends = [part.split("-") for part in _YOUNG.split()]
    return regex.compile("[" + "".join(rf"\U{a[0]:0>8}-\U{a[-1]:0>8}" for a in ends) + "]")


def has_long_blank(text: str) -> bool:
    """Whether the Rust libraries cannot split `text`."""
    return len(text) > LONG_BLANK and re.search(rf"\s{{{LONG_BLANK}}}", text) is not None
