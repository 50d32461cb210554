"""All blocks of a one-token step in one call (block.cpp), products of few rows (linear.cpp), and
the memory of their weights, against the model and torch."""

import mmap

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bonsai.engine import SamplingParams, block, generate, memory, prepare, weights
from bonsai.engine.memory import PAGE, LargePages
from bonsai.models import build_model

own_kernel = pytest.mark.skipif(not block.kernels(), reason="no C++ compiler")
T = 40
CHOICES = {
    "GPT-2": {},
    "fast": dict(
        bias=False,
        position="rope",
        norm="rmsnorm",
        norm_gain=False,
        qk_norm=True,
        activation="relu2",
    ),
    "windows": dict(attention_window=9, window_pattern="LD", n_kv_head=2, activation="swiglu"),
    "one key head": dict(
        n_head=2, n_kv_head=1, qk_norm=True, activation="gelu_tanh", norm="rmsnorm"
    ),
    "relu": dict(activation="relu", position="sinusoidal", head_size=80, norm_embedding=True),
    "lambdas": dict(residual_lambdas=True, attention_scale=0.2, logit_softcap=5.0),
}


def make(**choices):
    torch.manual_seed(0)
    sizes = dict(n_layer=3, n_head=4, n_embd=256, block_size=64, vocab_size=101)
    model = build_model("gpt", {**sizes, **choices}).eval()
    with torch.no_grad():
        for p in model.parameters():  # none is 0 or 1
            p.add_(0.05 * torch.randn_like(p))
    return model


@pytest.fixture
def calls(monkeypatch) -> list:
    """The dtypes of calls of block.cpp, in turn, by models prepared from here on."""
    seen, found = [], block.kernels()

    def spy(dtype):
        return lambda *arguments: (seen.append(dtype), found[dtype](*arguments))

    monkeypatch.setattr(block, "kernels", lambda: {dtype: spy(dtype) for dtype in found})
    return seen


@torch.no_grad()
def one_by_one(model, ids, dtype):
    """Logits (T, V) of ids (1, T), each token by a step of its own."""
    cache = model.new_cache(1, dtype=dtype)
    steps = [model(ids[:, t : t + 1], cache=cache)[0][0, 0] for t in range(ids.size(1))]
    return torch.stack(steps)


@own_kernel
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("quantize", ["", "int8"])
@pytest.mark.parametrize("choice", CHOICES)
def test_a_step_of_all_blocks_is_that_of_the_model(choice, quantize, dtype, calls):
    model = make(**CHOICES[choice])
    ids = torch.randint(101, (1, T))
    prepared = prepare(model, dtype, quantize)
    got = one_by_one(prepared, ids, dtype)
    assert len(calls) == T * (3 if choice == "lambdas" else 1) and {*calls} == {dtype}
    with torch.no_grad():
        want = (prepared if quantize else model)(ids, ids)[0][0]  # by other kernels
    error = 0.08 if dtype == torch.bfloat16 else 2e-3 if quantize else 2e-5
    assert (got - want).abs().max() < error < want.std() / 5


@own_kernel
def test_the_number_of_threads_changes_nothing(calls):
    prepared, ids = prepare(make(), torch.float32, "int8"), torch.randint(101, (1, 8))
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(one_by_one(prepared, ids, torch.float32))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


@own_kernel
def test_what_is_no_number_stays_none():
    """A broken activation must not look like an answer."""
    for quantize in ("", "int8"):
        prepared = prepare(make(), torch.float32, quantize)
        prepared.transformer.wte.weight.data[7, 3] = float("nan")
        logits = one_by_one(prepared, torch.tensor([[7]]), torch.float32)
        assert logits.isnan().all()


@own_kernel
@pytest.mark.parametrize(
    "choices",
    [dict(norm_placement="post"), dict(value_embeddings=True), dict(n_head=32)],
    ids=["post", "values", "narrow heads"],
)
def test_other_blocks_are_left_as_they_are(choices, calls):
    model, ids = make(**choices), torch.randint(101, (1, T))
    prepared = prepare(model, torch.float32)
    assert not any(isinstance(m, block.Blocks) for m in prepared.modules())
    with torch.no_grad():
        want = model(ids, ids)[0][0]
    assert (one_by_one(prepared, ids, torch.float32) - want).abs().max() < 2e-5 and not calls


@own_kernel
def test_several_tokens_and_several_texts_go_block_by_block(calls):
    model, ids = make(), torch.randint(101, (2, T))
    prepared = prepare(model, torch.float32)
    cache = prepared.new_cache(2)
    with torch.no_grad():
        first = prepared(ids[:, :-1], ids[:, :-1], cache=cache)[0]
        last = prepared(ids[:, -1:], cache=cache)[0]
        want = model(ids, ids)[0]
    assert (torch.cat((first, last), 1) - want).abs().max() < 2e-5 and not calls


@own_kernel
@pytest.mark.parametrize("on_full", ["refill", "slide"])
@pytest.mark.parametrize(
    "name, choices",
    [
        ("megabyte", {}),
        ("megabyte", dict(cross_patch=True, conv_encoder=True)),
        ("spacebyte", dict(boundary="space", local_window=16)),
        ("spacebyte", dict(boundary="fixed", local_window=16)),
    ],
)
def test_models_of_bytes_write_the_same(name, choices, on_full, calls):
    sizes = dict(block_size=64, vocab_size=257, patch_size=4, n_layer=2, n_head=2, n_embd=128)
    sizes |= dict(local_layer=2, local_head=2, local_embd=64)
    torch.manual_seed(0)
    model = build_model(name, {**CHOICES["fast"], **sizes, **choices}).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    params = SamplingParams(100, temperature=0.8, top_k=20)
    texts = [
        list(generate(m, list(b"bytes in words"), params, on_full=on_full))
        for m in (model, prepare(model))
    ]
    assert texts[0] == texts[1] and calls


# ---- products of few rows ----


@own_kernel
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("n, k", [(33, 100), (64, 64), (1, 48)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_row_of_a_product_does_not_depend_on_its_neighbours(n, k, bias, dtype):
    torch.manual_seed(0)
    linear = nn.Linear(k, n, bias=bias)
    layer = weights.PackedLinear(linear, dtype, LargePages())
    x = torch.randn(2, 7, k).to(dtype)
    with torch.no_grad():
        got = [layer(x.reshape(-1, k)[:rows]) for rows in range(1, 13)]
        want = F.linear(x.reshape(-1, k).float(), linear.weight.to(dtype).float(), linear.bias)
    error = 1e-5 if dtype == torch.float32 else 0.02
    for rows, y in enumerate(got, 1):
        assert y.dtype == dtype and (y.float() - want[:rows]).abs().max() < error
    if dtype == torch.float32:  # as many rows as linear.cpp takes
        assert all(torch.equal(y, got[-1][: len(y)]) for y in got)


# ---- memory ----


def test_copies_lie_side_by_side_in_large_pages():
    pages = LargePages()
    first, second = torch.randn(1000, 3), torch.arange(77, dtype=torch.int8)
    a, b, c = pages.copy(first), pages.copy(second.view(7, 11).T), pages.copy(first.bfloat16())
    assert torch.equal(a, first) and torch.equal(b, second.view(7, 11).T)
    assert torch.equal(c, first.bfloat16()) and b.is_contiguous()
    if hasattr(mmap, "MADV_HUGEPAGE"):
        assert a.data_ptr() % PAGE == 0 and b.data_ptr() - a.data_ptr() == 12032
    large = pages.copy(torch.ones(40 * PAGE, dtype=torch.uint8))  # more than a chunk
    assert large.sum() == 40 * PAGE and torch.equal(a, first)


def test_without_large_pages_the_tensor_itself_is_taken(monkeypatch):
    x = torch.randn(10)
    monkeypatch.delattr(memory.mmap, "MADV_HUGEPAGE", raising=False)
    assert LargePages().copy(x) is x
