"""Models prepared for inference: packed, in bfloat16 or int8, and how far their logits move."""

import copy

import pytest
import torch
from helpers.tiny_model import BLOCK, VOCAB, tiny
from torch.utils._python_dispatch import TorchDispatchMode

from bonsai.engine.cpu import linear
from bonsai.engine.cpu.linear import products
from bonsai.engine.weights import prepare
from model import ACTIVATIONS

# of the logits' own spread, on a model of GPT-2's shape in small with its initial weights
TOLERANCE = {(torch.bfloat16, ""): 0.1, (None, "int8"): 0.3, (torch.bfloat16, "int8"): 0.3}


@pytest.mark.parametrize("dtype, quantize", TOLERANCE)
@pytest.mark.parametrize("pack", [True, False])
def test_logits_of_converted_weights_stay_close(dtype, quantize, pack):
    model = tiny(n_embd=128, block_size=64)
    fast = prepare(model, dtype, quantize, pack)
    idx = torch.randint(VOCAB, (2, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        want, got = model(idx, idx)[0], fast(idx, idx)[0]
        error = (got - want).std() / want.std()
        assert 0 < error < TOLERANCE[dtype, quantize]
        # and the cached steps are those of the same weights
        cache = fast.new_cache(2, 64)
        fast(idx[:, :30], cache=cache)
        steps = [fast(idx[:, t : t + 1], cache=cache)[0][:, 0] for t in range(30, 40)]
        assert (torch.stack(steps, 1) - got[:, 30:]).std() / want.std() < error
    assert fast.transformer.wte.weight.dtype == (dtype or torch.float32)
    assert model.lm_head.weight.dtype == torch.float32  # the original is left alone


@pytest.mark.parametrize("dtype, quantize", [(None, ""), *TOLERANCE])
@pytest.mark.parametrize("compiler", [True, False])
def test_a_module_that_reads_the_weights_of_its_layers(dtype, quantize, compiler, monkeypatch):
    """As torch's own layers do, and with them models of one's own: they are those that a call
    multiplies with."""
    monkeypatch.setattr("bonsai.engine.cpu.linear.products", dict if not compiler else products)
    torch.manual_seed(0)
    torchs = torch.nn.TransformerEncoderLayer(64, 4, 128, batch_first=True, norm_first=True).eval()
    x = torch.randn(2, 5, 64)
    fast = prepare(torchs, dtype, quantize)
    dtype = dtype or torch.float32
    with torch.no_grad():
        want, got = torchs(x), fast(x.to(dtype)).float()
        assert (got - want).std() / want.std() < (
            0.05 if dtype != torch.float32 or quantize else 1e-5
        )
        layer, given = fast.linear1, torch.randn(3, 64, dtype=dtype)
        assert (layer.out_features, layer.in_features) == layer.weight.shape == (128, 64)
        read = torch.nn.functional.linear(given, layer.weight, layer.bias)
        torch.testing.assert_close(read, layer(given), atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("quantize", ["", "int8"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_cpu_without_instructions_for_half_precision(dtype, quantize, monkeypatch):
    """torch refuses to pack weights for it: linear.cpp takes those in bfloat16, and what it does
    not take stays as nn.Linear has it."""
    monkeypatch.setattr(linear, "SUPPORTED", dict.fromkeys(linear.SUPPORTED, "_no_such"))
    model, idx = tiny(n_embd=128), torch.randint(VOCAB, (4, BLOCK))
    prepared = prepare(model, dtype, quantize)
    packed = [m for m in prepared.modules() if isinstance(m, linear.PackedLinear)]
    assert bool(packed) == (not quantize and dtype in linear.products())
    assert all(m.packed is None for m in packed) and idx.numel() > linear.FEW_UNPACKED
    with torch.no_grad():
        for part in (idx, idx[:, :1]):
            want, got = model(part)[0], prepared(part)[0]
            assert (want - got.float()).std() / want.std() < 0.1


@pytest.mark.parametrize("pack", [True, False])
def test_weights_that_were_converted_before_are_the_same(pack):
    """As sample.py converts them on the host, so that a GPU never has them in float32."""
    model, idx = tiny(n_embd=128), torch.randint(VOCAB, (2, BLOCK))
    late = prepare(model, torch.bfloat16, pack=pack)
    early = prepare(copy.deepcopy(model).to(torch.bfloat16), torch.bfloat16, pack=pack)
    with torch.no_grad():
        for part in (idx, idx[:, :1]):
            assert torch.equal(late(part)[0], early(part)[0])


class Made(TorchDispatchMode):
    """The elements of the tensors in float32 that were made."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **kwargs or {})
        if isinstance(out, torch.Tensor) and out.dtype == torch.float32 and not function.is_view:
            self.elements += out.numel()
        return out


def test_no_second_copy_in_float32():
    """What is not packed goes from one dtype to the other, weight by weight."""
    model = tiny(n_embd=128)
    with Made() as made:
        fast = prepare(model, torch.bfloat16, pack=False)
    assert not made.elements and fast.lm_head.weight is fast.transformer.wte.weight
    assert {p.dtype for p in fast.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_packed_float32_weights_are_exact_to_rounding():
    model = tiny(n_embd=128, n_kv_head=2, bias=False)
    idx = torch.randint(VOCAB, (3, BLOCK), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for part in (idx, idx[:1, :1]):  # a vector takes another way
            want, got = model(part)[0], prepare(model)(part)[0]
            torch.testing.assert_close(got, want, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["gelu", "gelu_tanh"])
def test_a_step_leaves_what_other_threads_share_as_it_is(name, monkeypatch):
    """A server computes several models at once: no setting of the whole process is switched."""
    seen, gelu = [], ACTIVATIONS[name]

    def spy(x):
        seen.append(torch.backends.mkldnn.enabled)
        return gelu(x)

    monkeypatch.setitem(ACTIVATIONS, name, spy)
    model = tiny(n_embd=128, activation=name, norm_placement="post")  # not by block.cpp
    fast = prepare(model)
    for shape in ((1, 1), (16, 16)):
        idx = torch.randint(VOCAB, shape, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            torch.testing.assert_close(fast(idx)[0], model(idx)[0], atol=1e-4, rtol=0)
    assert len(seen) == 4 * model.config.n_layer and {*seen} == {True}
