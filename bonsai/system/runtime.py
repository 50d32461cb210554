"""Where and how a program computes: device, number format, compilation, processes.

`setup` turns the settings device, dtype, compile and backend (each may be 'auto') and torchrun's
environment into a `Runtime`, whose summary says in one line what was picked and why.
"""

import gc
import os
import threading
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from importlib import import_module

import torch
import torch.distributed as dist

from bonsai.system import threads
from bonsai.system.caches import keep_compiled_graphs, keep_kernels
from bonsai.system.compiler import pick_compile
from bonsai.system.cores import allowed_cores
from bonsai.system.devices import DTYPES, pick_device, pick_dtype
from bonsai.system.errors import PARENT, UserError, one_line
from bonsai.system.hashing import signed, splitmix
from bonsai.system.processes import (
    check_agreement,
    end_with_torchrun,
    first_to_say,
    meeting,
    processes,
    restarts,
    why_lost,
)


@dataclass
class Runtime:
    device: torch.device
    dtype: str  # a key of DTYPES, in which matrix products are computed; weights stay float32
    compile: bool
    backend: str
    rank: int
    world_size: int
    summary: str  # what was picked and why, one line
    agent: int = 0  # id of the torchrun process that started this one; 0: none
    # set when the program itself watches for the end of torchrun; until then a thread does
    notices: threading.Event = field(default_factory=threading.Event)
    # for messages between processes that no GPU has to carry; None: there is one process
    host_group: dist.ProcessGroup | None = None
    restarts: int = 0  # how often torchrun has started the processes anew

    @property
    def master(self) -> bool:
        """Whether this process prints and saves."""
        return self.rank == 0

    @property
    def captures(self) -> bool:
        """Whether steps of the engine are captured as graphs: on CUDA, unless it compiles them."""
        return self.device.type == "cuda" and not self.compile

    @property
    def float64_device(self) -> torch.device:
        """The device for sums in float64: this one, unless it is Apple's GPU, which has none."""
        return torch.device("cpu") if self.device.type == "mps" else self.device

    def autocast(self):
        """A context in which matrix products are computed in `dtype`."""
        if self.dtype == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=DTYPES[self.dtype])

    def synchronize(self) -> None:
        """Wait until the device has done what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum over all processes, in place."""
        if self.world_size > 1:
            dist.all_reduce(tensor)
        return tensor

    def barrier(self) -> None:
        """Wait for all processes. What the GPUs were given is not waited for."""
        if self.host_group is not None:
            dist.barrier(self.host_group)

    def check_agreement(self, about: Callable[[], dict]) -> None:
        """Raise UserError unless all processes are about to do the same: see processes.py."""
        check_agreement(self.host_group, about)

    def close(self, failed: bool = False) -> None:
        """Leave the process group. Nothing may keep a reference to it, because its threads end with
        it: one that frees a tensor while Python ends would abort the process, after a whole run.

        failed: this process ends by an error. NCCL would then wait for the other processes, which
        may be waiting for this one; so its part of the group is left as it is.
        """
        self.notices.set()
        if not dist.is_initialized():
            return
        gc.collect()  # DistributedDataParallel refers to itself, and to the group
        if not failed or self.backend != "nccl":
            dist.destroy_process_group()
        elif self.host_group is not None:
            dist.destroy_process_group(self.host_group)

    def __enter__(self) -> "Runtime":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        """Leave the process group, all processes at once: torchrun and Slurm end those that are
        left when the first one ends by a signal, and the master may still be saving.

        An error that all processes have is said by one of them; one in which this process has lost
        the others is a line.
        """
        if error is None:
            try:
                self.barrier()
            except RuntimeError as e:
                error = e
        said = error if kind is None else None  # None: what is on its way
        if self.world_size > 1 and isinstance(error, Exception):
            said = self._in_a_line(error) or said
        self.close(failed=error is not None)
        if said is not None:
            raise said from None

    def _in_a_line(self, error: Exception) -> UserError | None:
        """What to say of an error of this process; None: its traceback."""
        if reason := why_lost(error):
            said = UserError(
                f"the connection to the other processes broke ({reason}): probably one of them has "
                "ended or was killed; see what it, torchrun or the cluster says"
            )
            said.follows, said.quiet = True, not first_to_say("the connection broke")
            return said
        said = error if isinstance(error, UserError) else None
        text = f"{type(error).__name__}: {error}"
        if not first_to_say(text):
            said = said or UserError(text)
            said.quiet = True
        return said


def setup(
    device: str = "auto", dtype: str = "auto", compile: bool | str = "auto", backend: str = "auto"
) -> Runtime:
    """Choose what is 'auto', check the rest against this machine, join the process group if any.

    Under torchrun (RANK, LOCAL_RANK, WORLD_SIZE) each process takes cuda:LOCAL_RANK, unless
    `device` names another one. Raises UserError for what this machine does not have.
    """
    rank, local_rank, world_size, distributed = processes()
    use_allowed_cores()
    dev, why_device = pick_device(device, local_rank)
    if dev.type == "cuda":  # first, because some questions to torch are about the current device
        try:
            torch.cuda.set_device(dev)
        except RuntimeError as e:  # say another process has it for itself
            raise UserError(f"{dev} cannot be used: {one_line(e):.200}") from None
    dtype, why_dtype = pick_dtype(dtype, dev)
    compile, why_not = pick_compile(compile, dev)
    if backend == "auto":
        backend = "nccl" if dev.type == "cuda" else "gloo"
    if backend == "nccl" and dev.type != "cuda":
        backend = "gloo"  # a config with nanoGPT's default, on a CPU, for which there is no nccl
    if dev.type == "cuda":
        keep_kernels()
    if compile or dev.type == "cuda":  # on CUDA some kernels are always compiled
        keep_compiled_graphs()
    if compile:
        # torch 2.11 asks in five lines to be told of a softmax that is not made in one pass: of the
        # few numbers of a patch of bytes, for one
        warnings.filterwarnings("ignore", r"\s*Online softmax is disabled", UserWarning)
    # some releases advise new names, which their compilers fail to read
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
    summary = f"device: {dev}{why_device}, dtype {dtype}{why_dtype}, "
    summary += "compiled" if compile else f"not compiled{why_not}"
    summary += f", {threads.SAID}" if threads.sleeping and dev.type == "cpu" else ""
    agent = PARENT if "TORCHELASTIC_RUN_ID" in os.environ else 0
    summary += f", {world_size} processes ({backend})" if distributed else ""
    runtime = Runtime(dev, dtype, compile, backend, rank, world_size, summary, agent)
    runtime.restarts = restarts()
    if distributed:
        if agent:
            name, parts = "watching torchrun", (agent, runtime.notices)
            threading.Thread(target=end_with_torchrun, args=parts, name=name, daemon=True).start()
        # If torch imports this later, it makes the group the default of its functions, and keeps it
        import_module("torch.distributed.nn")
        with meeting():
            dist.init_process_group(backend)
            if world_size > 1:
                runtime.host_group = dist.new_group(backend="gloo")
    return runtime


def setup_inference(
    device: str = "auto", dtype: str = "auto", compile: bool | str = "auto", quantize: str = ""
) -> Runtime:
    """As setup, for programs that write text one token at a time, and are one process.

    On a CPU the dtype 'auto' means float32, in which a text does not depend on what is drawn beside
    it. With quantized weights, which give that up anyway, it means bfloat16 if that is fast.
    """
    _, local_rank, world_size, _ = processes()
    if world_size > 1:
        error = UserError("this program is one process: start it without torchrun")
        error.quiet = local_rank > 0
        raise error
    if dtype == "auto" and not quantize and pick_device(device)[0].type == "cpu":
        dtype = "float32"
    return setup(device, dtype, compile)


def leave_a_core(threads: int) -> int:
    """Let torch compute with this many threads on the CPU; 0: one fewer than there are cores.

    A server shares the machine with its own event loop, and often with its clients. Threads that
    wait for one another lose more to a core that is busy than one thread fewer costs.
    """
    if threads < 0:
        raise UserError(f"threads={threads} must be at least 0 (0 leaves one core free)")
    torch.set_num_threads(threads or max(1, min(torch.get_num_threads(), allowed_cores() - 1)))
    return torch.get_num_threads()


def use_allowed_cores() -> None:
    """Let torch compute with no more threads than this process may use cores, unless the
    environment says how many. Of itself torch counts those that the process is bound to, but not
    the limit of a container."""
    if os.environ.keys().isdisjoint(("OMP_NUM_THREADS", "MKL_NUM_THREADS")):
        allowed = allowed_cores()
        if allowed < torch.get_num_threads():
            torch.set_num_threads(allowed)


def seed_everything(seed: int, *position: int) -> None:
    """Seed torch by a pure function of the seed and a position such as (step, rank).

    Called before every step with that step's number. So dropout draws after a resume what it would
    have drawn anyway, and an evaluation or a sample in between changes nothing.
    """
    for p in position:
        seed = splitmix(seed, p)
    torch.manual_seed(signed(seed))
