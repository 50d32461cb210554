"""Where a training step's time goes: matrix products, attention, loss, optimizer and the rest.

What torch's profiler has recorded is sorted into these parts by name: the names of kernels on a
GPU, of operations on a CPU.
"""

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function

from bonsai.system.errors import UserError
from bonsai.system.runtime import Runtime
from bonsai.system.tables import table
from bonsai.training.timing import TimedSteps

UPDATE = "clipping and update"  # all of this part of a step is the optimizer's, products included

# part -> a pattern for its names; the first part whose pattern is found decides. The name of a
# fused triton kernel lists all that is in it: one with the loss's softmax belongs to the loss, and
# one with `mm` only continues after a product, unless it is a template (tem) that computes one.
PARTS = {
    "loss": r"log_?softmax|logsoftmax|softmax_online|nll_loss|cross_entropy|logsumexp",
    "attention": r"flash|fmha|sdpa|attention|softmax",
    "matrix products": r"gemm|gemv|nvjet|cutlass|xmma|splitk|cublas|triton_tem_"
    r"|^(aten|mkldnn|onednn)::_?(mkldnn_)?(linear|linear_pointwise|addmm|addmv|baddbmm|bmm|mm|mv)\b",
    "optimizer": r"multi_tensor_apply|adam|lpnorm|_foreach_|muon",
}
REST = "the rest"


def part_of(name: str) -> str:
    """Which part of a step a kernel or operation of this name belongs to.

    >>> part_of("nvjet_sm90_tst_128x256_64x4_1x2_h_bz_coopA_TNN")
    'matrix products'
    """
    found = (part for part, names in PARTS.items() if re.search(names, name, re.IGNORECASE))
    return next(found, REST)


def record(step: TimedSteps, count: int, runtime: Runtime) -> profile:
    """What the profiler records of `count` steps. Their updates are marked; the host waits for the
    device at both ends of a mark, so that the update's kernels lie within it."""
    kinds = [ProfilerActivity.CPU]
    if runtime.device.type == "cuda":
        kinds.append(ProfilerActivity.CUDA)
    runtime.synchronize()
    with profile(activities=kinds) as recorded:
        for _ in range(count):
            step.backward()
            runtime.synchronize()
            with record_function(UPDATE):
                step.training.update()
                runtime.synchronize()
    return recorded


def write_trace(recorded: profile, path: Path) -> None:
    """Write JSON for a trace viewer. Raises UserError if the disk is full: torch raises nothing
    then, but leaves a part of the file, as `path` or under another name."""
    path.unlink(missing_ok=True)  # an earlier one
    recorded.export_chrome_trace(str(path))
    if not (path.exists() and ends_with(path, b"}")):
        for part in (path, Path(f"{path}.tmp")):
            part.unlink(missing_ok=True)
        advice = "free some space, or write it elsewhere"
        raise UserError(f"the disk is full while writing {path}: {advice}")


def ends_with(path: Path, end: bytes) -> bool:
    """Whether a file ends so, apart from white space."""
    with path.open("rb") as f:
        f.seek(max(0, path.stat().st_size - 100))
        return f.read().rstrip().endswith(end)


def timed(events: Iterable, on_gpu: bool) -> list[tuple[str, str, float]]:
    """(part, name, microseconds) of every kernel; on a CPU of every operation, without the time of
    the operations that it calls.

    events: a profiler's. What begins within a mark of UPDATE is the optimizer's.
    """
    events = list(events)
    marks = [e.time_range for e in events if e.name == UPDATE and e.device_type == DeviceType.CPU]

    def updates(e) -> bool:
        return any(mark.start <= e.time_range.start < mark.end for mark in marks)

    rows = []
    for e in events:
        if on_gpu != (e.device_type == DeviceType.CUDA) or e.name == UPDATE:
            continue
        if getattr(e, "is_user_annotation", False):  # a mark, which is no work
            continue
        time = e.time_range.elapsed_us() if on_gpu else e.self_cpu_time_total
        rows.append(("optimizer" if updates(e) else part_of(e.name), e.name, time))
    return rows


def shares(rows: list[tuple[str, str, float]]) -> dict[str, float]:
    """The share of each part in the whole time, the largest first. They sum to 1, or are all 0 if
    nothing was recorded."""
    times = Counter(dict.fromkeys((*PARTS, REST), 0.0))
    for part, _, time in rows:
        times[part] += time
    total = times.total() or 1.0
    return {part: time / total for part, time in times.most_common()}


def longest(rows: list[tuple[str, str, float]], count: int, most: int = 15) -> list[dict]:
    """The kernels or operations that take longest: part, name, milliseconds and calls per step, and
    share in the whole time. count: how many steps were recorded."""
    times, calls = Counter(), Counter()
    for part, name, time in rows:
        times[part, name] += time
        calls[part, name] += 1
    return [
        {"part": key[0], "name": key[1], "ms": time / count / 1000}
        | {"share": time / times.total(), "calls": calls[key] / count}
        for key, time in times.most_common(most)
    ]


def describe(rows: list[tuple[str, str, float]], count: int) -> str:
    """The shares in a line, and a table of what takes longest. count: as in `longest`."""
    if not rows:  # without the right to profile the GPU
        return "share of time     n/a (the profiler has seen nothing of the device)"
    said = ", ".join(f"{part} {share:.1%}" for part, share in shares(rows).items())
    listed = [{**row, "name": shorten(row["name"])} for row in longest(rows, count)]
    columns = (
        ("part", "part", ""), ("kernel or operation", "name", ""), ("ms/step", "ms", ".3f"),
        ("share", "share", ".1%"), ("calls/step", "calls", ".0f"),
    )  # fmt: skip
    return f"share of time     {said}\n\n{table(listed, columns)}"


def shorten(name: str, most: int = 64) -> str:
    return name if len(name) <= most else f"{name[: most - 3]}..."
