"""Run a training program as it is, and note when it began to train and when each step ended.

    python benchmarks/clock.py TIMES.json STEPS SEED_OFFSET train.py [its arguments]

The clock starts when the optimizer is made: the model is there, but nothing is compiled and no
batch is read. A step ends when the optimizer has been called; the last one when the device is idle,
too. SEED_OFFSET is added to what the program gives torch.manual_seed, as nanoGPT's seed is a
constant.
"""

import atexit
import json
import runpy
import signal
import sys
import time
from pathlib import Path

if sys.argv[1:] in (["-h"], ["--help"]):
    if hasattr(signal, "SIGPIPE"):  # not on Windows
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head`
    print(__doc__)
    sys.exit()
if len(sys.argv) < 5 or not all(word.lstrip("-").isdecimal() for word in sys.argv[2:4]):
    sys.exit(__doc__)

import torch
import torch._inductor.compile_fx  # what a compiled step imports, before the clock or after it
from torch.optim.optimizer import register_optimizer_step_post_hook

target, steps, offset = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
begin, ends, outer = None, [], None


def made(optimizer, *args, **kwargs) -> None:
    global begin
    begin = begin or time.perf_counter()
    make(optimizer, *args, **kwargs)


def stepped(optimizer, args, kwargs) -> None:
    global outer
    inner = getattr(optimizer, "adam", None)  # an optimizer that has another one inside
    if inner is not None and outer is None:
        ends.clear()
        outer = optimizer
    if outer not in (None, optimizer) or len(ends) == steps:
        return
    if len(ends) == steps - 1 and torch.cuda.is_available():
        torch.cuda.synchronize()
    ends.append(time.perf_counter())


def write() -> None:
    with open(target, "w", encoding="utf-8") as f:
        json.dump([end - begin for end in ends], f)


make, torch.optim.Optimizer.__init__ = torch.optim.Optimizer.__init__, made
seed_as_told = torch.manual_seed
torch.manual_seed = lambda seed: seed_as_told(seed + offset)
register_optimizer_step_post_hook(stepped)
atexit.register(write)
sys.argv = sys.argv[4:]
sys.path[0] = str(Path(sys.argv[0]).resolve().parent)  # as if it had been started itself
runpy.run_path(sys.argv[0], run_name="__main__")
