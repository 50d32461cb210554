"""Where a program computes: what is picked on which machine, peaks, seeds, estimates."""

import ast
import subprocess
import sys
import warnings

import pytest
import torch

from bonsai import ROOT
from bonsai.system import runtime as runtime_module
from bonsai.system.errors import UserError
from bonsai.system.runtime import (
    PEAK_TFLOPS,
    Runtime,
    cpu_computes_bfloat16,
    leave_a_core,
    memory_in_use,
    peak_flops,
    peak_flops_by_name,
    pick_compile,
    pick_device,
    pick_dtype,
    seed_everything,
    setup,
)

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


@pytest.mark.parametrize("name, other", [("cpu", "cpu"), ("cuda:1", "cuda:1"), ("mps", "cpu")])
def test_sums_in_float64_are_kept_where_there_is_float64(name, other):
    runtime = Runtime(torch.device(name), "float32", False, "gloo", 0, 0, 1, "")
    assert runtime.float64_device == torch.device(other)


def test_what_a_compiler_says_of_a_softmax_is_left_out():
    """As torch 2.11 says it where MEGABYTE is compiled for a GPU; not other words."""
    softmax = "\nOnline softmax is disabled on the fly since Inductor decides to\nsplit the"
    with warnings.catch_warnings(record=True) as said:
        warnings.resetwarnings()
        warnings.simplefilter("ignore", ResourceWarning)  # of another test, collected now
        setup("cpu", "float32", True)
        warnings.warn(softmax, stacklevel=1)
        warnings.warn("another", stacklevel=1)
    assert [str(w.message) for w in said] == ["another"]


def test_devices():
    assert pick_device("cpu") == (CPU, "")
    auto, why = pick_device("auto")
    assert why and auto.type in ("cpu", "cuda", "mps")
    for name in ("gpu0", "meta", "xla", *([] if torch.cuda.is_available() else ["cuda", "cuda:3"])):
        with pytest.raises(UserError):
            pick_device(name)


@pytest.mark.parametrize("asked", ["auto", True])
@pytest.mark.parametrize(
    "capability, triton, compiler, header, said",
    [
        ((9, 0), True, True, True, ""),
        ((7, 5), True, True, True, ""),
        ((6, 1), True, True, True, "before Volta"),
        ((9, 0), False, True, True, "no triton"),
        ((9, 0), True, False, True, "no C compiler"),
        ((9, 0), True, True, False, "no Python.h"),
    ],
)
def test_without_a_compiler_all_is_done_uncompiled(
    monkeypatch, asked, capability, triton, compiler, header, said
):
    monkeypatch.setattr(runtime_module, "has_python_header", lambda: header)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(runtime_module, "find_spec", lambda name: triton or None)
    monkeypatch.setattr(runtime_module, "which", lambda name: "/usr/bin/cc" if compiler else None)
    compiled, why = pick_compile(asked, torch.device("cuda"))
    assert compiled == (not said) and said in why
    compiled, why = pick_compile(asked, torch.device("cpu"))  # which needs no triton
    can = compiler and header
    assert compiled == (asked is True and can) and (asked == "auto" or bool(why) != can)
    assert pick_compile(False, torch.device("cuda")) == (False, "")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere they come with Python")
@pytest.mark.parametrize("there", [True, False])
def test_where_pythons_headers_are(monkeypatch, tmp_path, there):
    if there:
        (tmp_path / "Python.h").touch()
    monkeypatch.setattr(runtime_module.sysconfig, "get_path", lambda *names: str(tmp_path))
    assert runtime_module.has_python_header() == there


def test_on_a_cpu_a_compiler_of_c_alone_is_none(monkeypatch):
    """As on a machine with gcc, but without g++: torch would fail at the first step."""
    monkeypatch.setattr(runtime_module, "has_python_header", lambda: True)
    monkeypatch.setattr(runtime_module, "which", lambda name: None if "++" in name else name)
    monkeypatch.setattr(runtime_module, "CXX", "g++")
    compiled, why = pick_compile(True, torch.device("cpu"))
    assert not compiled and "no C++ compiler g++" in why
    monkeypatch.setattr(runtime_module, "CXX", "/opt/bin/c")
    assert pick_compile(True, torch.device("cpu")) == (True, "")


def test_setup_says_what_was_picked():
    runtime = setup("cpu", "auto", "auto", "nccl")
    assert (runtime.compile, runtime.backend, runtime.world_size) == (False, "gloo", 1)
    assert runtime.master and "\n" not in runtime.summary
    assert "cpu" in runtime.summary and runtime.dtype in runtime.summary


def with_gpus(monkeypatch, capabilities, architectures=("sm_75", "sm_80", "sm_90a")) -> None:
    """As if there were GPUs called Card 0, Card 1 ..., and a torch built for some architectures."""
    for name, value in {
        "is_available": lambda: bool(capabilities),
        "device_count": lambda: len(capabilities),
        "get_device_name": lambda device: f"Card {device.index}",
        "get_device_capability": lambda device: capabilities[device.index],
        "get_arch_list": lambda: list(architectures),
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)


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


def test_a_gpu_that_another_process_has(monkeypatch):
    with_gpus(monkeypatch, [(9, 0)])

    def busy(device):
        raise RuntimeError("CUDA error: all CUDA-capable devices are busy\nCUDA kernel errors ...")

    monkeypatch.setattr(torch.cuda, "set_device", busy)
    with pytest.raises(UserError, match="cuda:0 cannot be used: CUDA error: all CUDA-capable"):
        setup("cuda", "float32", False)


@pytest.mark.parametrize(
    "device, dtype, summary",
    [
        ("cuda:0", "bfloat16", "device: cuda:0, dtype bfloat16, not compiled"),
        ("cuda:1", "float16", "device: cuda:1, dtype float16 (this GPU has no bfloat16), not c"),
    ],
)
def test_of_two_gpus_the_one_that_is_asked_for_decides(monkeypatch, device, dtype, summary):
    """torch says of the device that is set whether it has bfloat16."""
    with_gpus(monkeypatch, [(8, 0), (7, 5)])
    now = [torch.device("cuda", 0)]
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: now.append(device))
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation: now[-1].index == 0
    )
    for name in ("keep_kernels", "keep_compiled_graphs"):
        monkeypatch.setattr(runtime_module, name, lambda: None)
    runtime = setup(device, "auto", False)
    assert runtime.dtype == dtype and runtime.summary.startswith(summary)


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


def test_seeds_are_a_function_of_seed_and_position():
    def draw(*args):
        seed_everything(*args)
        return torch.rand(4)

    assert torch.equal(draw(1, 2, 3), draw(1, 2, 3))
    places = [(s, i, r) for s in range(3) for i in range(20) for r in range(4)]
    assert len({tuple(draw(*p).tolist()) for p in places}) == len(places)
    draw(2**70, 10**12, 0)  # any size will do


@pytest.mark.parametrize(
    "asked, cores, now, want", [(0, 8, 8, 7), (0, 1, 1, 1), (0, None, 1, 1), (3, 2, 2, 3)]
)
def test_a_server_leaves_a_core(monkeypatch, asked, cores, now, want):
    threads = [now]
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads[-1])
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    assert leave_a_core(asked) == want
    with pytest.raises(UserError, match="threads=-1"):
        leave_a_core(-1)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the two apart")
def test_peak_memory_is_that_of_this_process_alone():
    """Not of the process that started it, whose peak a child's getrusage begins with."""
    large = torch.ones(2**28)  # 1 GiB
    code = "import torch, bonsai.system.runtime as r; print(r.memory_in_use(torch.device('cpu')))"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert memory_in_use(torch.device("cpu")) >= large.nbytes > int(child.stdout) > 2**26


def test_launches_of_our_kernels_say_that_products_and_sums_are_fused():
    """Each one, whose default is another in newer releases of Triton."""
    launches = 0
    for path in (ROOT / "bonsai").rglob("*.py"):
        source = path.read_text(encoding="utf-8")
        if "import triton\n" not in source:
            continue
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Subscript):
                given = [ast.unparse(k.value) for k in node.keywords if k.arg is None]
                known = ("FUSED", "options", "launch_options(overlap)")
                assert any(name in known for name in given), f"{path}:{node.lineno}"
                launches += 1
    assert launches >= 10
