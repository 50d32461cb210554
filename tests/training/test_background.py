"""bonsai/training/background.py: a thread writes a copy of what was there at that moment."""

import gc
import threading
import weakref
from collections.abc import Callable

import pytest
import torch
from helpers.checkpoints import tiny

from bonsai.runs.checkpoint import save_checkpoint
from bonsai.runs.names import CKPT
from bonsai.system.errors import UserError
from bonsai.system.runtime import setup
from bonsai.training import background
from bonsai.training.background import BackgroundWriter, on_host, tensors_in


def parts_of_one() -> dict:
    whole, shared = torch.arange(60.0), [1, 2]
    views = {"first": whole[:20], "rest": whole[20:].view(8, 5), "down": whole[5:].view(5, 11).mT}
    return {
        **views,
        "again": views["rest"],
        "wide": torch.ones(3, 1).expand(3, 4),
        "l": [shared] * 2,
    }


STATES: dict[str, Callable[[], dict]] = {
    "a model and its optimizer": lambda: tiny()[1],
    "a tied head": lambda: tiny(tie_head=True)[1],
    "an untied head": lambda: tiny(tie_head=False)[1],
    "views of one buffer": parts_of_one,
    "kinds of numbers": lambda: {
        str(d): torch.ones(3, dtype=d) for d in (torch.bfloat16, torch.int64, torch.bool)
    },
    "nothing in it": lambda: {"empty": torch.empty(0), "none": torch.empty(2, 0), "scalar": None},
    "in lists": lambda: {"a": [torch.ones(2), (torch.zeros(1), {"b": torch.ones(1)})], "n": 1},
}


@pytest.fixture
def writer():
    said = []
    made = BackgroundWriter(setup("cpu", "float32", False), said.append)
    made.said = said
    yield made
    made.wait()


@pytest.mark.parametrize("name", STATES)
def test_a_copy_makes_the_same_file(tmp_path, name):
    state = {**STATES[name](), "iter_num": 1}
    copy = on_host(state)
    save_checkpoint(tmp_path / "a", state)
    save_checkpoint(tmp_path / "b", copy)
    assert (tmp_path / "a" / CKPT).read_bytes() == (tmp_path / "b" / CKPT).read_bytes()
    own = {t.untyped_storage().data_ptr() for t in tensors_in(state)} - {0}
    assert own.isdisjoint(t.untyped_storage().data_ptr() for t in tensors_in(copy))


@pytest.mark.parametrize("name", STATES)
def test_no_change_reaches_a_copy(tmp_path, name):
    state = {**STATES[name](), "iter_num": 1, "more": {"list": [1], "dict": {"a": 1}}}
    save_checkpoint(tmp_path / "a", state)
    copy = on_host(state)
    for tensor in tensors_in(state):
        tensor.untyped_storage().fill_(1)
    state["more"]["list"].append(2)
    state["more"]["dict"].clear()
    state.update(iter_num=2)
    save_checkpoint(tmp_path / "b", copy)
    assert (tmp_path / "a" / CKPT).read_bytes() == (tmp_path / "b" / CKPT).read_bytes()


def test_one_after_the_other(writer):
    """A second one waits for the first; each gets what was there when it was given."""
    begin, seen, state = threading.Event(), [], {"w": torch.zeros(3)}

    def save(copy):
        assert threading.current_thread() is not threading.main_thread()
        assert begin.wait(60)
        seen.append(copy["w"].tolist())

    writer.write(save, state)
    state["w"] += 1
    writer.check()  # does not wait
    assert seen == []
    begin.set()
    writer.write(save, state)
    assert seen[:1] == [[0.0] * 3]
    state["w"] += 1
    writer.wait()
    assert seen == [[0.0] * 3, [1.0] * 3]
    writer.wait()


@pytest.mark.parametrize("call", ["check", "wait", "write"])
@pytest.mark.parametrize("kind", [UserError, OSError, AssertionError])
def test_an_error_is_raised_once(writer, call, kind):
    def fail(copy):
        raise kind("something")

    writer.write(fail, {})
    writer.thread.join()
    saved = []
    with pytest.raises(kind, match="something"):
        getattr(writer, call)(*[saved.append, {}] if call == "write" else [])
    writer.check()
    writer.wait()
    assert saved == []  # what was to be written next is not


def threads_that_save(writer, size: int) -> list[bool]:
    """Whether one of its own writes a state of so many bytes."""
    own = []
    writer.write(
        lambda state: own.append(threading.current_thread() is not threading.main_thread()),
        {"w": torch.zeros(size, dtype=torch.uint8)},
    )
    writer.wait()
    return own


@pytest.mark.parametrize("free, own", [(None, False), (0, False), (199, False), (200, True)])
def test_without_memory_for_a_copy_the_caller_writes(writer, monkeypatch, free, own):
    monkeypatch.setattr(background, "free_host_bytes", lambda: free)
    monkeypatch.setattr(background, "GIB", 100)
    for _ in range(2):
        assert threads_that_save(writer, 100) == [own]
    why = "this system does not say how much memory is free for a copy"
    if free is not None:
        why = f"a copy takes 2.00 GiB of this host's memory, {free / 100:.2f} are free"
    # once, not at every save
    assert writer.said == [f"training waits while a checkpoint is written: {why}"] * (not own)


def test_a_copy_needs_no_more_memory_than_the_one_before(writer, monkeypatch):
    monkeypatch.setattr(background, "free_host_bytes", lambda: 300)
    assert threads_that_save(writer, 150) == [True]
    monkeypatch.setattr(background, "free_host_bytes", lambda: 20)
    sizes = {100: True, 150: True, 161: False, 160: True, 170: True}
    assert {size: threads_that_save(writer, size)[0] for size in sizes} == sizes


@pytest.mark.parametrize("what", ["a copy", "a thread"])
@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("can't start new thread"),
        MemoryError(""),
        torch.AcceleratorError("CUDA error: operation not supported\nSearch for ..."),
        RuntimeError("shapes"),
    ],
    ids=repr,
)
def test_what_fails_for_lack_of_memory_is_written_by_the_caller(writer, monkeypatch, what, error):
    def fail(*args):
        raise error

    place = (background, "on_host") if what == "a copy" else (threading.Thread, "start")
    monkeypatch.setattr(*place, fail)
    if str(error) == "shapes":  # a mistake of ours
        with pytest.raises(RuntimeError, match="shapes"):
            threads_that_save(writer, 100)
        return
    assert threads_that_save(writer, 100) == [False]
    (line,) = writer.said
    assert line.startswith("training waits while") and "\n" not in line


def test_a_copy_is_freed_when_it_is_written(writer, tmp_path):
    """At once, not when Python next looks for cycles: the next copy takes its memory."""
    copies = []

    def save(copy):
        copies.extend(map(weakref.ref, tensors_in(copy)))
        save_checkpoint(tmp_path, copy)

    gc.collect()
    gc.disable()
    try:
        writer.write(save, tiny()[1])
        writer.wait()
        assert len(copies) > 10 and not any(ref() is not None for ref in copies)
    finally:
        gc.enable()
