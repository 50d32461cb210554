"""bonsai/engine/cpu/block.py: all blocks of a step in one call (block.cpp), against the model."""

import pytest
import torch

from bonsai.engine import SamplingParams, generate, prepare
from bonsai.engine.cpu import block
from bonsai.models.table import build_model
from model import ACTIVATIONS

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
    "values": dict(value_embeddings=True, n_kv_head=2, bigram_embeddings=2, norm="rmsnorm"),
}

APART = ("lambdas", "values")  # a call for each block, as something happens between them


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
    seen, kernels = [], block.kernels()

    def spy(dtype):
        return lambda *arguments: (seen.append(dtype), kernels[dtype](*arguments))

    monkeypatch.setattr(block, "kernels", lambda: {dtype: spy(dtype) for dtype in kernels})
    return seen


@torch.no_grad()
def one_by_one(model, ids, dtype):
    """Logits (T, V) of ids (1, T), each token by a step of its own."""
    cache = model.new_cache(1, dtype=dtype)
    steps = [model(ids[:, t : t + 1], cache=cache)[0][0, 0] for t in range(ids.size(1))]
    return torch.stack(steps)


@own_kernel
def test_block_cpp_knows_every_activation_by_its_name():
    numbers = [block.activation_number(name) for name in ACTIVATIONS]
    assert len({*numbers}) == len(numbers) and min(numbers) >= 0
    assert block.activation_number("tanh") == -1


@own_kernel
def test_an_activation_that_is_inserted_changes_no_other(calls):
    """The table has one more at its beginning, and the others in another order."""
    before = dict(ACTIVATIONS)
    ACTIVATIONS.clear()
    ACTIVATIONS.update({"tanh": torch.tanh, **dict(reversed(before.items()))})
    ids = torch.randint(101, (1, 1))
    try:
        for name in ACTIVATIONS:
            model = make(activation=name)
            calls.clear()
            got = one_by_one(prepare(model), ids, torch.float32)
            assert len(calls) == (name != "tanh"), name  # which torch computes
            want = one_by_one(model, ids, torch.float32)
            assert (got - want).abs().max() < 1e-3 * want.std(), name
    finally:
        ACTIVATIONS.clear()
        ACTIVATIONS.update(before)


@own_kernel
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("quantize", ["", "int8"])
@pytest.mark.parametrize("choice", CHOICES)
def test_a_step_of_all_blocks_is_that_of_the_model(choice, quantize, dtype, calls):
    model = make(**CHOICES[choice])
    ids = torch.randint(101, (1, T))
    prepared = prepare(model, dtype, quantize)
    got = one_by_one(prepared, ids, dtype)
    assert len(calls) == T * (3 if choice in APART else 1) and {*calls} == {dtype}
    with torch.no_grad():
        want = (prepared if quantize else model)(ids, ids)[0][0]  # by other kernels
    error = 0.08 if dtype == torch.bfloat16 else 2e-3 if quantize else 2e-5
    assert (got - want).abs().max() < error < want.std() / 5


@own_kernel
def test_the_number_of_threads_changes_nothing(calls):
    prepared, ids = prepare(make(), torch.float32, "int8"), torch.randint(101, (1, 8))
    before = torch.get_num_threads()
    logits = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            logits.append(one_by_one(prepared, ids, torch.float32))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(logits[0], logits[1]) and torch.equal(logits[0], logits[2])


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
    [dict(norm_placement="post"), dict(n_head=32)],
    ids=["post", "narrow heads"],
)
def test_other_blocks_are_left_as_they_are(choices, calls):
    model, ids = make(**choices), torch.randint(101, (1, T))
    prepared = prepare(model, torch.float32)
    assert not any(isinstance(m, block.Blocks) for m in prepared.modules())
    with torch.no_grad():
        want = model(ids, ids)[0][0]
    assert (one_by_one(prepared, ids, torch.float32) - want).abs().max() < 2e-5 and not calls


def fill(model, lengths, ids, dtype):
    """A cache with the first lengths[i] tokens of ids (B, T) in row i."""
    cache = model.new_cache(len(lengths), dtype=dtype)
    for row, n in enumerate(lengths):
        part = cache.view(row, row + 1)
        part.lengths = [0]
        if n:
            model(ids[row : row + 1, :n], cache=part)
    cache.lengths = list(lengths)
    return cache


LENGTHS = [0, 30, 7, 7, 19, 1]


@own_kernel
@torch.no_grad()
@pytest.mark.parametrize("tokens", [1, 2])
@pytest.mark.parametrize("quantize", ["", "int8"])
@pytest.mark.parametrize("lengths", [LENGTHS[:2], LENGTHS, [7] * 3], ids=["two", "six", "equal"])
@pytest.mark.parametrize("choice", CHOICES)
def test_texts_of_any_lengths_go_on_as_each_alone(choice, lengths, quantize, tokens, calls):
    """And as the model without a cache has it."""
    model = make(**CHOICES[choice])
    ids = torch.randint(101, (len(lengths), T))
    prepared = prepare(model, torch.float32, quantize)
    cache = fill(prepared, lengths, ids, torch.float32)
    alone = [cache.view(i, i + 1).clone(64) for i in range(len(lengths))]
    new = torch.stack([ids[i, n : n + tokens] for i, n in enumerate(lengths)])
    calls.clear()
    got = prepared(new, new, cache=cache)[0]
    assert len(calls) == (3 if choice in APART else 1)
    assert cache.lengths == [n + tokens for n in lengths]
    for row, n in enumerate(lengths):
        part = new[row : row + 1]
        assert torch.equal(prepared(part, part, cache=alone[row])[0][0], got[row])
        assert torch.equal(cache.k[:, row, :, : n + tokens], alone[row].k[:, 0, :, : n + tokens])
        seen = ids[row : row + 1, : n + tokens]
        want = (prepared if quantize else model)(seen, seen)[0][0, n:]
        assert (got[row] - want).abs().max() < (2e-3 if quantize else 2e-5) < want.std() / 5


@own_kernel
@torch.no_grad()
@pytest.mark.parametrize("rows", [2, 5, 20])
def test_bfloat16_of_several_texts(rows, calls):
    """Few go through loops, more of them through the matrix unit where there is one."""
    model, lengths = make(), [(7 * i) % 30 for i in range(rows)]
    ids = torch.randint(101, (rows, T))
    prepared = prepare(model, torch.bfloat16)
    cache = fill(prepared, lengths, ids, torch.bfloat16)
    new = torch.stack([ids[i, n : n + 1] for i, n in enumerate(lengths)])
    got = prepared(new, cache=cache)[0][:, 0]
    for row, n in enumerate(lengths):
        seen = ids[row : row + 1, : n + 1]
        assert (got[row] - model(seen)[0][0, 0]).abs().max() < 0.08


@own_kernel
@torch.no_grad()
def test_many_tokens_go_block_by_block(calls):
    model, ids = make(block_size=200), torch.randint(101, (1, 150))
    prepared = prepare(model, torch.float32)
    got = prepared(ids, ids, cache=prepared.new_cache(1))[0]
    assert (got - model(ids, ids)[0]).abs().max() < 2e-5 and not calls


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
