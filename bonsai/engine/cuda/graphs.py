"""Functions that are captured as CUDA graphs, and replayed.

A one-token step of a small model is some hundreds of kernels of a few microseconds each; launched
one by one from Python each takes longer to launch than to run. A graph launches all of them at
once. What is captured are the kernels and their addresses, nothing of the Python around them: a
captured function takes its inputs from tensors that stay where they are, leaves its results in such
tensors, and never looks at a number on the device.
"""

import sys
from collections import OrderedDict
from collections.abc import Callable, Hashable
from contextlib import contextmanager, suppress

import torch

MOST = 128  # graphs that are kept; the least recently used go first
REFUSALS = 3  # captures that may fail before no more are tried


class Graphs:
    """Captured functions of one device, by key.

    They share one pool of memory for what they compute in between, which is theirs during a replay
    only. So they are run one after another, and what outlives a run is in tensors of the caller.
    """

    def __init__(self, device: torch.device):
        self.kept: OrderedDict[Hashable, CapturedGraph | Uncaptured] = OrderedDict()
        self.captures = device.type == "cuda"
        self.refused = 0
        if self.captures:
            self.stream, self.pool = torch.cuda.Stream(device), torch.cuda.graph_pool_handle()

    def run(self, key: Hashable, function: Callable[[], None]) -> None:
        """Do what `function` does: the first time with a key by calling it, which loads the kernels
        and gets the libraries ready, and then capturing it; from then on by a replay."""
        if graph := self.kept.get(key):
            self.kept.move_to_end(key)
            graph.replay()
            return
        if self.captures:
            with on_stream(self.stream):
                function()
        else:
            function()
        self.kept[key] = self.capture(function)
        if len(self.kept) > MOST:
            self.kept.popitem(last=False)

    def capture(self, function: Callable[[], None]) -> "CapturedGraph | Uncaptured":
        """A graph of `function`; where none can be had, its stand-in, after one line why."""
        if self.captures:
            try:
                return CapturedGraph(function, self.stream, self.pool)
            except RuntimeError as e:  # it waits for the device, the memory is full, an old driver
                self.pool = torch.cuda.graph_pool_handle()  # into that one no other may be captured
                self.refused += 1
                self.captures = self.refused < REFUSALS
                first = e.__context__ if isinstance(e.__context__, RuntimeError) else e
                reason = next(iter(str(first).strip().splitlines()), type(first).__name__)
                if self.refused == 1:
                    print(f"a step without CUDA graph, slower: {reason}", file=sys.stderr)
        return Uncaptured(function)


class CapturedGraph:
    """The kernels that a function launches, to be launched at once."""

    def __init__(self, function: Callable[[], None], stream, pool):
        graph = torch.cuda.CUDAGraph()
        try:
            with on_stream(stream):  # the default stream cannot be captured
                # other threads may go on with what they do on the device; and torch makes a tensor
                # here that graphs share, which it could not fill any more outside of inference mode
                with torch.inference_mode(False):
                    graph.capture_begin(pool, capture_error_mode="thread_local")
                try:
                    function()
                finally:
                    graph.capture_end()
        except BaseException:
            end_allocation(stream, pool)
            raise
        self.replay = graph.replay


def end_allocation(stream, pool) -> None:
    """Have torch's allocator go on as usual after a capture that was broken off.

    It ends one only where CUDA has ended it well. Until then no graph can be captured into the
    pool, and memory that is free is not given back where more is needed.
    """
    with suppress(Exception):  # it has ended well, as where the memory was full
        torch._C._cuda_endAllocateToPool(stream.device_index, pool)
        torch._C._cuda_releasePool(stream.device_index, pool)


class Uncaptured:
    """Stands in for a graph where there is none: a replay calls the function."""

    def __init__(self, function: Callable[[], None]):
        self.replay = function


@contextmanager
def on_stream(stream):
    """What is launched inside runs on another stream, after what was launched before it and before
    what is launched after it."""
    current = torch.cuda.current_stream(stream.device)
    stream.wait_stream(current)
    try:
        with torch.cuda.stream(stream):
            yield
    finally:
        current.wait_stream(stream)
