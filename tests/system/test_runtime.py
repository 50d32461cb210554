"""Where a program computes: what setup says it picked, seeds, threads."""

import warnings

import pytest
import torch
from helpers.gpus import with_gpus

from bonsai.system import runtime as runtime_module
from bonsai.system.errors import UserError
from bonsai.system.runtime import Runtime, leave_a_core, seed_everything, setup

CPU = torch.device("cpu")


@pytest.mark.parametrize("name, other", [("cpu", "cpu"), ("cuda:1", "cuda:1"), ("mps", "cpu")])
def test_sums_in_float64_are_kept_where_there_is_float64(name, other):
    runtime = Runtime(torch.device(name), "float32", False, "gloo", 0, 1, "")
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


def test_setup_says_what_was_picked():
    runtime = setup("cpu", "auto", "auto", "nccl")
    assert (runtime.compile, runtime.backend, runtime.world_size) == (False, "gloo", 1)
    assert runtime.master and "\n" not in runtime.summary
    assert "cpu" in runtime.summary and runtime.dtype in runtime.summary


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


def test_seeds_are_a_function_of_seed_and_position():
    def draw(*args):
        seed_everything(*args)
        return torch.rand(4)

    assert torch.equal(draw(1, 2, 3), draw(1, 2, 3))
    places = [(s, i, r) for s in range(3) for i in range(20) for r in range(4)]
    assert len({tuple(draw(*p).tolist()) for p in places}) == len(places)
    draw(2**70, 10**12, 0)  # any size will do


@pytest.mark.parametrize(
    "cores, given, want", [(2, {}, 2), (8, {}, 4), (2, {"OMP_NUM_THREADS": "4"}, 4)]
)
def test_torch_takes_no_more_threads_than_a_container_may_use(monkeypatch, cores, given, want):
    """Of four that it would take; a number in the environment stays."""
    threads = [4]
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(runtime_module, "allowed_cores", lambda: cores)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads[-1])
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    setup("cpu")
    assert threads[-1] == want


@pytest.mark.parametrize("asked, cores, now, want", [(0, 8, 8, 7), (0, 1, 1, 1), (3, 2, 2, 3)])
def test_a_server_leaves_a_core(monkeypatch, asked, cores, now, want):
    threads = [now]
    monkeypatch.setattr(runtime_module, "allowed_cores", lambda: cores)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads[-1])
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    assert leave_a_core(asked) == want
    with pytest.raises(UserError, match="threads=-1"):
        leave_a_core(-1)
