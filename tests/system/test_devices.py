"""bonsai/system/devices.py: what is picked on which machine, why, peaks, memory."""

import subprocess
import sys
import warnings

import pytest
import torch
from helpers.gpus import with_gpus

from bonsai.system.devices import (
    PEAK_TFLOPS,
    cpu_computes_bfloat16,
    memory_in_use,
    peak_flops,
    peak_flops_by_name,
    pick_device,
    pick_dtype,
)
from bonsai.system.errors import UserError

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    "name, tera",
    [
        ("Tesla V100-SXM2-16GB", 125),
        ("Tesla T4", 65),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA RTX A6000", 154.8),
        ("NVIDIA L4", 121),
        ("NVIDIA L40S", 362),
        ("NVIDIA GeForce RTX 3090", 71),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("NVIDIA GeForce RTX 5090", 209.5),
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H200", 989.4),
        ("NVIDIA B200", 2250),
        ("AMD Instinct MI300X", 1307.4),
        ("NVIDIA L40", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA A100-SXM4-40GB MIG 3g.20gb", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA GeForce GTX 1080 Ti", None),
    ],
)
def test_peaks(name, tera):
    half = peak_flops_by_name(name, "bfloat16")
    assert half == (pytest.approx(tera * 1e12) if tera else None)
    assert peak_flops_by_name(name, "float16") == half
    if tera:
        assert peak_flops_by_name(name, "float32") < half


def test_the_table_finds_each_of_its_own_names():
    for key, half, _ in PEAK_TFLOPS:
        assert peak_flops_by_name(f"NVIDIA {key}", "bfloat16") == half * 1e12
    assert peak_flops(CPU, "float32") is None


def test_dtype_by_device():
    cuda, mps = torch.device("cuda"), torch.device("mps")
    assert pick_dtype("bfloat16", CPU)[0] == "bfloat16"
    assert pick_dtype("float16", CPU)[0] == "float32" and "CUDA" in pick_dtype("float16", CPU)[1]
    assert pick_dtype("float16", mps)[0] == "float32"  # no GradScaler there
    assert pick_dtype("float16", cuda)[0] == "float16"
    assert pick_dtype("auto", CPU)[0] == ("bfloat16" if cpu_computes_bfloat16() else "float32")
    assert pick_dtype("auto", mps)[0] == "float32"
    with pytest.raises(UserError, match="float8"):
        pick_dtype("float8", CPU)


def test_devices():
    assert pick_device("cpu") == (CPU, "")
    auto, why = pick_device("auto")
    assert why and auto.type in ("cpu", "cuda", "mps")
    for name in ("gpu0", "meta", "xla", *([] if torch.cuda.is_available() else ["cuda", "cuda:3"])):
        with pytest.raises(UserError):
            pick_device(name)


@pytest.mark.parametrize(
    "warning, said",
    [
        ("", ""),
        (
            "CUDA initialization: The NVIDIA driver on your system is too old (found version "
            "11040). Please update your GPU driver by downloading and installing a new version "
            "from the URL: http://www.nvidia.com/Download/index.aspx (Triggered internally at "
            "/pytorch/c10/cuda/CUDAFunctions.cpp:109.)",
            ": The NVIDIA driver on your system is too old (found version 11040)",
        ),
        (
            "CUDA initialization: Unexpected error from cudaGetDeviceCount(). Did you run some "
            "cuda functions before calling NumCudaDevices() that might have already set an error? "
            "Error 804: forward compatibility was attempted on non supported HW (Triggered "
            "internally at /pytorch/c10/cuda/CUDAFunctions.cpp:109.)",
            ": Error 804: forward compatibility was attempted on non supported HW",
        ),
    ],
)
def test_why_there_is_no_gpu_is_said_in_the_line(monkeypatch, recwarn, warning, said):
    """Where torch warns, say of an old driver; and the CPU is taken, or what was asked for is an
    error. What the garbage collector says just then is no reason."""

    def is_available() -> bool:
        if warning:
            warnings.warn(warning, stacklevel=2)
        warnings.warn("unclosed file", ResourceWarning, stacklevel=2)
        return False

    monkeypatch.setattr(torch.cuda, "is_available", is_available)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert pick_device("auto") == (CPU, f" (no GPU found{said})")
    assert pick_device("cpu") == (CPU, "")
    with pytest.raises(UserError) as e:
        pick_device("cuda:1")
    assert str(e.value) == (
        f"device=cuda:1, but no CUDA GPU is usable here{said}: use --device=cpu or auto"
    )
    assert not [w for w in recwarn if w.category is not ResourceWarning]


@pytest.mark.parametrize(
    "capability, architectures, usable",
    [
        ((7, 0), ("sm_75", "sm_80", "sm_90", "compute_120"), False),
        ((6, 1), ("sm_70", "sm_120a"), False),
        ((7, 0), ("sm_70", "sm_75"), True),
        ((7, 5), ("sm_75", "sm_80"), True),
        ((8, 9), ("sm_75", "sm_86", "sm_90"), True),
        ((12, 1), ("sm_75", "sm_120"), True),
        ((12, 0), ("sm_75", "sm_90a"), False),  # too new for a torch of CUDA 12.6
        ((12, 0), ("sm_75", "sm_90", "compute_90"), True),
        ((7, 0), ("sm_75", "compute_75"), False),
        ((9, 4), ("gfx90a", "gfx942"), True),  # AMD's
        ((7, 0), (), True),  # not known
    ],
)
def test_a_gpu_that_torch_was_not_built_for(monkeypatch, capability, architectures, usable):
    """Its first kernel would end in a traceback."""
    with_gpus(monkeypatch, [(9, 0), capability], architectures)
    if usable:
        assert pick_device("auto", 1) == (torch.device("cuda", 1), " (Card 1)")
        assert pick_device("cuda:1") == (torch.device("cuda", 1), "")
        return
    says = f"torch {torch.__version__} was not built for Card 1, compute capability "
    says += f"{capability[0]}.{capability[1]}"
    assert pick_device("auto", 1) == (CPU, f" ({says})")
    with pytest.raises(UserError) as e:
        pick_device("cuda:1")
    assert str(e.value) == f"cuda:1: {says}: install another torch, or use --device=cpu"


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_more_processes_than_gpus(monkeypatch, device):
    """Or a LOCAL_RANK that a job has left: one line says which, for 'auto', too."""
    with_gpus(monkeypatch, [(9, 0), (9, 0)])
    why = " (Card 1)" if device == "auto" else ""
    assert pick_device(device, 1) == (torch.device("cuda", 1), why)
    with pytest.raises(UserError, match=r"cuda:2 \(of LOCAL_RANK=2 .*\) does not exist: .* 2 CUDA"):
        pick_device(device, 2)
    with pytest.raises(UserError, match=r"device cuda:3 does not exist: .* 2 CUDA GPU\(s\)$"):
        pick_device("cuda:3", 1)
    with_gpus(monkeypatch, [(9, 0)])  # as Slurm's --gpus-per-task=1 lets each process see
    with pytest.raises(UserError, match=r"cuda:1 .* sees one of its own: --device=cuda:0"):
        pick_device(device, 1)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the two apart")
def test_peak_memory_is_that_of_this_process_alone():
    """Not of the process that started it, whose peak a child's getrusage begins with."""
    large = torch.ones(2**28)  # 1 GiB
    code = "import torch, bonsai.system.devices as d; print(d.memory_in_use(torch.device('cpu')))"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert memory_in_use(torch.device("cpu")) >= large.nbytes > int(child.stdout) > 2**26
