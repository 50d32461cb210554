"""Where and how a program computes: device, number format, compilation, processes.

`setup` turns the settings device, dtype, compile and backend (each may be 'auto') and torchrun's
environment into a `Runtime`, whose summary says in one line what was picked and why.
"""

import gc
import os
import platform
import re
import sys
import sysconfig
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from shutil import which

import torch
import torch.distributed as dist

from bonsai.system.caches import keep_compiled_graphs, keep_kernels
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

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# For each launch of our Triton kernels: compile a product and a sum to one instruction. Triton 3.9
# warns of launches that do not say so, because later releases will make two instructions of them
FUSED = {"enable_fp_fusion": True}

# Dense peak TFLOP/s by device name, most specific first: (name, half precision, float32 as torch
# runs it with TF32 allowed). From the vendors' data sheets, without sparsity, with accumulation in
# fp32, for which some consumer cards have half the rate.
PEAK_TFLOPS = [
    ("V100", 125.0, 15.7),
    ("T4", 65.0, 8.1),
    ("A100", 312.0, 156.0),
    ("A6000", 154.8, 77.4),
    ("L40S", 362.0, 183.0),
    ("L4", 121.0, 60.5),
    ("3090", 71.0, 35.6),
    ("4090", 165.2, 82.6),
    ("5090", 209.5, 104.8),
    ("H100 PCIe", 756.0, 378.0),
    ("H100 NVL", 835.0, 417.5),
    ("H100", 989.4, 494.7),
    ("H200", 989.4, 494.7),
    ("B200", 2250.0, 1125.0),
    ("MI300X", 1307.4, 653.7),
]
PARTS = {"MIG", "Laptop"}  # names with these are of a part of the GPU, or of a smaller one


@dataclass
class Runtime:
    device: torch.device
    dtype: str  # a key of DTYPES, in which matrix products are computed; weights stay float32
    compile: bool
    backend: str
    rank: int
    local_rank: int
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
    agent = PARENT if "TORCHELASTIC_RUN_ID" in os.environ else 0
    summary += f", {world_size} processes ({backend})" if distributed else ""
    runtime = Runtime(dev, dtype, compile, backend, rank, local_rank, world_size, summary, agent)
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


def pick_compile(compile: bool | str, device: torch.device) -> tuple[bool, str]:
    """Whether models are compiled and, if that was asked for but is not possible, why. It is not an
    error, as the same work can be done without, only slower."""
    if compile == "auto":
        compile = device.type == "cuda"
    missing = ""
    if compile and device.type == "cuda":
        if torch.cuda.get_device_capability(device) < (7, 0):
            missing = "a GPU before Volta cannot run what it makes"
        elif find_spec("triton") is None:
            missing = "there is no triton"
    if compile and not missing and device.type == "cpu" and not which(CXX):
        missing = f"there is no C++ compiler {CXX}: install one, or name one in CXX"
    elif compile and not missing and not any(map(which, C_COMPILERS)):
        missing = "there is no C compiler: install gcc, or name one in CC"
    elif compile and not missing and not has_python_header():
        missing = "there is no Python.h: install the headers of Python, in Debian python3-dev"
    return bool(compile) and not missing, f" ({missing})" if missing else ""


# compilers: the one that torch.compile runs for a CPU, and those that it and triton look for
CXX = os.environ.get("CXX", {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++"))
C_COMPILERS = [*map(os.environ.get, ("CC", "CXX"), ("", "")), "gcc", "g++", "cc", "clang", "cl"]


def has_python_header() -> bool:
    """Whether the C headers of this Python are installed, which compiled extensions include; many
    systems have them in a separate package."""
    if os.name != "posix" or sys.platform == "darwin":  # there they come with Python
        return True
    return Path(sysconfig.get_path("include", "posix_prefix"), "Python.h").exists()


@contextmanager
def loading_compiler(runtime: Runtime) -> Iterator[None]:
    """A context beside which a thread imports torch.compile's modules, which takes some seconds.
    At its end it waits for the thread. Does nothing if nothing will be compiled."""

    def load() -> None:
        with suppress(ImportError):  # a torch with other modules imports them when it compiles
            import torch._dynamo
            import torch._inductor.compile_fx  # noqa: F401

    thread = threading.Thread(target=load, name="loading the compiler")
    if runtime.compile:
        thread.start()
    try:
        yield
    finally:
        if runtime.compile:
            thread.join()


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
    torch.set_num_threads(
        threads or max(1, min(torch.get_num_threads(), (os.cpu_count() or 2) - 1))
    )
    return torch.get_num_threads()


def pick_device(device: str, local_rank: int = 0) -> tuple[torch.device, str]:
    """The torch device for a setting, and why it was picked ('' if it was given)."""
    why = ""
    gpus, none = (0, "") if device == "cpu" else count_gpus()
    if device == "auto":
        device, why = "cpu", f" (no GPU found{none})"
        if gpus:
            device, why = "cuda", "the first, or that of this process"
        elif torch.backends.mps.is_available():
            device, why = "mps", " (Apple GPU)"
    try:
        dev = torch.device(device)
    except RuntimeError:
        raise UserError(f"device={device} is unknown: use auto, cpu, cuda, cuda:1 or mps") from None
    if dev.type == "cuda":
        if not gpus:
            raise UserError(
                f"device={dev}, but no CUDA GPU is usable here{none}: use --device=cpu or auto"
            )
        index, by = dev.index, ""
        if index is None:
            index, by = local_rank, f" (of LOCAL_RANK={local_rank} in the environment)"
        if index >= gpus:
            own = "; if each process sees one of its own: --device=cuda:0"
            own = own if by and gpus == 1 else ""
            raise UserError(
                f"device cuda:{index}{by} does not exist: this machine has {gpus} CUDA GPU(s){own}"
            )
        dev = torch.device("cuda", index)
        if not_for := not_built_for(dev):
            if not why:
                raise UserError(f"{dev}: {not_for}: install another torch, or use --device=cpu")
            return torch.device("cpu"), f" ({not_for})"
        why = why and f" ({torch.cuda.get_device_name(dev)})"
    elif dev.type == "mps" and not torch.backends.mps.is_available():
        raise UserError("device=mps, but this machine has no Apple GPU: use --device=cpu or auto")
    elif dev.type not in ("cpu", "mps"):
        raise UserError(f"device={device} is not supported: use auto, cpu, cuda or mps")
    return dev, why


def count_gpus() -> tuple[int, str]:
    """How many CUDA GPUs torch can use and, if there are none, what torch says about it, such as
    that the driver is too old. It says that in a warning of several lines."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("ignore")  # a file that is collected just now, say
        warnings.simplefilter("always", UserWarning)
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count or not said:
        return count, ""
    text = str(said[-1].message).split("(Triggered internally")[0]
    text = text.removeprefix("CUDA initialization: ").strip()
    error = re.search(r"Error \d+: .*", text)
    return 0, f": {error[0] if error else text.split('. ')[0]:.200}"


def not_built_for(device: torch.device) -> str:
    """Why no kernel of this torch runs on a CUDA GPU; '': they do, or it is AMD's.

    Code compiled for a GPU (sm_80) also runs on later ones of the same generation; code that is
    compiled on the spot (compute_80) runs on all later ones.
    """
    built = re.findall(r"\b(sm|compute)_(\d+)", " ".join(torch.cuda.get_arch_list()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says the same in several lines
        major, minor = torch.cuda.get_device_capability(device)
    for kind, number in built:
        generation, step = divmod(int(number), 10)
        if (generation, step) <= (major, minor) and (kind == "compute" or generation == major):
            return ""
    if not built:
        return ""
    name = torch.cuda.get_device_name(device)
    return f"torch {torch.__version__} was not built for {name}, compute capability {major}.{minor}"


def pick_dtype(dtype: str, device: torch.device) -> tuple[str, str]:
    """The number format for a setting on a device, and why that one, if it was not given."""
    if dtype not in (*DTYPES, "auto"):
        raise UserError(f"dtype={dtype} is not one of auto, {', '.join(DTYPES)}")
    if dtype == "float16" and device.type != "cuda":
        return "float32", " (float16 trains on CUDA only)"
    if dtype != "auto":
        return dtype, ""
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bfloat16", ""
        return "float16", " (this GPU has no bfloat16)"
    if device.type == "cpu" and cpu_computes_bfloat16():
        return "bfloat16", " (this CPU computes in it)"
    return "float32", ""


def cpu_computes_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 matrices in hardware (AVX512-BF16 or AMX)."""
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, bool)() for name in checks)


def device_name(device: torch.device) -> str:
    """The hardware's own name, for the head of logs and tables."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "mps":
        return "Apple GPU"
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as f:
            names = [line.split(":", 1)[1].strip() for line in f if line.startswith("model name")]
        return f"{names[0]}, {os.cpu_count()} cores"
    except (OSError, IndexError):
        return f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def peak_flops(device: torch.device, dtype: str) -> float | None:
    """Dense peak FLOP/s of a device in `dtype`; None if it is not in the table."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return peak_flops_by_name(name, dtype)


def peak_flops_by_name(name: str, dtype: str) -> float | None:
    """As peak_flops, from the name that the driver gives.

    >>> peak_flops_by_name("NVIDIA H100 80GB HBM3", "bfloat16")
    989400000000000.0
    """
    words = name.replace("-", " ").split()
    if not PARTS.isdisjoint(words):
        return None
    for key, half, single in PEAK_TFLOPS:
        if all(word in words for word in key.split()):  # whole words: an L40 is no L4
            return (single if dtype == "float32" else half) * 1e12
    return None


def memory_in_use(device: torch.device) -> int | None:
    """Peak bytes of memory so far: of the GPU's allocator or, on a CPU, of this process. None if
    the system does not say."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type == "mps":
        return torch.mps.driver_allocated_memory()
    with suppress(OSError, IndexError):  # on Linux getrusage's number includes the parent's peak
        status = Path("/proc/self/status").read_text()
        return 1024 * int(status.split("VmHWM:")[1].split()[0])
    try:
        import resource
    except ImportError:  # on Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else peak * 1024


def seed_everything(seed: int, *position: int) -> None:
    """Seed torch by a pure function of the seed and a position such as (step, rank).

    Called before every step with that step's number. So dropout draws after a resume what it would
    have drawn anyway, and an evaluation or a sample in between changes nothing.
    """
    for p in position:
        seed = splitmix(seed, p)
    torch.manual_seed(signed(seed))
