"""The device and number format that a program computes with, and what is known of the device."""

import platform
import re
import warnings
from contextlib import suppress
from pathlib import Path

import torch

from bonsai.system.cores import cores_in_words
from bonsai.system.errors import UserError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

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
        return f"{names[0]}, {cores_in_words()}"
    except (OSError, IndexError):
        return f"{platform.processor() or platform.machine()}, {cores_in_words()}"


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
