"""bonsai/engine/cuda/graphs.py: what is called, what is replayed, and what a refusal changes."""

import itertools
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from bonsai.engine.cuda import graphs
from bonsai.engine.cuda.graphs import Graphs, Uncaptured


@pytest.fixture
def made(monkeypatch):
    """Graphs of a device that captures, without one: (graphs, those that were captured)."""
    captured = []

    class Recorded:
        def __init__(self, function, stream, pool):
            captured.append(self)
            self.replay = function

    monkeypatch.setattr(graphs, "CapturedGraph", Recorded)
    monkeypatch.setattr(graphs, "on_stream", nullcontext)
    pools = itertools.count(1)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, next(pools)))
    made = Graphs(torch.device("cpu"))
    made.captures, made.stream = True, SimpleNamespace(device_index=1)
    made.pool = torch.cuda.graph_pool_handle()
    return made, captured


def test_without_cuda_a_replay_calls_the_function_again():
    made, x = Graphs(torch.device("cpu")), torch.zeros(2)
    for _ in range(3):
        made.run("add", lambda: x.add_(1))
    assert x.tolist() == [3, 3] and isinstance(made.kept["add"], Uncaptured)


def test_each_key_is_captured_once(made):
    made, captured = made
    x = torch.zeros(1)
    for key in ("a", "b", "a", "b", "a"):
        made.run(key, lambda: x.add_(1))
    assert len(captured) == 2 and x.item() == 5


def test_the_least_recently_used_graph_goes_first(made, monkeypatch):
    made, captured = made
    monkeypatch.setattr(graphs, "MOST", 2)
    for key in ("a", "b", "a", "c", "a", "b"):
        made.run(key, lambda: None)
    assert len(captured) == 4 and [*made.kept] == ["a", "b"]


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: operation not permitted when stream is capturing\nmore lines"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    ],
)
def test_a_refused_capture_is_said_once_and_changes_no_number(made, monkeypatch, capsys, error):
    """As PyTorch reports it: the capture is broken by one error, its end by another."""
    made, captured = made
    x = torch.zeros(1)

    def refuse(function, stream, pool):
        try:
            raise error
        finally:
            raise RuntimeError("operation failed due to a previous error during capture")

    working = graphs.CapturedGraph
    made.run("before", lambda: x.add_(1))
    monkeypatch.setattr(graphs, "CapturedGraph", refuse)
    for key in ("before", "a", "a", "b"):
        made.run(key, lambda: x.add_(1))
    assert x.item() == 5 and len(captured) == 1 and made.captures
    monkeypatch.setattr(graphs, "CapturedGraph", working)
    made.run("c", lambda: x.add_(1))  # another function may be captured
    assert x.item() == 6 and len(captured) == 2
    monkeypatch.setattr(graphs, "CapturedGraph", refuse)
    for key in "def":
        made.run(key, lambda: x.add_(1))
    assert x.item() == 9 and not made.captures
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and str(error).splitlines()[0] in said


def test_after_a_refused_capture_the_next_have_another_pool(made, monkeypatch):
    made, captured = made
    pools = []

    def refuse(function, stream, pool):
        pools.append(pool)
        raise RuntimeError("operation failed due to a previous error during capture")

    working = graphs.CapturedGraph
    monkeypatch.setattr(graphs, "CapturedGraph", refuse)
    made.run("a", lambda: None)
    monkeypatch.setattr(
        graphs,
        "CapturedGraph",
        lambda f, stream, pool: pools.append(pool) or working(f, stream, pool),
    )
    made.run("b", lambda: None)
    made.run("c", lambda: None)
    assert pools == [(0, 1), (0, 2), (0, 2)] and len(captured) == 2


class RecordedGraph:
    """In the place of torch's; where CUDA has broken off the capture, its end is an error."""

    def __init__(self, broken: bool = False):
        self.broken = broken

    def capture_begin(self, pool, capture_error_mode):
        self.begun = torch.is_inference_mode_enabled(), pool, capture_error_mode

    def capture_end(self):
        self.ended = True
        if self.broken:
            raise RuntimeError("operation failed due to a previous error during capture")

    def replay(self):
        self.replayed = True


@pytest.fixture
def recorded(monkeypatch) -> list[RecordedGraph]:
    """The graphs that were made; the next one is broken where `recorded` begins with True."""
    found = []
    monkeypatch.setattr(graphs, "on_stream", nullcontext)
    monkeypatch.setattr(
        torch.cuda,
        "CUDAGraph",
        lambda: found.append(RecordedGraph(broken=True in found)) or found[-1],
        raising=False,
    )
    return found


def test_a_capture_begins_outside_of_inference_mode(recorded):
    """Where torch makes the tensors of its noise, which all graphs share, those of an engine and of
    `generate` too; what is captured runs as it did."""
    modes = []
    for mode in (True, False):
        with torch.inference_mode(mode):
            function = lambda: modes.append(torch.is_inference_mode_enabled())  # noqa: E731
            graphs.CapturedGraph(function, None, (0, 7)).replay()
    assert modes == [True, False] and all(graph.ended and graph.replayed for graph in recorded)
    assert [graph.begun for graph in recorded] == [(False, (0, 7), "thread_local")] * 2


@pytest.mark.parametrize("error", [RuntimeError("it waits"), KeyboardInterrupt(), None])
@pytest.mark.parametrize("broken", [True, False])
def test_a_capture_that_is_broken_off_ends_in_the_allocator(recorded, monkeypatch, error, broken):
    """Which torch leaves out where CUDA has broken it off, else does itself: then to end it once
    more is an error, which is passed over."""
    told = []

    def end(*given):
        told.append(("end", *given))
        if not broken:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")

    def function():
        if error:
            raise error

    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", end, raising=False)
    release = lambda *given: told.append(("release", *given))  # noqa: E731
    monkeypatch.setattr(torch._C, "_cuda_releasePool", release, raising=False)
    recorded += [True] * broken
    stream = SimpleNamespace(device_index=1)
    if not broken and not error:
        graphs.CapturedGraph(function, stream, (0, 7))
        assert not told
        return
    with pytest.raises(RuntimeError if broken else type(error)) as raised:
        graphs.CapturedGraph(function, stream, (0, 7))
    assert told == [("end", 1, (0, 7)), ("release", 1, (0, 7))][: 1 + broken]
    assert not (broken and error) or raised.value.__context__ is error


def test_what_the_function_itself_raises_is_raised(made):
    made, captured = made
    with pytest.raises(ZeroDivisionError):
        made.run("a", lambda: 1 / 0)
    assert not captured and not made.kept
