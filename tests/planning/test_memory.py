"""bonsai/planning/memory.py: the estimate grows with what needs memory; its end is told."""

from dataclasses import fields

import pytest
import torch

from bonsai.planning import recipe
from bonsai.planning.costs import meta_model
from bonsai.planning.memory import (
    GIB,
    LOWER,
    describe_memory,
    memory_errors,
    out_of_memory,
    training_bytes,
)
from bonsai.system.errors import UserError
from bonsai.system.runtime import setup
from model import GPT, GPTConfig


def test_the_memory_estimate_grows_with_what_needs_memory():
    def need(batch=4, dtype="float32", **fields):
        shape = dict(block_size=64, vocab_size=50, n_layer=4, n_head=2, n_embd=32)
        model = GPT(GPTConfig(**{**shape, **fields}))
        return training_bytes(model, batch, 64, dtype)

    state, activations = need()
    assert state == 16 * sum(
        p.numel() for p in GPT(GPTConfig(64, 50, 4, 2, 32, 0.0, True)).parameters()
    )
    assert need(batch=8) == (state, 2 * activations)
    assert need(dtype="bfloat16")[1] < activations
    assert need(activation_checkpointing=True)[1] < activations
    assert need(n_layer=8)[0] > state
    half = dict(dtype="bfloat16", bfloat16_stream=True)
    less = need(dtype="bfloat16")[1] - need(**half)[1]
    assert less == 4 * 64 * 4 * 32 * 4  # rows, tokens, layers, channels; 2 numbers of 2 bytes
    assert need(bfloat16_stream=True)[1] == activations  # float32


FIELDS = {f.name for f in fields(GPTConfig)}
FAST = {k: v for k, v in vars(recipe).items() if k in FIELDS} | {"n_head": 6}


@pytest.mark.parametrize("shape, measured", [({}, 15.1), (FAST, 21.9)])
def test_the_estimate_is_near_what_was_measured(shape, measured, monkeypatch):
    """In GiB, of GPT-2 (124M) and the fast recipe, both with a stream in float32, on an H200:
    docs/BENCHMARKS.md."""
    monkeypatch.setattr("bonsai.planning.memory.has_kernel", lambda device: True)
    model = meta_model("gpt", {"bias": False, **shape})
    assert sum(training_bytes(model, 32, 1024, "bfloat16")) == pytest.approx(
        measured * GIB, rel=0.03
    )


def test_not_all_logits_are_in_memory():
    model = GPT(GPTConfig(block_size=64, vocab_size=50304, n_layer=1, n_head=1, n_embd=2))
    _, some = training_bytes(model, 64, 64, "float32", "cpu", False)
    assert some < 64 * 64 * 50304 * 4


@pytest.mark.parametrize("dtype, bytes_each", [("bfloat16", 2), ("float16", 2), ("float32", 8)])
def test_by_a_kernel_logits_are_there_once(dtype, bytes_each, monkeypatch):
    """In 16 bits; without it, and in float32, so is their gradient."""
    monkeypatch.setattr("bonsai.planning.memory.has_kernel", lambda device: True)
    few, many = (
        training_bytes(GPT(GPTConfig(64, V, 1, 1, 2, tie_head=True)), 8, 64, dtype)[1]
        for V in (100, 50100)
    )
    assert many - few == 8 * 64 * 50000 * bytes_each


def test_the_estimate_warns_and_says_what_to_lower():
    model = GPT(GPTConfig(block_size=64, vocab_size=50, n_layer=1, n_head=2, n_embd=32))
    runtime = setup("cpu", "float32", False)
    assert "may not fit" not in describe_memory(model, 1, 64, runtime)
    assert LOWER in describe_memory(model, 10**9, 64, runtime)


def test_which_exceptions_mean_out_of_memory():
    assert out_of_memory(MemoryError())
    assert out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(RuntimeError) as e:
        torch.empty(2**50, dtype=torch.float64)
    assert out_of_memory(e.value)
    assert not out_of_memory(RuntimeError("shapes do not match"))


def test_a_program_says_what_was_too_large():
    with (
        pytest.raises(UserError, match=r"^out of memory with 3 rows$"),
        memory_errors(lambda: " with 3 rows"),
    ):
        raise MemoryError
    with pytest.raises(RuntimeError, match="shapes"), memory_errors(lambda: ""):
        raise RuntimeError("shapes do not match")
