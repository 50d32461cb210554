"""What one setting takes, and how a value that was given for it is read; standard library only.

A setting says in brackets, at the end of its comment, which values it takes:

    batch_size = 12  # rows per micro-batch [>= 1]
    top_p = 1.0  # draw from the likeliest tokens with this much probability [> 0, <= 1]
    max_tokens = 4096  # [0 or >= 16]      a number: conditions that all hold; or others
    dropout = 0.0  # [0 to 1]              both ends included
    weight = 0.0  # [any]                  any number that is finite; where inf may be, it is named
    lr_schedule = "cosine"  # [cosine | trapezoid]
    compile: bool | str = "auto"  # [auto | on | off]
    out_dir = "out"  # [path]              `~` is the home folder
    models = ""  # [paths]                 several between commas, also as name=path
    endings = ""  # [list]                 texts between commas, blanks around them left out
    rates = "0.1,1e-2"  # [list of float > 0]   numbers between commas, each of which holds
    split_on = ""  # [escapes]             \\n, \\t, \\xNN and \\uNNNN from a command line are read
    start = ""  #                          any other text is taken as it was typed, quotes included

The default is always allowed, even where the brackets leave it out. A path whose default is not
empty cannot be set to an empty one. Quotes around a whole path, list or word are dropped, as some
shells pass them on.
"""

import ast
import dataclasses
import difflib
import math
import numbers
import operator
import os
import re
from collections.abc import Iterable
from typing import Any

COMMAND_LINE = "command line"  # the source of a setting that no config file gave
SIMPLE = {bool, int, float, str, type(None)}  # the types a setting may have
BOOL_WORDS = {
    **dict.fromkeys(("true", "yes", "on", "1"), True),
    **dict.fromkeys(("false", "no", "off", "0"), False),
}
KINDS = ("path", "paths", "list", "escapes")  # of text
SIGNS = {">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le}
SIGN_WORDS = {">": "above", ">=": "at least", "<": "below", "<=": "at most"}
NUMBER = r"-?(?:\d[\d_.]*(?:e-?\d+)?|inf)"
BRACKET = r"\[([^\[\]]*)\]$"
CONDITION = rf"(?:any|[<>]=? {NUMBER}|{NUMBER} to {NUMBER}|{NUMBER})"
RANGE = rf"{CONDITION}(?:(?:, | or ){CONDITION})*"
WORDS = r"[\w.-]+(?: \| [\w.-]+)*"
NUMBER_LIST = rf"list of (int|float) ({RANGE})"
ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\"}


@dataclasses.dataclass
class Setting:
    """Its name, default and types, and what its line in the source says about it."""

    name: str
    default: Any
    types: tuple[type, ...]
    comment: str = ""  # at the end of its line in the source
    section: str = ""  # the full-line comments above its group in the source

    @property
    def takes(self) -> str:
        """What stands in the brackets at the end of the comment."""
        bracket = re.search(BRACKET, self.comment)
        return bracket[1].strip() if bracket else ""

    def takes_words(self, words: Iterable[str | bool]) -> None:
        """Let the brackets at the end of the comment hold these words."""
        names = ({True: "on", False: "off"}.get(word, word) for word in words)
        comment = re.sub(BRACKET, "", self.comment).rstrip()
        self.comment = f"{comment} [{' | '.join(names)}]".lstrip()

    @property
    def kind(self) -> str:
        """One of KINDS, or '' for numbers, words and text as it is."""
        if str not in self.types:
            return ""
        if re.fullmatch(NUMBER_LIST, self.takes):
            return "list"
        return self.takes if self.takes in KINDS else ""

    @property
    def words(self) -> list[str]:
        """The words that a text may be, less those for yes and no; [] if it may be any."""
        if str not in self.types or self.kind or not re.fullmatch(WORDS, self.takes):
            return []
        words = self.takes.split(" | ")
        return [w for w in words if not (bool in self.types and w in BOOL_WORDS)]

    @property
    def range(self) -> str:
        """The condition on a number, as it stands in the brackets."""
        return self.takes if re.fullmatch(RANGE, self.takes) else "any"

    def read(self, raw: Any, source: str) -> Any:
        """The checked value of `raw`: text from the command line, any value from a config file.

        Raises ValueError with one line for the user.
        """
        try:
            value = self._text(raw) if source == COMMAND_LINE else self._fit(raw)
        except (TypeError, OverflowError):
            expected = " or ".join("None" if t is type(None) else t.__name__ for t in self.types)
            example = self.assignment() if source == COMMAND_LINE else self.assignment("", " = ")
            where = where_given(self.name, source)
            raise ValueError(f"{where} expects {expected}, got {raw!r}; e.g. {example}") from None
        if isinstance(value, str):
            value = self._clean(value, source)
        if fault := self.fault(value):
            raise ValueError(f"{where_given(self.name, source)}={raw} {fault}")
        return value

    def fault(self, value: Any) -> str:
        """What is wrong with a value of the right type; '' if nothing is."""
        if isinstance(value, bool) or value is None or value == self.default:
            return ""
        if isinstance(value, str):
            if self.kind in ("path", "paths") and "\0" in value:
                return "holds a null character, which no path can"
            if self.kind == "path" and self.default and not value:
                return "is empty: give a path (. is the working directory)"
            if numbers := re.fullmatch(NUMBER_LIST, self.takes):
                return _fault_of_numbers(value, *numbers.groups())
            if not self.words or value in self.words:
                return ""
            words = [*self.words, *(["on", "off"] if bool in self.types else [])]
            return f"is not one of {', '.join(words)}{did_you_mean(value, words)}"
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            return "is too large: an integer has 64 bits"
        if in_range(value, self.range):
            return ""
        words = range_in_words(self.range)
        if not math.isfinite(value) and self.range != "any":
            words = f"{range_in_words('any')}, {words}"
        return f"must be {words}"

    def assignment(self, dashes: str = "--", equals: str = "=") -> str:
        example = self.types[0](1) if self.default is None else self.default
        return f"{dashes}{self.name}{equals}{shown(example) if dashes else repr(example)}"

    def _text(self, text: str) -> Any:
        """From the command line: a Python literal where a type but str holds it, else the text.

        >>> Setting("n", 1, (int,))._text("1e3"), Setting("run", "", (str,))._text("007")
        (1000, '007')
        """
        if bool in self.types and text.lower() in BOOL_WORDS:
            return BOOL_WORDS[text.lower()]
        if self.types != (str,):
            try:
                value = ast.literal_eval(text)
                if not isinstance(value, str):
                    return self._fit(value)
            except (ValueError, TypeError, SyntaxError, ArithmeticError, MemoryError):
                pass
            except RecursionError:  # thousands of brackets
                pass
        return self._fit(text)

    def _fit(self, value: Any) -> Any:
        """`value`, converted if that loses nothing: 1 -> 1.0, 1e3 -> 1000, 'no' -> False.

        NumPy's numbers and paths are taken too. A bool is no number here: `batch_size = True` is a
        mistake. Raises TypeError for what does not fit.
        """
        value = _plain(value)
        if isinstance(value, str) and bool in self.types and value.lower() in BOOL_WORDS:
            return BOOL_WORDS[value.lower()]
        if type(value) in self.types:
            return value
        if type(value) is int and float in self.types:
            return float(value)
        if type(value) is float and int in self.types and value.is_integer():
            return int(value)
        if type(value) is int and bool in self.types and value in (0, 1):
            return bool(value)
        raise TypeError(value)

    def _clean(self, text: str, source: str) -> str:
        """A text as its kind wants it."""
        typed = source == COMMAND_LINE
        if typed and self.kind == "escapes":
            return unescape(text)
        if not self.words and self.kind in ("", "escapes"):
            return text
        if typed and len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
            text = text[1:-1]
        if self.kind == "path" or (self.kind == "paths" and os.path.exists(expand_path(text))):
            return expand_path(text)
        if self.kind in ("paths", "list"):
            items = [item.strip() for item in text.split(",")]
            if self.kind == "paths":
                items = map(expand_named, items)
            return ",".join(filter(None, items))
        return text


def _fault_of_numbers(text: str, kind: str, takes: str) -> str:
    """What is wrong with a list of numbers; '' if nothing is."""
    wanted = f"numbers{' without a fraction' if kind == 'int' else ''} between commas"
    for item in text.split(","):
        try:
            number = {"int": int, "float": float}[kind](item)
        except ValueError:
            return f"must be {wanted}, and {item!r} is none"
        if not in_range(number, takes):
            return f"must be {wanted}, each {range_in_words(takes)}"
    return ""


def expand_path(path: str | os.PathLike[str]) -> str:
    """`path` with `~` and `~name` at its beginning as that home folder."""
    return os.path.expanduser(path)


def expand_named(item: str) -> str:
    """One path of a list, which may stand after its name: small=~/out-small."""
    name, equals, path = item.partition("=")
    if equals and path.strip().startswith("~"):
        return f"{name.strip()}={expand_path(path.strip())}"
    return expand_path(item)


def unescape(text: str) -> str:
    r"""What was typed as \n, \t, \r, \\, \xNN or \uNNNN as that character; the rest as it is.

    >>> unescape(r"\n--\n"), unescape(r"a\\nb"), unescape(r"\d\x41")
    ('\n--\n', 'a\\nb', '\\dA')

    Two halves of a character (\\ud83d\\ude00) become it; ValueError for half of one.
    """

    def character(match: re.Match) -> str:
        code = match[1]
        return ESCAPES.get(code) or chr(int(code[1:], 16))

    text = re.sub(r"\\([ntr\\]|x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4})", character, text)
    try:
        return text.encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError:
        raise ValueError(f"{text!a} holds half of a character, which no text can hold") from None


def in_range(value: float, takes: str) -> bool:
    """Whether a number is one of those that a setting takes; inf and nan only where named.

    >>> [in_range(v, "0 or >= 1, < 2") for v in (0, 0.5, 1, 2)]
    [True, False, True, False]
    """
    if not math.isfinite(value):
        return any(float(w) == value for w in takes.split(" or ") if w.strip() in ("inf", "-inf"))
    alternatives = [part.split(",") for part in takes.split(" or ")]
    return any(all(_holds(value, condition) for condition in all_of) for all_of in alternatives)


def _holds(value: float, condition: str) -> bool:
    match condition.split():
        case ["any"]:
            return True
        case [low, "to", high]:
            return float(low) <= value <= float(high)
        case [sign, bound]:
            return SIGNS[sign](value, float(bound))
        case [exact]:
            return value == float(exact)
    raise ValueError(condition)


def range_in_words(takes: str) -> str:
    """
    >>> range_in_words("0 or >= 1, < 2"), range_in_words("0 to 1")
    ('0 or at least 1 and below 2', 'from 0 to 1')
    """
    words = re.sub(r"[<>]=?", lambda sign: SIGN_WORDS[sign[0]], takes).replace(",", " and")
    words = re.sub(r"\bany\b", "a finite number", words)
    return re.sub(r"(\S+ to )", r"from \1", words)


def _plain(value: Any) -> Any:
    """NumPy's scalars as Python's, a path as text; the rest as it is."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if type(value) in SIMPLE:
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    if isinstance(value, str):
        return str(value)
    if getattr(value, "shape", None) == () and callable(getattr(value, "item", None)):
        return value.item()  # np.bool_, and arrays of one number
    return value


def where_given(name: str, source: str) -> str:
    return f"--{name}" if source == COMMAND_LINE else f"{source}: {name}"


def shown(value: Any) -> str:
    """`value` as one word: text in quotes only where it needs them."""
    return value if isinstance(value, str) and re.fullmatch(r"[\w./:,+-]+", value) else repr(value)


def did_you_mean(wrong: str, names: Iterable[str], prefix: str = "") -> str:
    near = difflib.get_close_matches(wrong.lower(), list(names), n=1)
    return f"; did you mean {prefix}{near[0]}?" if near else ""
