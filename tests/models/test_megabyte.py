"""bonsai/models/megabyte.py against the paper's equations, and known pitfalls.

Byte t of the context is idx[t], logits[t] are those of byte t + 1. So patch k predicts the bytes
kP + 1 ... kP + P, which in the paper's numbering, that of the bytes to predict, are x_kP onward.
"""

import functools
import math

import pytest
import torch
from helpers import byte_models
from helpers.byte_models import MEGABYTE, MEGABYTES, B, P, V, logits_of
from torch.nn import functional as F

from bonsai.engine import SamplingParams, generate
from bonsai.models.byte_caches import PatchBefore
from bonsai.models.megabyte import Megabyte, MegabyteConfig

make = functools.partial(byte_models.make, "megabyte")
variants = pytest.mark.parametrize("fields", MEGABYTES.values(), ids=MEGABYTES)


def batch(t: int = 20, **options: int) -> torch.Tensor:
    return byte_models.batch("megabyte", t, **options)


def embedded(model: Megabyte, idx: torch.Tensor, t: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradient sizes (T,) of a function of the logits at t to each byte's global and local
    embedding, as embedding tables see them: places that are not looked up have 0."""
    seen, T = {}, idx.size(1)

    def keep(name):
        def hook(module, args, output):
            output.retain_grad()
            seen[name] = (args[0], output)

        return hook

    hooks = [getattr(model, n).register_forward_hook(keep(n)) for n in ("global_wte", "local_wte")]
    logits, _ = model(idx, idx)
    generator = torch.Generator().manual_seed(5)
    (logits[:, t] * torch.randn(model.config.vocab_size, generator=generator)).sum().backward()
    for hook in hooks:
        hook.remove()
    size = seen["global_wte"][1].grad.abs().amax(dim=(0, 2))
    globl = F.pad(size, (0, T - len(size)))
    size = seen["local_wte"][1].grad.abs().amax(dim=(0, 3))  # (K, P - 1): places 1 ... P - 1
    local = F.pad(size, (1, 0)).flatten()[:T]
    return globl, local


# ---- the pitfalls ----


@variants
def test_the_global_path_is_shifted_and_fresh(fields):
    """Logits of patch k depend, through the global path, on byte kP and all before; none after."""
    model, idx = make(**fields), batch(20)
    p = model.config.patch_size
    for t in (0, p, 2 * p, 2 * p + p // 2, 3 * p - 1):
        model.zero_grad()
        globl, local = embedded(model, idx, t)
        fresh = t // p * p  # the patch before ends here
        assert (globl[: fresh + 1] > 0).all(), t
        assert (globl[fresh + 1 :] == 0).all(), t
        assert (local[t + 1 :] == 0).all(), t
        assert (local[fresh + 1 : t + 1] > 0).all(), t
        if not model.config.cross_patch:
            assert (local[: fresh + 1] == 0).all(), t


def test_without_the_bridge_patches_know_nothing_of_each_other():
    model, idx = make(position="learned"), batch(24, rows=1)
    idx[0, 13:16] = idx[0, 1:4]  # patches 0 and 3 hold the same bytes after their first place
    with torch.no_grad():
        model.bridge.weight.zero_()
    logits = logits_of(model, idx)[0].view(6, P, V)
    for k in range(1, 6):
        assert torch.equal(logits[0, 0], logits[k, 0])  # the pad alone
    torch.testing.assert_close(logits[0], logits[3])
    assert not torch.allclose(logits[0, 1], logits[1, 1])  # byte kP + 1


def test_cross_patch_attention_reaches_back_as_far_as_it_says():
    for reach in (1, 3):
        model, idx = make(cross_patch=reach, local_layer=1), batch(20)
        _, local = embedded(model, idx, 9)  # patch 2: places 8, 9
        seen = (local > 0).nonzero().flatten().tolist()
        # place 4 of patch 1 holds the pad
        assert seen == [t for t in range(8 - reach, 10) if t % P]


def test_rope_counts_on_across_patches():
    """With whole patches before it, a patch of ones sees what one decoder over both would."""
    model = make(position="rope", cross_patch=P, local_layer=1)
    x = torch.randn(2, P, 16, dtype=torch.float64)
    apart = model.local(x, PatchBefore(model.config, 2))[1]
    together = model.local(x.view(1, 2 * P, 16))[0, P:]
    torch.testing.assert_close(apart, together, atol=1e-6, rtol=1e-5)  # angles are float32


@pytest.mark.parametrize("fields", [dict(patch_size=4), dict(patch_size=2)], ids=str)
def test_the_equations_byte_by_byte(fields):
    """An index loop over patches and places, as the paper writes them, P != K."""
    model, idx = make(**fields), batch(20)
    p, width = model.config.patch_size, 32 // model.config.patch_size
    K = 20 // p
    assert p != K
    logits = logits_of(model, idx)
    with torch.no_grad():
        for b in range(B):
            h = model.global_wte.weight[idx[b]] + model.global_wpe.weight[:20]  # (T, DG)
            inputs = torch.zeros(K, p * width, dtype=torch.float64)
            for k in range(K):
                for place in range(p):
                    t = (k - 1) * p + 1 + place
                    value = h[t] if t >= 0 else torch.zeros(width, dtype=torch.float64)
                    if k == 0:
                        value = value + model.global_pad[place]
                    inputs[k, place * width : (place + 1) * width] = value
            out = model.globl(inputs[None])[0]
            for k in range(K):
                rows = []
                for place in range(p):
                    mine = model.local_pad[0]
                    if place:
                        mine = model.local_wte.weight[idx[b, k * p + place]]
                    told = model.bridge.weight @ out[k, place * width : (place + 1) * width]
                    rows.append(told + mine)
                y = model.local(torch.stack(rows)[None])[0]
                expected = y @ model.local_wte.weight.T
                torch.testing.assert_close(logits[b, k * p : (k + 1) * p], expected)


def test_zeros_are_bytes_and_pads_are_parameters():
    """NUL is neither padding nor ignored: every byte counts, and the pads learn."""
    model = make()
    idx = torch.zeros(B, 18, dtype=torch.int64)
    logits, loss = model(idx, idx)
    assert loss.item() == pytest.approx(F.cross_entropy(logits.flatten(0, 1), idx.flatten()).item())
    loss.backward()
    for pad in (model.global_pad, model.local_pad):
        assert isinstance(pad, torch.nn.Parameter)
        assert (pad.grad.abs().amax(dim=1) > 0).all()
    other = logits_of(model, torch.cat((torch.ones_like(idx[:, :1]), idx[:, 1:]), 1))
    assert (other != logits).flatten(2).any(-1).all()


@pytest.mark.parametrize("strided", [False, True])
def test_a_ragged_end_costs_the_same(strided):
    """18 bytes in patches of 4 have the loss of 20 bytes whose last targets are ignored."""
    for fields in MEGABYTES.values():
        model = make(**fields)
        model.strided = strided
        idx, targets = batch(20), batch(20, seed=2)
        for t in (17, 18, 19):
            masked = targets.clone()
            masked[:, t:] = -1
            with torch.no_grad():
                short = model(idx[:, :t], targets[:, :t])[1].item()
                assert short == pytest.approx(model(idx, masked)[1].item(), rel=1e-6)


def test_a_new_model_costs_log_v():
    torch.manual_seed(0)
    model = Megabyte(MegabyteConfig(vocab_size=257))
    idx, targets = torch.randint(256, (2, 2, 512))
    loss = model(idx, targets)[1].item()
    assert loss / math.log(2) == pytest.approx(math.log2(257), abs=0.1)


# ---- options ----


def test_strided_inference_takes_first_halves():
    model, idx = make(), batch(22)
    plain = logits_of(model, idx)
    model.strided = True
    strided = logits_of(model, idx)
    shifted_model = make()
    shifted = logits_of(shifted_model, idx[:, 2:])
    for t in range(22):
        late = t >= P and t % P >= 2
        assert torch.equal(strided[:, t], shifted[:, t - 2] if late else plain[:, t]), t
    model.train()  # in training there is one pass
    model.config.dropout = 0.0
    assert torch.equal(logits_of(model, idx), plain)


def test_flops_are_the_papers():
    """The formula in closed form, and the sizes of the usual configurations."""
    c = MegabyteConfig(bias=False)
    model = Megabyte(c)
    T, p, d, dl, dg = 512, 4, 256, 128, 64
    globl = (24 * 4 * d**2 + 4 * 4 * (T / p) * d) / p
    forward = globl + 24 * 2 * dl**2 + 4 * 2 * p * dl + 2 * dg * dl + 2 * dl * 257
    assert model.flops_per_token(T) == pytest.approx(3 * forward)
    assert model.flops_per_token() / 3 == pytest.approx(2.58e6, rel=0.01)
    eight = dict(patch_size=8, n_layer=3, n_head=6, n_embd=384, local_layer=3, local_head=4)
    model = Megabyte(MegabyteConfig(bias=False, **eight))
    assert model.flops_per_token() / 3 == pytest.approx(2.63e6, rel=0.01)
    assert model.num_params() == pytest.approx(5.9e6, rel=0.02)
    assert model.serial_layers() == 3 / 8 + 3


def test_rows_are_independent_however_many(monkeypatch):
    """More rows than a CUDA kernel takes are computed in parts."""
    model, idx = make(cross_patch=2), batch(20, rows=5)
    whole = logits_of(model, idx)
    monkeypatch.setattr("bonsai.models.megabyte.MAX_ROWS", 10)
    torch.testing.assert_close(logits_of(model, idx), whole)


def test_a_cache_is_no_longer_than_the_context():
    model = make()
    model.crop_block_size(16)
    with pytest.raises(ValueError, match="17 bytes"):
        model.new_cache(1, 17)


@pytest.mark.parametrize(
    "fields, words",
    [
        (dict(patch_size=5), ["n_embd=32", "patch_size=5"]),
        (dict(patch_size=0), ["patch_size=0"]),
        (dict(cross_patch=5), ["cross_patch=5", "patch_size=4"]),
        (dict(local_embd=17), ["local", "n_embd=17"]),
        (dict(local_layer=0), ["local_layer=0"]),
        (dict(local_embd=6, position="rope"), ["local", "even"]),
        (dict(activation="tanh"), ["activation", "tanh"]),
    ],
    ids=str,
)
def test_choices_that_do_not_go_together_are_named(fields, words):
    with pytest.raises(ValueError) as e:
        MegabyteConfig(**{**MEGABYTE, **fields})
    assert all(word in str(e.value) for word in words) and "\n" not in str(e.value)


# ---- in the engine ----


def test_a_full_context_moves_on_by_whole_patches():
    """And what is cached then equals a fresh forward of the bytes that are left."""
    model, lengths = make(), []
    real = model.forward
    prompt = list(range(7))

    def checked(idx, targets=None, cache=None):
        if idx.size(1) > 1:
            lengths.append(idx.size(1))
        out = real(idx, targets, cache)
        if cache is not None:
            fresh = real(cache.ids[:, : cache.used])[0]
            torch.testing.assert_close(out[0], fresh, atol=1e-5, rtol=1e-5)
        return out

    model.forward = checked
    text = prompt + [
        row[0] for row in generate(model, prompt, SamplingParams(50), on_full="refill")
    ]
    # 25 bytes do not fit 24: 16 go, the multiple of 4 that leaves at most 12
    assert lengths == [7, 9, 9] and len(text) == 57
