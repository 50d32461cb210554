"""bonsai/files/pickles.py: what Python pickles comes back, and nothing is executed on the way."""

import collections
import math
import pathlib
import pickle
import sys
import time

import numpy as np
import pytest
from helpers.programs import Payload

from bonsai.files import pickles
from bonsai.files.pickles import CallsCode, Damaged, Machine, Refused

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)
PLAIN = {
    "numbers": [0, 1, -1, 255, 256, 65536, 2**31, -(2**31), 2**70, -(2**70), 1.5, -0.0, math.inf],
    "texts": ["", "a", "é\n\\", "🙂" * 100, "x" * 70_000, "\ud800"],
    "others": [None, True, False, b"", b"\0\xff", b"y" * 300, (), (1,), (1, (2, "b")), [[]], {}],
    "dicts": {1: "a", "b": {None: [b"c"]}, 2.5: 3, b"d": True},
    "ordered": collections.OrderedDict(b=1, a=2),
}
PLAIN["twice"] = PLAIN["texts"]  # which a pickle holds once


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_plain_values_come_back(protocol):
    read = Machine(pickle.dumps(PLAIN, protocol)).run()
    assert read == PLAIN and repr(read) == repr(PLAIN)
    assert read["twice"] is read["texts"]


SCALARS = [np.bool_(True), np.str_("aé🙂"), np.str_("")]
SCALARS += [np.dtype(kind).type(7) for kind in pickles.NUMBERS if kind != "b1"]
SCALARS += [np.float64("nan"), np.int8(-3), np.uint64(2**64 - 1)]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_numpys_numbers_and_texts_become_pythons(protocol):
    for scalar in SCALARS:
        for data in (pickle.dumps(scalar, protocol), of_numpy_1(pickle.dumps(scalar, protocol))):
            read, plain = Machine(data).run(), scalar.item()
            assert type(read) is type(plain) and repr(read) == repr(plain), scalar


def of_numpy_1(data: bytes) -> bytes:
    """As NumPy 1 names its functions; the frame of newer protocols knows its length."""
    if data[:1] == b"\x80" and data[1] >= 4:
        data = data[:2] + data[11:]
        return data.replace(b"\x16numpy._core.multiarray", b"\x15numpy.core.multiarray")
    return data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


def test_bytes_in_the_other_order():
    data = pickle.dumps(np.float64(1.5), 2)
    turned = data.replace(b"X\1\0\0\0<", b"X\1\0\0\0>")
    at = turned.index(b"\xc3\xb8?")  # the last bytes of 1.5, as text in UTF-8
    number = np.float64(1.5).tobytes().decode("latin1").encode()
    start = at + 3 - len(number)
    assert turned[start : at + 3] == number
    other = np.float64(1.5).tobytes()[::-1].decode("latin1").encode()
    assert Machine(turned[:start] + other + turned[at + 3 :]).run() == 1.5


class Opaque:
    """Not plain: it can only be made by a call."""


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_whatever_else_is_named_is_not_called(protocol, tmp_path):
    marker = tmp_path / "executed"
    for value, words in (
        (Payload(marker), "mkdir"),
        ({"a": [Payload(marker)]}, "mkdir"),
        (Opaque(), "Opaque|_reconstructor|copy_reg"),
        (print, "print"),
        (pathlib.PurePosixPath("a"), "pathlib"),
        (collections.Counter("ab"), "Counter"),
        (np.zeros(3), "_reconstruct|_frombuffer"),
        (np.longdouble(1), "no plain number|scalar"),
        (np.datetime64("2026-01-01"), "M8"),
        (np.random.get_state(), "_reconstruct|_frombuffer"),
    ):
        with pytest.raises(CallsCode, match=words):
            Machine(pickle.dumps(value, protocol)).run()
    assert not marker.exists()


def same_hash(i: int) -> bytes:
    """A number that Python's dicts cannot tell from others of its kind by its hash, and None."""
    return b"\x8a\x0a" + (i * sys.hash_info.modulus).to_bytes(10, "little") + b"N"


HOSTILE = {
    "nested tuples as a key": b"})" + b"\x85" * 100_000 + b"K\1s",
    "doubled tuples as a key": b"}K\1"
    + b"".join(b"q%ch%c\x86" % (i, i) for i in range(99))
    + b"K\1s",
    "keys of one hash": b"}(" + b"".join(map(same_hash, range(21_000))) + b"u",
    "a text longer than the file": b"\x8d" + b"\xff" * 7 + b"\x7f",
    "bytes longer than the file": b"B\xff\xff\xff\xff",
    "a number of a million digits": b"L" + b"9" * 1_000_000 + b"L\n",
    "no end": b"\x95" + b"\0" * 7,
    "nothing on the stack": b"s",
    "no mark": b"}u",
    "an odd number of items": b"}(K\1u",
    "items of a list": b"]K\1K\1s",
    "appends to a text": b"X\1\0\0\0aK\1a",
    "attributes of a dict": b"}}b",
    "an unknown reference": b"K\1Q",
    "calls a number": b"K\1)R",
    "arguments of an OrderedDict": b"ccollections\nOrderedDict\n]\x85R",
    "bytes of a size": b"c__builtin__\nbytes\nJ\xff\xff\xff\x7f\x85R",
    "another encoding": b"c_codecs\nencode\nX\1\0\0\0aX\4\0\0\0zlib\x86R",
    "a scalar without a kind": b"cnumpy._core.multiarray\nscalar\nK\1K\2\x86R",
    "half a number": b"cnumpy._core.multiarray\nscalar\ncnumpy\ndtype\nX\2\0\0\0f8\x85RC\1a\x86R",
    "an object": b"cnumpy\ndtype\nX\2\0\0\0O8\x85R",
    "an instance": b"(iposix\nmkdir\n",
    "a class by its number": b"\x82\1",
    "a large place in the memo, not there": b"j\xff\xff\xff\x7f",
    "many calls with many arguments": b"c_codecs\nencode\n(" + b"N" * 100 + b"tR",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_pickles_are_refused_at_once(name):
    begin = time.process_time()
    with pytest.raises((Damaged, Refused)) as e:
        Machine(b"\x80\x02" + HOSTILE[name] + b".").run()
    assert "\n" not in str(e.value) and len(str(e.value)) < 200
    assert time.process_time() - begin < 20  # nested tuples would take for ever


def test_a_large_place_in_the_memo_takes_no_memory():
    assert Machine(b"\x80\x02}r\xff\xff\xff\x7f.").run() == {}
    assert Machine(b"}p2000000000\n.").run() == {}


def test_token_ids_are_no_numbers_that_count(monkeypatch):
    monkeypatch.setattr(pickles, "MOST_NUMBERS", 1000)
    ids = {i: "a" for i in range(65_536)}
    assert Machine(pickle.dumps(ids)).run() == ids
    for few, many in (
        ({-i: 1 for i in range(1, 1001)}, {-i: 1 for i in range(1, 1002)}),
        ({i + 0.5: 1 for i in range(1000)}, {i + 0.5: 1 for i in range(1001)}),
    ):
        assert Machine(pickle.dumps(few)).run() == few
        with pytest.raises(Refused, match="more than 1,000 keys that are numbers"):
            Machine(pickle.dumps(many)).run()


def test_the_number_of_instructions_is_bounded(monkeypatch):
    monkeypatch.setattr(pickles, "MOST", 1000)
    with pytest.raises(Refused, match="more than 1,000 instructions"):
        Machine(pickle.dumps([*range(1000)])).run()
