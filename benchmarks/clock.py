"""Runs a training program unchanged, and notes when training began and when each step ended.

    python benchmarks/clock.py TIMES.json STEPS SEED_OFFSET train.py [its arguments]

The clock starts when the optimizer is made: then the model exists, but nothing is compiled and no
batch is read. A step ends when the optimizer's step returns; the last one when the device is idle.
SEED_OFFSET is added to the program's arguments of torch.manual_seed, because nanoGPT's seed is a
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
import torch._inductor.compile_fx  # a compiled step imports it; here, so that it is never timed
from torch.optim.optimizer import register_optimizer_step_post_hook

target, steps, offset = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
begin, ends, outer = None, [], None


def made(optimizer, *args, **kwargs) -> None:
    global begin
    begin = begin or time.perf_counter()
    make(optimizer, *args, **kwargs)


def stepped(optimizer, args, kwargs) -> None:
    global outer
    inner = getattr(optimizer, "adam", None)  # our Muon has an AdamW inside, which is not counted
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
sys.path[0] = str(Path(sys.argv[0]).resolve().parent)  # as if the program were started directly
runpy.run_path(sys.argv[0], run_name="__main__")
