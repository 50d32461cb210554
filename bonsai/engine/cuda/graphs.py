"""Functions that are captured as CUDA graphs, and replayed.

A one-token step of a small model is some hundreds of kernels of a few microseconds each. Launching
one from Python takes longer than running it; a graph launches all of them at once. A capture
records the kernels and their addresses, nothing of the Python around them. So a captured function
reads its inputs from tensors that stay at their place, writes its results to such tensors, and
never uses a number from the device in Python.
"""

import sys
from collections import OrderedDict
from collections.abc import Callable, Hashable
from contextlib import contextmanager, suppress

import torch

MOST = 128  # how many graphs are kept; the least recently used are dropped first
REFUSALS = 3  # how many captures may fail; then no more are tried


class Graphs:
    """Captured functions of one device, by key.

    They share one pool of memory for intermediate results, which are valid during a replay only. So
    graphs must run one after another, and results must be in tensors of the caller.
    """

    def __init__(self, device: torch.device):
        self.kept: OrderedDict[Hashable, CapturedGraph | Uncaptured] = OrderedDict()
        self.captures = device.type == "cuda"
        self.refused = 0
        if self.captures:
            self.stream, self.pool = torch.cuda.Stream(device), torch.cuda.graph_pool_handle()

    def run(self, key: Hashable, function: Callable[[], None]) -> None:
        """Run `function`. The first time with a key it is called, which loads kernels and
        initialises libraries, and then captured; later its graph is replayed."""
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
        """A graph of `function`; if the capture fails, an Uncaptured, after one line that says
        why."""
        if self.captures:
            try:
                return CapturedGraph(function, self.stream, self.pool)
            # for example the function waits for the device, the memory is full, an old driver
            except RuntimeError as e:
                self.pool = torch.cuda.graph_pool_handle()  # the old one cannot be used any more
                self.refused += 1
                self.captures = self.refused < REFUSALS
                first = e.__context__ if isinstance(e.__context__, RuntimeError) else e
                reason = next(iter(str(first).strip().splitlines()), type(first).__name__)
                if self.refused == 1:
                    print(f"steps run without CUDA graphs, slower: {reason}", file=sys.stderr)
        return Uncaptured(function)


class CapturedGraph:
    """The kernels that a function launches; `replay` launches all of them at once."""

    def __init__(self, function: Callable[[], None], stream, pool):
        graph = torch.cuda.CUDAGraph()
        try:
            with on_stream(stream):  # the default stream cannot be captured
                # thread_local: other threads may use the device meanwhile. Not in inference mode:
                # torch makes a tensor here that all graphs share, and could not change it later
                # outside of that mode
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
    """Return torch's allocator to its normal state after a capture that failed.

    It returns by itself only if CUDA has ended the capture without an error. Until then no graph
    can be captured into the pool, and free memory is not released when more is needed.
    """
    with suppress(Exception):  # there was no error in CUDA, for example if the memory was full
        torch._C._cuda_endAllocateToPool(stream.device_index, pool)
        torch._C._cuda_releasePool(stream.device_index, pool)


class Uncaptured:
    """Replaces a graph that cannot be captured: `replay` calls the function."""

    def __init__(self, function: Callable[[], None]):
        self.replay = function


@contextmanager
def on_stream(stream):
    """Run the launches of this block on another stream, in order with those of the current stream
    before and after the block."""
    current = torch.cuda.current_stream(stream.device)
    stream.wait_stream(current)
    try:
        with torch.cuda.stream(stream):
            yield
    finally:
        current.wait_stream(stream)
