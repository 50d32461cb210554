"""MEGABYTE against the paper's equations, the contract of models, and known pitfalls.

Byte t of the context is idx[t], logits[t] are those of byte t + 1. So patch k predicts the bytes
kP + 1 ... kP + P, which in the paper's numbering, that of the bytes to predict, are x_kP onward.
"""

import math

import pytest
import torch
from torch.nn import functional as F

from bonsai.engine import Engine, SamplingParams, generate
from bonsai.models.byte_caches import PatchBefore
from bonsai.models.megabyte import Megabyte, MegabyteConfig
from bonsai.models.table import MODELS, build_model

B, V, P = 2, 31, 4
SHAPE = dict(block_size=24, vocab_size=V, n_layer=2, n_head=2, n_embd=32, patch_size=P)
SHAPE |= dict(local_layer=2, local_head=2, local_embd=16)
MODERN = dict(
    bias=False, norm="rmsnorm", norm_gain=False, norm_embedding=True, position="rope",
    activation="relu2", qk_norm=True, tie_head=False, logit_softcap=15.0,
)  # fmt: skip
VARIANTS = {
    "paper": {},
    "modern": MODERN,
    "sinusoidal, no bias": dict(position="sinusoidal", bias=False),
    "no positions": dict(position="none"),
    "cross-patch": dict(cross_patch=2),
    "cross-patch, whole, rope": dict(cross_patch=4, position="rope", local_layer=3),
    "convolutions": dict(conv_encoder=True),
    "all": dict(**MODERN, cross_patch=3, conv_encoder=True, n_kv_head=1),
    "patches of 3": dict(patch_size=3, n_embd=24),
    "patches of 1": dict(patch_size=1),
}
variants = pytest.mark.parametrize("fields", VARIANTS.values(), ids=VARIANTS)


def make(**fields) -> Megabyte:
    """A model with weights so large that all depends on all it may depend on."""
    torch.manual_seed(0)
    model = Megabyte(MegabyteConfig(**{**SHAPE, **fields})).double().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return model


def batch(t: int = 20, seed: int = 1, rows: int = B) -> torch.Tensor:
    return torch.randint(V, (rows, t), generator=torch.Generator().manual_seed(seed))


def logits_of(model: Megabyte, idx: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(idx, idx)[0]


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
def test_no_byte_sees_the_future(fields):
    """Another byte at c changes no logits before c, and does change those at c."""
    model, idx = make(**fields), batch(23)
    p = model.config.patch_size
    before = logits_of(model, idx)
    for k in range(1, 4):
        for c in (k * p - 1, k * p, k * p + 1):
            other = idx.clone()
            other[:, c:] = (other[:, c:] + 1 + batch(23, seed=c)[:, c:] % (V - 1)) % V
            after = logits_of(model, other)
            assert torch.equal(before[:, :c], after[:, :c]), c
            assert (before[:, c] != after[:, c]).any(), c


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
                expected = (y @ model.local_wte.weight.T).float()
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
    for fields in VARIANTS.values():
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


def test_random_bytes_teach_nothing():
    """After training, held-out random bytes cost 8 bits and no less: nothing leaks."""
    torch.manual_seed(0)
    model = Megabyte(MegabyteConfig(**{**SHAPE, "vocab_size": 256, "block_size": 64}))
    optimizer = model.configure_optimizers(0.1, 3e-3, (0.9, 0.95), "cpu")
    generator = torch.Generator().manual_seed(1)

    def window():
        data = torch.randint(256, (16, 65), generator=generator)
        return data[:, :-1], data[:, 1:]

    for _ in range(60):
        optimizer.zero_grad()
        model(*window())[1].backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        bits = torch.stack([model(*window())[1] for _ in range(40)]).mean().item() / math.log(2)
        model.strided = True
        strided = torch.stack([model(*window())[1] for _ in range(40)]).mean().item() / math.log(2)
    assert 7.99 <= bits < 8.2 and 7.99 <= strided < 8.2


# ---- caches ----


@variants
@pytest.mark.parametrize("start", [1, 2, 3, 5, 8, 11])
def test_cached_equals_whole_at_every_length(fields, start):
    """A prompt that ends anywhere in a patch, then byte by byte, several rows."""
    model, idx = make(**fields), batch(3 * P + 9)
    with torch.no_grad():
        cache = model.new_cache(B, 3 * P + 9)
        for a, b in [(0, start), *((t, t + 1) for t in range(start, 3 * P + 9))]:
            cached, _ = model(idx[:, a:b], cache=cache)
            whole = logits_of(model, idx[:, :b])[:, -1:]
            torch.testing.assert_close(cached, whole, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(model(idx[:, :b])[0], whole, atol=1e-5, rtol=1e-5)


@variants
def test_several_bytes_at_a_time_behind_others(fields):
    model, idx = make(**fields), batch(24)
    with torch.no_grad():
        cache = model.new_cache(B, 24)
        for a, b in ((0, 3), (3, 7), (7, 8), (8, 12), (12, 13), (13, 24)):
            cached, _ = model(idx[:, a:b], cache=cache)
            whole = logits_of(model, idx[:, :b])[:, -1:]
            torch.testing.assert_close(cached, whole, atol=1e-5, rtol=1e-5)
        cache.reset()  # and anew
        cached, _ = model(idx[:, 5:12], cache=cache)
        whole = logits_of(model, idx[:, 5:12])[:, -1:]
        torch.testing.assert_close(cached, whole, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("fields", [{}, dict(cross_patch=2)], ids=str)
def test_the_global_model_steps_once_per_patch(fields):
    model, idx, calls = make(**fields), batch(24), []
    model.globl.register_forward_pre_hook(lambda m, args: calls.append(args[0].size(1)))
    with torch.no_grad():
        cache = model.new_cache(B, 24)
        model(idx[:, :6], cache=cache)
        assert sum(calls) == 2
        for t in range(6, 24):
            model(idx[:, t : t + 1], cache=cache)
            assert sum(calls) == cache.globl.used == math.ceil((t + 1) / P)
            assert cache.local.used == t % P + 1 <= P
    assert cache.local.k.size(3) == P + model.config.cross_patch


def test_one_prompt_becomes_several_rows():
    model, idx = make(cross_patch=2, conv_encoder=True), batch(16, rows=3)
    idx[:, :7] = idx[0, :7]
    with torch.no_grad():
        cache = model.new_cache(1, 16)
        model(idx[:1, :7], cache=cache)
        cache.expand(3)
        for t in range(7, 16):
            cached, _ = model(idx[:, t : t + 1], cache=cache)
            whole = logits_of(model, idx[:, : t + 1])[:, -1:]
            torch.testing.assert_close(cached, whole, atol=1e-5, rtol=1e-5)


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


@variants
def test_flops_are_those_counted(fields):
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    torch.manual_seed(0)
    sizes = dict(n_embd=64, local_embd=48, block_size=48)
    model = Megabyte(MegabyteConfig(**{**SHAPE, **sizes, **fields}))
    idx = batch(48)
    counter = FlopCounterMode(display=False)
    with counter, sdpa_kernel(SDPBackend.MATH):
        model(idx, idx)[1].backward()
    counted = counter.get_total_flops() / idx.numel()
    # the counter has no backward to the input of a first matrix, because embeddings need none
    assert counted == pytest.approx(model.flops_per_token(48), rel=0.02)


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


# ---- the contract of models ----


@variants
def test_every_parameter_learns_and_is_in_one_group(fields):
    model = make(**fields)
    model(batch(), batch(seed=2))[1].backward()
    groups = model.param_groups()
    assert set(groups) == {"matrices", "embeddings", "head", "scalars"}
    ids = [id(p) for group in groups.values() for p in group]
    assert len(ids) == len(set(ids)) and set(ids) == {id(p) for p in model.parameters()}
    assert all(p.dim() == 2 for p in groups["matrices"])
    assert all(p.dim() < 2 for p in groups["scalars"])
    names = {id(p): name for name, p in model.named_parameters()}
    tables = {names[id(p)] for p in groups["embeddings"]}
    assert {"global_wte.weight", "local_wte.weight", "global_pad", "local_pad"} <= tables
    assert len(groups["head"]) == (not model.config.tie_head)
    for name, p in model.named_parameters():
        assert p.grad is not None and p.grad.abs().sum() > 0, name
    optimizer = model.configure_optimizers(0.1, 1e-3, (0.9, 0.95), "cpu")
    assert sum(len(g["params"]) for g in optimizer.param_groups) == len(ids)


@pytest.mark.parametrize("name", ["paper", "all"])
def test_activation_checkpointing_changes_nothing(name):
    found = []
    for on in (False, True):
        model = make(**VARIANTS[name], activation_checkpointing=on).train()
        loss = model(batch(), batch(seed=2))[1]
        loss.backward()
        found.append([loss.detach(), *(p.grad for p in model.parameters())])
    for a, b in zip(*found):
        torch.testing.assert_close(a, b)


def test_rows_are_independent_however_many(monkeypatch):
    """More rows than a CUDA kernel takes are computed in parts."""
    model, idx = make(cross_patch=2), batch(20, rows=5)
    whole = logits_of(model, idx)
    monkeypatch.setattr("bonsai.models.megabyte.MAX_ROWS", 10)
    torch.testing.assert_close(logits_of(model, idx), whole)


def test_crop_block_size():
    model, idx = make(), batch(16)
    before = logits_of(model, idx)
    model.crop_block_size(16)
    assert model.config.block_size == 16 and torch.equal(logits_of(model, idx), before)
    with pytest.raises(AssertionError):
        model(batch(17))
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
        MegabyteConfig(**{**SHAPE, **fields})
    assert all(word in str(e.value) for word in words) and "\n" not in str(e.value)


def test_the_table_of_models_makes_it():
    assert MODELS["megabyte"] == (Megabyte, MegabyteConfig)
    model = build_model("megabyte", {**SHAPE, "learning_rate": 1e-3})
    assert isinstance(model, Megabyte) and model.config.patch_size == P


# ---- in the engine ----


@pytest.mark.parametrize("on_full", ["refill", "slide", "stop"])
@pytest.mark.parametrize("n", [1, 3])
def test_the_engine_gives_the_same_bytes_cached_or_not(on_full, n):
    """Also beyond the context, which moves on by whole patches."""
    model = make(position="rope", cross_patch=2).float()
    params = SamplingParams(60, temperature=1.0, seed=3)
    seen = []
    model.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    found = [
        list(generate(model, [5, 7, 1, 2, 3, 4, 2], params, n, cached, on_full))
        for cached in (True, False)
    ]
    assert found[0] == found[1] and len(found[0]) == (60 if on_full != "stop" else 24 - 7 + 1)


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


@pytest.mark.parametrize("prefix_cache", [0, 100])
@pytest.mark.parametrize("fields", [{}, dict(position="rope", cross_patch=3, conv_encoder=True)])
def test_requests_side_by_side_get_what_they_get_alone(fields, prefix_cache):
    """Rows at different places of their patches; slots that move; prompts that begin alike."""
    model = make(**fields).float()
    start = [3, 1, 4, 1, 5, 9]
    prompts = [start, [2, 7], [*start, 2, 6, 5], start[:4], [*start, 8]]
    engine = Engine(model, max_batch=3, prefix_cache=prefix_cache)
    requests = []
    for i, prompt in enumerate(prompts):
        params = SamplingParams(5 + 2 * i, seed=i, logprobs=1, prompt_logprobs=i == 2)
        requests += engine.submit(prompt, params, n=2 if i == 0 else 1)
    scored = {}
    while engine.busy:
        for event in engine.step():
            if event.prompt_logprobs:
                scored[event.request] = [p for p, _ in event.prompt_logprobs[1:]]
    for request in requests:
        rows = generate(model, request.prompt, request.params, 1, False, first_row=request.row)
        assert request.tokens == [row[0] for row in rows], request.prompt
    (found,) = scored.values()
    idx = torch.tensor([prompts[2]])
    logp = F.log_softmax(logits_of(model, idx)[0], dim=-1)[:-1].gather(1, idx[0, 1:, None])
    torch.testing.assert_close(torch.tensor(found), logp[:, 0], atol=1e-4, rtol=1e-4)
