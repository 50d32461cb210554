"""Reads pickles without executing anything: plain values, NumPy's numbers and texts among them.

A pickle is a program for a small stack machine, and in Python's own that program may call any
function at all. The machine here has only the instructions that build plain values, and calls only
what stands in its table `calls`. It is bounded, too: a small file cannot take much memory, as the
numbers of instructions and of keys are (MOST, MOST_NUMBERS) and a text is no longer than the file.
"""

import re
import struct
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

MOST = 4_000_000  # instructions of one pickle: enough for a tokenizer of a million tokens
# The most dict keys that are numbers, apart from small ones such as token ids. Numbers can be
# chosen so that all their hashes collide: then Python compares each key with all earlier ones.
MOST_NUMBERS = 20_000
SMALL = 1 << 17
KEYS = (str, bytes, int, float, bool, type(None))  # tuples take exponential time if they are nested
ARGUMENTS = 8  # the most arguments of a call
ODD = (ValueError, TypeError, LookupError, AttributeError, NotImplementedError, struct.error)
ODD += (OverflowError, EOFError)  # what wrong bytes raise

# NumPy's names for kinds of numbers, and those of struct
NUMBERS = {"b1": "?", "i1": "b", "i2": "h", "i4": "i", "i8": "q", "u1": "B", "u2": "H", "u4": "I"}
NUMBERS |= {"u8": "Q", "f2": "e", "f4": "f", "f8": "d"}


class Damaged(Exception):
    """The file was changed or cut, or it is no file of its kind; the message says where."""


class Refused(Exception):
    """The file is undamaged but contains what plain data never do; the message says what."""


class CallsCode(Refused):
    """It names a function or class that is not in the machine's table."""


# ---- the calls of plain data ----


def ordered_dict(*nothing):
    if nothing:
        raise Refused("it makes an OrderedDict with arguments")
    return OrderedDict()


def no_bytes(*nothing):
    """How protocols below 3 write b''."""
    if nothing:
        raise Refused("it makes bytes with arguments")
    return b""


def encode(text: str, encoding: str) -> bytes:
    """How protocols below 3 write other bytes."""
    if encoding != "latin1":
        raise Refused("it encodes a text, which plain data never do")
    return text.encode("latin1")


@dataclass(slots=True)
class NumpyKind:
    """A numpy.dtype of one number or text, such as f8 or U3."""

    name: str
    order: str = "<"

    def read(self, data: bytes) -> bool | int | float | str:
        if self.name[0] == "U":
            codec = "utf-32-be" if self.order == ">" else "utf-32-le"
            return data.decode(codec, "surrogatepass").rstrip("\0")
        order = ">" if self.order == ">" else "<"
        return struct.unpack(order + NUMBERS[self.name], data)[0]


def numpy_kind(name: str, *flags) -> NumpyKind:
    if name not in NUMBERS and not re.fullmatch(r"U\d{1,9}", name):
        raise CallsCode(f"it holds NumPy's {name[:20]}, which is no plain number or text")
    return NumpyKind(name)


def numpy_scalar(kind: NumpyKind, data: bytes) -> bool | int | float | str:
    """A number or text of NumPy's as Python's own."""
    return kind.read(data)


CALLS: dict[str, Callable] = {
    "collections.OrderedDict": ordered_dict,
    "__builtin__.bytes": no_bytes,
    "_codecs.encode": encode,
    "numpy.dtype": numpy_kind,
    "numpy.core.multiarray.scalar": numpy_scalar,  # NumPy 1
    "numpy._core.multiarray.scalar": numpy_scalar,
}


@dataclass(slots=True)
class Name:
    """A key of the table of calls that a pickle names."""

    path: str


# ---- the machine ----


class Machine:
    """Executes a pickle of plain values, of any protocol. A subclass may know further names."""

    def __init__(self, program: bytes, calls: dict[str, Callable] = CALLS):
        self.program, self.calls, self.at = program, calls, 0
        self.numbers = 0  # dict keys so far that are numbers, but no small ones

    def take(self, n: int) -> bytes:
        if self.at + n > len(self.program):
            raise Damaged("its pickle is cut short")
        self.at += n
        return self.program[self.at - n : self.at]

    def number(self, kind: str) -> Any:
        return struct.unpack(kind, self.take(struct.calcsize(kind)))[0]

    def line(self) -> bytes:
        end = self.program.find(b"\n", self.at)
        text = self.take(max(end, self.at) - self.at)
        self.take(1)
        return text

    def text(self, size: int) -> str:
        return self.take(size).decode("utf-8", "surrogatepass")

    def run(self) -> Any:
        """The value that the pickle builds. Raises Damaged or Refused."""
        try:
            return self.execute()
        except ODD:
            raise Damaged("its pickle makes no sense") from None

    def execute(self) -> Any:
        stack, marks, memo = [], [], {}
        for _ in range(MOST):
            op = self.take(1)
            match op:
                # remember the top of the stack
                case b"q":
                    memo[self.number("<B")] = stack[-1]
                case b"r":
                    memo[self.number("<I")] = stack[-1]
                case b"p":
                    memo[int(self.line())] = stack[-1]
                case b"\x94":
                    memo[len(memo)] = stack[-1]
                # push a remembered value
                case b"h":
                    stack.append(memo[self.number("<B")])
                case b"j":
                    stack.append(memo[self.number("<I")])
                case b"g":
                    stack.append(memo[int(self.line())])
                # texts
                case b"X":
                    stack.append(self.text(self.number("<I")))
                case b"\x8c":
                    stack.append(self.text(self.number("<B")))
                case b"\x8d":
                    stack.append(self.text(self.number("<Q")))
                case b"V":
                    stack.append(self.line().decode("raw-unicode-escape"))
                case b"C":
                    stack.append(self.take(self.number("<B")))
                case b"B":
                    stack.append(self.take(self.number("<I")))
                # numbers
                case b"K":
                    stack.append(self.number("<B"))
                case b"M":
                    stack.append(self.number("<H"))
                case b"J":
                    stack.append(self.number("<i"))
                case b"\x8a":
                    digits = self.take(self.number("<B"))
                    stack.append(int.from_bytes(digits, "little", signed=True))
                case b"I":
                    digits = self.line()
                    stack.append({b"00": False, b"01": True}.get(digits, int(digits)))
                case b"L":
                    stack.append(int(self.line().rstrip(b"L")))
                case b"G":
                    stack.append(self.number(">d"))
                case b"F":
                    stack.append(float(self.line()))
                case b"N":
                    stack.append(None)
                case b"\x88" | b"\x89":
                    stack.append(op == b"\x88")
                # dicts, lists and tuples
                case b"}":
                    stack.append({})
                case b"]":
                    stack.append([])
                case b")":
                    stack.append(())
                case b"(":  # a mark: a later instruction takes all values that follow it
                    marks.append(stack)
                    stack = []
                case b"t" | b"l":
                    stack, items = marks.pop(), stack
                    stack.append(tuple(items) if op == b"t" else items)
                case b"d":
                    stack, items = marks.pop(), stack
                    stack.append({})
                    self.set_items(stack[-1], items)
                case b"\x85" | b"\x86" | b"\x87":  # a tuple of the last one, two or three values
                    n = op[0] - 0x84
                    stack[-n:] = [tuple(stack[len(stack) - n :])]
                case b"s" | b"u":
                    if op == b"s":
                        items = [stack.pop(), stack.pop()][::-1]
                    else:
                        stack, items = marks.pop(), stack
                    self.set_items(stack[-1], items)
                case b"a" | b"e":
                    if op == b"a":
                        items = [stack.pop()]
                    else:
                        stack, items = marks.pop(), stack
                    if type(stack[-1]) is not list:
                        raise Refused("it appends to something that is not a list")
                    stack[-1].extend(items)
                # names and calls
                case b"c":
                    names = [self.line().decode("utf-8", "replace") for _ in range(2)]
                    stack.append(self.named(".".join(names)))
                case b"\x93":
                    name, module = stack.pop(), stack.pop()
                    stack.append(self.named(f"{module}.{name}"))
                case b"i":  # protocol 0's way to make an object
                    names = [self.line().decode("utf-8", "replace") for _ in range(2)]
                    raise CallsCode(f"it wants to call {'.'.join(names)[:100]}")
                case b"R":
                    arguments, name = stack.pop(), stack.pop()
                    if not isinstance(name, Name) or type(arguments) is not tuple:
                        raise Refused("it calls something that is not a function")
                    if len(arguments) > ARGUMENTS:
                        raise Refused(f"it calls {name.path} with {len(arguments):,} arguments")
                    stack.append(self.calls[name.path](*arguments))
                case b"b":
                    self.set_state(stack[-2], stack.pop())
                case b"Q":
                    stack.append(self.outside(stack.pop()))
                # what frames the pickle
                case b"\x80":
                    self.take(1)
                case b"\x95":
                    self.take(8)
                case b".":
                    return stack.pop()
                case _:
                    raise Refused(
                        f"its pickle has the instruction {op!r}, which builds no plain data"
                    )
        raise Refused(f"its pickle has more than {MOST:,} instructions")

    def named(self, path: str) -> Any:
        """The value of a name, a function to call."""
        if path in self.calls:
            return Name(path)
        raise CallsCode(f"it wants to call {path[:100]}")

    def outside(self, reference: Any) -> Any:
        """The value of a reference to something outside the pickle."""
        raise Refused("it refers to something outside of it")

    def set_state(self, target: Any, state: Any) -> None:
        """Attributes: the order of a number's bytes; what a state_dict has is not needed."""
        if isinstance(target, NumpyKind):
            target.order = state[1]
        elif type(target) is not OrderedDict:
            raise Refused("it sets attributes")

    def set_items(self, target: Any, items: list) -> None:
        if type(target) not in (dict, OrderedDict) or len(items) % 2:
            raise Refused("it sets items of something that is not a dict")
        for key, value in zip(items[::2], items[1::2]):
            if type(key) not in KEYS:
                raise Refused(f"one of its dicts has a key of type {type(key).__name__}")
            is_small = type(key) is int and 0 <= key < SMALL
            self.numbers += type(key) in (int, float) and not is_small
            if self.numbers > MOST_NUMBERS:
                raise Refused(f"its dicts have more than {MOST_NUMBERS:,} keys that are numbers")
            target[key] = value
