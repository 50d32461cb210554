"""Kernels in place of model.py's: the same numbers up to rounding, and where they are put."""

import copy
import itertools
import math
import pickle
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import create_block_mask

from bonsai.models import kernels
from bonsai.models.decoder import Decoder
from bonsai.models.kernels import (
    ByteDropout,
    attend,
    attend_in_blocks,
    attention_to_few,
    cpu_attend,
    drop,
    flex_local_attention,
    gelu,
    half_gelu,
    local_attention,
    product_attention,
    relu_squared,
    to_device,
    window_blocks,
)
from bonsai.models.seq2seq import Seq2Seq, Seq2SeqConfig
from bonsai.models.table import MODELS, build_model
from model import GPT, GPTConfig, attention, rope_angles

CPU = torch.device("cpu")
SHAPE = dict(block_size=40, vocab_size=29, n_layer=2, n_head=4, n_embd=32, n_kv_head=2)
VARIANTS = {
    "classic": {},
    "squared relu": dict(activation="relu2"),
    "windows": dict(attention_window=6, window_pattern="LD"),
}


# ---- where they are put ----


@pytest.mark.parametrize("fields", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_model_computes_what_it_did(fields, dtype, monkeypatch):
    """Logits, loss and gradients; of many keys, too."""
    idx, targets = torch.randint(29, (2, 3, 40), generator=torch.Generator().manual_seed(1))

    def results(move):
        torch.manual_seed(0)
        model = move(GPT(GPTConfig(**SHAPE, **fields)))
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            logits, loss = model(idx, targets)
        loss.backward()
        return [logits.detach(), loss.detach(), *(p.grad for p in model.parameters())]

    want, error = results(lambda model: model), 1e-5 if dtype == torch.float32 else 0.03
    for short in (256, 16):
        monkeypatch.setattr(kernels, "SHORT", short)
        for a, b in zip(results(lambda model: to_device(model, CPU)), want):
            torch.testing.assert_close(a, b, atol=error, rtol=error)


@pytest.mark.parametrize("name", MODELS)
def test_every_dropout_of_a_model_is_by_bytes(name):
    model = to_device(build_model(name, dict(n_layer=2, dropout=0.3)), CPU)
    dropouts = [m for m in model.modules() if isinstance(m, nn.Dropout)]
    assert len(dropouts) >= 5 and all(type(m) is ByteDropout and m.p == 0.3 for m in dropouts)
    assert all(m.training for m in dropouts)
    names, modules = list(model.state_dict()), list(model.modules())
    assert all(a is b for a, b in zip(to_device(model, CPU).modules(), modules))  # again: the same
    assert names == list(model.state_dict())


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_without_dropout_training_and_evaluation_are_one_graph(device):
    """Nothing in the model tells them apart."""
    with torch.device(device):
        model = build_model("gpt", dict(n_layer=1, dropout=0.0))
    names = list(model.state_dict())
    model = to_device(model, torch.device(device))
    assert not any(isinstance(m, nn.Dropout) for m in model.modules())
    assert list(model.state_dict()) == names


def test_what_is_evaluated_stays_so():
    model = to_device(Seq2Seq(Seq2SeqConfig(vocab_size=20, n_layer=1)).eval(), CPU)
    dropouts = [m for m in model.modules() if isinstance(m, nn.Dropout)]
    assert dropouts and not any(m.training for m in dropouts)
    x = torch.ones(100)
    assert dropouts[0](x) is x


def test_another_device_has_torchs_own():
    """Built without memory, as there is no GPU here."""
    with torch.device("meta"):
        model = build_model("gpt", dict(n_layer=1, activation="relu2", dropout=0.1))
    modules = {name: type(m) for name, m in model.named_modules()}
    model = to_device(model, torch.device("meta"))
    assert {name: type(m) for name, m in model.named_modules()} == modules
    assert model.transformer.h[0].attn.attend is attend_in_blocks
    noisy = ByteDropout(0.1)(torch.empty(3, device="meta"))  # of a model that was moved since
    assert noisy.device.type == "meta"


def rotating() -> GPT:
    torch.manual_seed(0)
    return GPT(GPTConfig(**SHAPE, position="rope", qk_norm=True))


def with_table(model: GPT) -> GPT:
    """As to_device makes it for a GPU."""
    angles = rope_angles(torch.arange(40), model.config.head_dim, model.config.rope_base)
    model.rotation = torch.stack(angles)
    return model


@pytest.mark.parametrize("length", [40, 7, 1])
def test_a_table_of_rotations_changes_no_number(length):
    """Nor do positions beyond it, or a cache, whose texts are at positions of their own."""
    plain, table = rotating(), with_table(rotating())
    idx = torch.randint(29, (3, length), generator=torch.Generator().manual_seed(1))
    losses = [model(idx, idx)[1] for model in (plain, table)]
    for loss in losses:
        loss.backward()
    assert torch.equal(*losses)
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(plain.parameters(), table.parameters()))
    with torch.no_grad():
        cached = [model(idx, cache=model.new_cache(3))[0] for model in (plain, table)]
        assert torch.equal(*cached)
        table.rotation = table.rotation[:, :5]
        assert torch.equal(plain(idx)[0], table(idx)[0])


def test_the_table_is_made_for_gpus_and_is_no_part_of_the_weights():
    plain, names = rotating(), list(rotating().state_dict())
    assert to_device(plain, CPU).rotation is None
    with torch.device("meta"):
        model = rotating()
    model = to_device(model, torch.device("meta"))
    assert model.rotation.shape == (2, 40, 8) and model.rotation.dtype == torch.float32
    assert list(model.state_dict()) == names and "rotation" not in dict(model.named_parameters())
    table = with_table(rotating())
    table.load_state_dict(plain.state_dict())
    for copied in (copy.deepcopy(table), pickle.loads(pickle.dumps(table))):
        assert torch.equal(copied.rotation, table.rotation)
    assert table.to("meta").rotation.device.type == "meta"  # it moves with the model
    learned = GPT(GPTConfig(**SHAPE))
    assert to_device(learned.to("meta"), torch.device("meta")).rotation is None


BYTES = dict(local_layer=2, local_head=2, local_embd=16, patch_size=4)


@pytest.mark.parametrize("more", [{}, {"cross_patch": 2}], ids=["", "cross-patch"])
@pytest.mark.parametrize("name", ["megabyte", "spacebyte"])
def test_models_of_bytes_have_a_table_in_each_decoder(name, more):
    fields = SHAPE | BYTES | {"position": "rope", "n_kv_head": 0, "vocab_size": 257}
    fields |= more if name == "megabyte" else {}
    idx = torch.randint(256, (2, 39), generator=torch.Generator().manual_seed(1))

    def made(device: str) -> nn.Module:
        torch.manual_seed(0)
        return to_device(build_model(name, fields).to(device), torch.device(device))

    plain, table, meta = made("cpu"), made("cpu"), made("meta")
    assert list(meta.state_dict()) == list(plain.state_dict())
    for (of, own), ours in zip(meta.named_modules(), table.modules()):
        if isinstance(own, Decoder):
            assert ours.rotation is None and own.rotation.shape == (2, 40, own.config.head_dim), of
            angles = rope_angles(torch.arange(40), own.config.head_dim, own.config.rope_base)
            ours.rotation = torch.stack(angles)
    losses = [model(idx, idx)[1] for model in (plain, table)]
    for loss in losses:
        loss.backward()
    assert torch.equal(*losses)
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(plain.parameters(), table.parameters()))


def test_a_compiled_model_reads_the_table():
    """Its graph has no cosine that a compiler could compute for every element of every layer."""
    counts = []

    def backend(graph, inputs):
        counts.append(sum(node.target == "cos" for node in graph.graph.nodes))
        return graph

    idx = torch.randint(29, (2, 40), generator=torch.Generator().manual_seed(1))
    losses = []
    for model in (rotating(), with_table(rotating())):
        torch._dynamo.reset()
        losses.append(torch.compile(model, backend=backend, fullgraph=True)(idx, idx)[1])
    assert counts[0] > 0 and counts[1:] == [0] and torch.equal(*losses)


# ---- each of them ----


@pytest.mark.parametrize("window", [1, 3, 5, 8, 12, 40])
@pytest.mark.parametrize("kv", [4, 2])
@pytest.mark.parametrize("dtype, error", [(torch.float32, 1e-5), (torch.bfloat16, 0.03)])
def test_local_attention_equals_a_mask(window, kv, dtype, error):
    """In blocks, by the fused kernel and by plain products, against the whole matrix of scores."""
    torch.manual_seed(0)
    t = 21
    shapes = ((2, 4, t, 8), (2, kv, t, 8), (2, kv, t, 8))
    q, k, v = (torch.randn(shape).to(dtype).requires_grad_() for shape in shapes)
    i, j = torch.arange(t)[:, None], torch.arange(t)
    seen = (j <= i) & (j > i - window)
    full = F.scaled_dot_product_attention(
        *(x.float() for x in (q, k, v)), seen, scale=0.3, enable_gqa=True
    )
    for y in (
        local_attention(attention, q, k, v, window, 0.3, 0.0),
        local_attention(product_attention, q, k, v, window, 0.3, 0.0),
        product_attention(q, k, v, seen, 0, 0.3, 0.0),
        attention_to_few(q, k, v, seen, 0, 0.3, 0.0),
        attention_to_few(q, k, v, None, window, 0.3, 0.0),
        attend(q, k, v, None, window, 0.3, 0.0),
        cpu_attend(q, k, v, None, window, 0.3, 0.0),
    ):
        assert y.dtype == dtype and y.shape == q.shape
        torch.testing.assert_close(y.float(), full, atol=error, rtol=error)
        for at in (0, 9, t - 1):  # and nothing comes from what is not seen
            gradient = torch.autograd.grad(y[:, :, at].sum(), v, retain_graph=True)[0]
            assert torch.equal(gradient.abs().sum((0, 1, 3)) > 0, seen[at])


@pytest.mark.parametrize("dtype, error", [(torch.float32, 1e-5), (torch.bfloat16, 0.03)])
def test_a_mask_may_be_what_is_added_to_the_scores(dtype, error):
    """As a cache gives it to a step of fixed shapes; of two rows, one with fewer keys."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, n, t, 8).to(dtype) for n, t in ((4, 1), (2, 11), (2, 11)))
    seen = (torch.arange(11) <= torch.tensor([[10], [3]]))[:, None, None]  # (B, 1, T, S)
    added = torch.zeros(seen.shape, dtype=dtype).masked_fill(~seen, -math.inf)
    want = attention(q, k, v, seen, 0, 0.3, 0.0)
    for way in (attention, attend, attend_in_blocks, cpu_attend, attention_to_few):
        for mask in (seen, added):
            y = way(q, k, v, mask, 0, 0.3, 0.0)
            torch.testing.assert_close(y, want, atol=error, rtol=error)


@pytest.mark.parametrize("T", [100, 128, 300, 700, 1024])
@pytest.mark.parametrize("window", [1, 2, 127, 128, 129, 255, 256, 257, 500, 640, 1000])
def test_blocks_of_a_window_are_those_that_torch_finds(T, window):
    """Theirs are found by looking at all T x T."""
    want = create_block_mask(
        lambda b, h, i, j: (j <= i) & (j > i - window), None, None, T, T, device="cpu"
    )
    ours = window_blocks(T, window, CPU)
    for kind in ("kv", "full_kv", "q", "full_q"):
        counts, indices = f"{kind}_num_blocks", f"{kind}_indices"
        assert torch.equal(getattr(ours, counts), getattr(want, counts)), kind
        for n, a, b in zip(
            *(getattr(m, x)[0, 0] for m, x in ((want, counts), (ours, indices), (want, indices)))
        ):
            assert torch.equal(a[:n], b[:n]), kind
    assert ours.seq_lengths == want.seq_lengths


@pytest.mark.parametrize("T, window", [(300, 70), (256, 128), (130, 200)])
@pytest.mark.parametrize("kv", [4, 2])
def test_flex_attention_to_a_window_equals_that_in_blocks(T, window, kv):
    """Forward, which is all that it can do on a CPU; and a compiler takes it in one graph."""
    torch.manual_seed(0)
    torch._dynamo.reset()
    q, k, v = (torch.randn(2, n, T, 16) for n in (4, kv, kv))
    want = local_attention(attention, q, k, v, window, 0.3, 0.0)
    compiled = torch.compile(flex_local_attention, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(q, k, v, window, 0.3), want, atol=1e-5, rtol=1e-5)


def test_a_compiled_model_on_a_gpu_takes_the_kernel_for_windows(monkeypatch):
    """Only there: elsewhere, with dropout and for few queries, it is no kernel, wrong, or fails."""
    taken = []
    monkeypatch.setattr(kernels, "flex_local_attention", lambda *_: taken.append(1))
    monkeypatch.setattr(kernels, "local_attention", lambda *_: None)
    for device, compiling, dropout, T in itertools.product(
        ("cpu", "cuda"), (False, True), (0.0, 0.1), (127, 128)
    ):
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda compiling=compiling: compiling)
        q = SimpleNamespace(size=lambda _, T=T: T, device=torch.device(device))
        attend(q, q, None, None, 6, 0.3, dropout)
        assert bool(taken) == (device == "cuda" and compiling and not dropout and T == 128)
        taken.clear()


def test_a_compiled_model_on_a_gpu_sums_over_few_keys(monkeypatch):
    """As in a patch of bytes, with those before it or without."""
    taken = []
    monkeypatch.setattr(kernels, "attention_to_few", lambda *_: taken.append(1))
    monkeypatch.setattr(kernels, "attention", lambda *_: None)
    for device in ("cpu", "cuda"):
        for compiling in (False, True):
            monkeypatch.setattr(
                torch.compiler, "is_compiling", lambda compiling=compiling: compiling
            )
            for keys in (kernels.FEW, kernels.FEW + 1):
                for call in (attend, attend_in_blocks):
                    k = SimpleNamespace(size=lambda _, keys=keys: keys, device=torch.device(device))
                    call(k, k, None, None, 0, 0.3, 0.1)
                    assert bool(taken) == (device == "cuda" and compiling and keys == kernels.FEW)
                    taken.clear()


def test_attention_to_few_drops_what_it_has_seen():
    """With noise each share of a value is gone or larger; of one key there is 1 in all."""
    torch.manual_seed(0)
    ones = torch.ones(1000, 2, 1, 4)
    y = attention_to_few(ones, ones, ones, None, 0, 0.3, 0.25)
    torch.testing.assert_close(y.unique(), torch.tensor([0, 1 / 0.75]))
    assert y.mean().item() == pytest.approx(1, abs=0.06)


@pytest.mark.parametrize(
    "capability, channels, want",
    [
        *(((9, 0), 8, False), ((9, 0), 16, True), ((9, 0), 256, True), ((10, 0), 320, False)),
        *(((8, 0), 128, True), ((8, 9), 64, True), ((8, 6), 160, False), ((12, 0), 192, False)),
        *(((7, 5), 64, False), ((7, 0), 64, False)),
    ],
)
def test_heads_for_which_a_kernel_for_windows_can_be_made(capability, channels, want, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert kernels.has_flex(torch.device("cuda", 0), channels) == want
    assert not kernels.has_flex(torch.device("mps"), 64)


def test_relu_squared_and_its_gradients():
    x = torch.randn(50, dtype=torch.float64, requires_grad=True)
    assert torch.equal(relu_squared(x), x.relu() ** 2)
    torch.autograd.gradcheck(relu_squared, x)
    torch.autograd.gradgradcheck(relu_squared, x)


@pytest.mark.parametrize("fields", VARIANTS.values(), ids=VARIANTS)
def test_second_derivatives_are_those_of_the_model(fields):
    """Products with the Hessian, as for sharpness, influence or a penalty on gradients."""
    idx, targets = torch.randint(29, (2, 3, 40), generator=torch.Generator().manual_seed(1))

    def curvature(move) -> list[torch.Tensor]:
        torch.manual_seed(0)
        model = move(GPT(GPTConfig(**SHAPE, **fields)))
        params = list(model.parameters())
        with sdpa_kernel(SDPBackend.MATH):  # torch's others have no second derivatives
            first = torch.autograd.grad(model(idx, targets)[1], params, create_graph=True)
            return torch.autograd.grad(sum(g.square().sum() for g in first), params)

    want = curvature(lambda model: model)
    for a, b in zip(curvature(lambda model: to_device(model, CPU)), want):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("fields", VARIANTS.values(), ids=VARIANTS)
def test_gradients_of_each_sample_by_torch_func(fields):
    torch.manual_seed(0)
    model = to_device(GPT(GPTConfig(**SHAPE, **fields)), CPU)
    idx, targets = torch.randint(29, (2, 3, 40), generator=torch.Generator().manual_seed(1))
    params = {name: p.detach() for name, p in model.named_parameters()}

    def loss(params, x, y):
        return torch.func.functional_call(model, params, (x[None], y[None]))[1]

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(params, idx, targets)
    for i in range(3):
        model.zero_grad()
        model(idx[i : i + 1], targets[i : i + 1])[1].backward()
        for name, p in model.named_parameters():
            torch.testing.assert_close(each[name][i], p.grad, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.9])
def test_dropout_keeps_the_mean_and_its_share(p):
    torch.manual_seed(0)
    x = torch.ones(1001, 100, requires_grad=True)
    y = drop(x, p)
    kept = (y != 0).float().mean().item()
    assert kept == pytest.approx(1 - p, abs=0.006)
    assert y.mean().item() == pytest.approx(1, abs=0.03)
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())  # dropped where it was dropped, scaled alike
    torch.manual_seed(0)
    assert torch.equal(drop(x, p), y)


# ---- GELU on a GPU ----


def test_gelu_by_one_exponential():
    """Value and derivative to 1e-6, down to where both are 0."""
    x = torch.linspace(-12, 12, 10001, requires_grad=True)
    exact = x.detach().double().requires_grad_()
    found = []
    for f, z in ((half_gelu, x), (F.gelu, exact)):
        y = f(z)
        found.append((y.double(), torch.autograd.grad(y.sum(), z)[0].double()))
    for got, want in zip(*found):
        assert (got - want).abs().max() < 1e-6


def test_a_compiler_keeps_as_little_of_it_as_of_torchs():
    """In half precision; in float32, and without a compiler, it is torch's."""
    kept, outcomes = [], []
    x = torch.randn(8, 64).bfloat16()
    for f in (F.gelu, gelu):
        torch._dynamo.reset()
        compiled, weight = torch.compile(lambda x, w, f=f: f(x @ w).square()), torch.eye(64)
        weight = weight.bfloat16().requires_grad_()
        kept.append([])

        def note(t):
            kept[-1].append((t.shape, t.dtype))
            return t

        with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
            y = compiled(x, weight)
        outcomes.append((y.detach(), *torch.autograd.grad(y.sum(), weight)))
    assert kept[0] == kept[1] and outcomes[0][0].unique().numel() > 50
    for a, b in zip(*outcomes):
        torch.testing.assert_close(a, b, atol=0.05, rtol=0.02)
    assert torch.equal(gelu(x), F.gelu(x))
    assert torch.equal(torch.compile(gelu)(x.float()), torch.compile(F.gelu)(x.float()))
