"""bonsai/engine/cuda/graphs.py: what is called, what is replayed, and what a refusal changes."""

from contextlib import nullcontext

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
    made = Graphs(torch.device("cpu"))
    made.captures, made.stream, made.pool = True, None, None
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


def test_what_the_function_itself_raises_is_raised(made):
    made, captured = made
    with pytest.raises(ZeroDivisionError):
        made.run("a", lambda: 1 / 0)
    assert not captured and not made.kept
