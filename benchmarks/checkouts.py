"""Whether a training step of this checkout is faster than one of another checkout of this project.

    git worktree add --detach ../before main~20
    python benchmarks/checkouts.py --before=../before --options=config/quickstart.py
    python benchmarks/checkouts.py --before=. --before_options=--compile=off --options=...

Timings of two programs one after the other mean little on a machine that has other work: its speed
changes by half within minutes. Here two runs of train.py take turns of a second, each stopped
(SIGSTOP) while the other one computes, so that both meet the same conditions. Each turn is compared
with the other run's turns before and after it. What two equal checkouts give says how much is
noise. With OMP_NUM_THREADS=1 a step waits for one core alone, which is steadier.
"""

import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository root
if __name__ == "__main__":
    import bonsai.system.startup  # noqa: F401 - first: Ctrl-C from here on is one line

from benchmarks.harness import spread, table
from benchmarks.processes import leave_by_exit_on_signals, running
from bonsai import ROOT
from bonsai.runs.metrics import read_metrics
from bonsai.system.errors import UserError, end_if_told, run
from configurator import Config, configure

# -----------------------------------------------------------------------------
before = ""  # the other checkout [path]
options = ""  # of train.py, for both: config files and --key=value words
before_options = ""  # for the other one besides
seconds = 1.0  # of a turn [> 0]
# -----------------------------------------------------------------------------

LOGGED = ("--log_interval=1", "--eval_interval=1000000000", "--eval_iters=1")
SETTLED = 20  # steps before the first turn, in which memory and caches are filled
COLUMNS = (
    ("checkout", "name", ""), ("ms/step", "median", ".2f"), ("fastest tenth", "fast", ".2f"),
    ("steps", "n", ",d"),
)  # fmt: skip


def steps_of(out: Path) -> list[float]:
    """The milliseconds of each step so far."""
    return [row["ms"] for row in read_metrics(out) if "ms" in row]


def take_turns(c: Config, processes: list[subprocess.Popen], outs: list[Path]) -> list[list[int]]:
    """Let the runs compute in turn until one ends. Returns for each how many steps it had done at
    the end of each of its turns."""
    for process, out in zip(processes, outs):
        while process.poll() is None and len(steps_of(out)) < SETTLED:
            end_if_told()
            time.sleep(0.2)
    done = [[], []]
    try:
        for process in processes:
            process.send_signal(signal.SIGSTOP)
        while all(process.poll() is None for process in processes):
            for process, out, counts in zip(processes, outs, done):
                end_if_told()
                process.send_signal(signal.SIGCONT)
                time.sleep(c.seconds)
                process.send_signal(signal.SIGSTOP)
                counts.append(len(steps_of(out)))
    finally:
        for process in processes:
            process.send_signal(signal.SIGCONT)  # or it could not end
    return done


def turns_of(steps: list[float], counts: list[int]) -> list[float]:
    """The median step of each turn but the first, in ms, without the steps at its ends, of which
    one was stopped."""
    return [
        statistics.median(steps[first + 1 : last - 1])
        for first, last in pairwise(counts)
        if last - first >= 4
    ]


def ratios(now: list[float], other: list[float]) -> list[float]:
    """Of each turn to the mean of the other run's turns before and after it."""
    return [2 * b / (a + c) for b, a, c in zip(now, other, other[1:])]


def main(**settings) -> None:
    c = configure(globals(), settings=settings)
    if not hasattr(signal, "SIGSTOP"):
        raise UserError("this system cannot stop a process and let it go on")
    folders = [Path(c.before or "."), ROOT]
    if not c.before or not (folders[0] / "train.py").is_file():
        raise UserError(f"before={c.before} has no train.py: give the folder of another checkout")
    leave_by_exit_on_signals()  # so that what is stopped goes on, and can be ended
    words = {"before": f"{c.options} {c.before_options}", "now": c.options}
    with tempfile.TemporaryDirectory() as place, ExitStack() as stack:
        outs, logs, processes = [Path(place) / name for name in words], [], []
        for folder, out, text in zip(folders, outs, words.values()):
            logs.append(stack.enter_context(open(out.with_suffix(".txt"), "w+")))
            command = [sys.executable, str(folder.resolve() / "train.py"), *shlex.split(text)]
            command += [*LOGGED, f"--out_dir={out}"]
            quiet = dict(stdout=logs[-1], stderr=logs[-1], stdin=subprocess.DEVNULL)
            processes.append(stack.enter_context(running(command, **quiet)))
        counts = take_turns(c, processes, outs)
        for name, process, log in zip(words, processes, logs):
            if process.poll():
                log.seek(0)
                last = (log.read().splitlines() or ["it has ended"])[-1]
                raise UserError(f"the run of {name} has failed: {last}")
        steps = [steps_of(out) for out in outs]
    turns = [turns_of(s, n) for s, n in zip(steps, counts)]
    found = ratios(turns[1], turns[0])
    if len(found) < 3:
        raise UserError("the runs are too short for a comparison: give a larger --max_iters")
    rows = [
        {"name": name, **spread(t), "fast": sorted(s)[len(s) // 10], "n": len(s)}
        for name, t, s in zip(words, turns, steps)
    ]
    print(f"\n{table(rows, COLUMNS)}\n")
    low, _, high = statistics.quantiles(found, n=4)
    print(
        f"now / before: {statistics.median(found):.3f} (median of {len(found)} turns; half of them "
        f"between {low:.3f} and {high:.3f})"
    )


if __name__ == "__main__":
    run(main)
