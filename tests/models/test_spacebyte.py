"""SpaceByte: its rule for patches, causality, caches, and the contract of models."""

import math

import pytest
import torch
from torch.nn import functional as F

from bonsai.engine import Engine, SamplingParams, generate
from bonsai.models.spacebyte import Spacebyte, SpacebyteConfig, space_like
from bonsai.models.table import MODELS, build_model

SHAPE = dict(block_size=40, n_layer=2, n_head=2, n_embd=32, patch_size=4, local_layer=2)
SHAPE |= dict(local_head=2, local_embd=16, local_window=0)
MODERN = dict(
    bias=False, norm="rmsnorm", norm_gain=False, norm_embedding=True, position="rope",
    activation="relu2", qk_norm=True, tie_head=False, logit_softcap=15.0,
)  # fmt: skip
VARIANTS = {
    "plain": {},
    "fixed": dict(boundary="fixed"),
    "modern": MODERN,
    "modern, fixed": dict(**MODERN, boundary="fixed", n_kv_head=1),
    "sinusoidal": dict(position="sinusoidal", local_layer=4),
    "windows": dict(position="rope", local_window=5),
}
variants = pytest.mark.parametrize("fields", VARIANTS.values(), ids=VARIANTS)
TEXT = b"a few words. 2 x=[1,\xc3\xa9t\xc3\xa9] \xe6\x9c\xa8\xe6\x9c\xa8  End!\n"


def make(**fields) -> Spacebyte:
    """A model with weights so large that all depends on all it may depend on."""
    torch.manual_seed(0)
    model = Spacebyte(SpacebyteConfig(**{**SHAPE, **fields})).double().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return model


def batch(t: int = 36) -> torch.Tensor:
    """Two rows of text, whose patches begin at different places."""
    ids = torch.tensor(list(TEXT * 2))
    return torch.stack((ids[:t], ids[7 : 7 + t]))


def logits_of(model: Spacebyte, idx: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(idx, idx)[0]


def chosen(model: Spacebyte, idx: torch.Tensor) -> torch.Tensor:
    return model.boundaries(idx, torch.full_like(idx[:, :1], -1), torch.arange(idx.size(1))[None])


# ---- where patches begin ----


def test_what_looks_like_a_space():
    """Letters, digits and continuation bytes do not; lead bytes and the end of a text do."""
    inside = {*b"0123456789", *range(ord("A"), ord("Z") + 1), *range(ord("a"), ord("z") + 1)}
    inside |= set(range(0x80, 0xC0))
    ids = torch.arange(257)
    assert {int(i) for i in ids[~space_like(ids)]} == inside


def test_patches_begin_with_the_first_of_several_spaces():
    model = make()
    idx = torch.tensor([list(TEXT)])
    begins = chosen(model, idx)[0].nonzero().flatten().tolist()
    spelled = [TEXT[a:b] for a, b in zip(begins, [*begins[1:], len(TEXT)])]
    assert spelled == [
        b"a", b" few", b" words", b". 2", b" x", b"=[1", b",\xc3\xa9t", b"\xc3\xa9",
        b"] \xe6\x9c\xa8", b"\xe6\x9c\xa8", b"  End", b"!\n",
    ]  # fmt: skip
    ends = torch.tensor([[97, 256, 256, 98]])
    assert chosen(model, ends)[0].tolist() == [True, True, True, False]
    fixed = chosen(make(boundary="fixed"), idx)[0].nonzero().flatten().tolist()
    assert fixed == list(range(0, len(TEXT), 4))


@pytest.mark.parametrize("boundary", ["space", "fixed"])
def test_a_boundary_depends_on_no_later_byte(boundary):
    model, idx = make(boundary=boundary), batch()
    whole = chosen(model, idx)
    for t in range(1, 36):
        assert torch.equal(chosen(model, idx[:, :t]), whole[:, :t])
        other = idx.clone()
        other[:, t:] = torch.randint(256, other[:, t:].shape)
        assert torch.equal(chosen(model, other)[:, :t], whole[:, :t])


# ---- the model ----


@pytest.mark.parametrize("name", [n for n in VARIANTS if n != "windows"])
def test_causality_by_gradient(name):
    """The logits at t depend on the embeddings at 0..t and on none after."""
    fields = VARIANTS[name]
    model, idx, seen = make(**fields), batch(), []

    def keep(module, args, output):
        output.retain_grad()
        seen.append(output)

    model.wte.register_forward_hook(keep)
    for t in (0, 6, 17, 35):
        seen.clear()
        logits, _ = model(idx, idx)
        (logits[:, t] * torch.randn(257)).sum().backward()
        size = seen[0].grad.abs().amax(dim=-1)
        assert (size[:, t + 1 :] == 0).all()
        assert (size[:, : t + 1] > 0).all()


@variants
def test_no_byte_sees_the_future(fields):
    model, idx = make(**fields), batch()
    before = logits_of(model, idx)
    for c in range(1, 36, 3):
        other = idx.clone()
        other[:, c:] = 255 - other[:, c:]
        after = logits_of(model, other)
        # as many global positions or not, only rounding may differ
        torch.testing.assert_close(before[:, :c], after[:, :c], atol=1e-6, rtol=1e-6)
        assert (before[:, c] != after[:, c]).any()


@variants
def test_the_blocks_row_by_row(fields):
    """Index by index: global blocks at the chosen positions, on the stream widened by zeros."""
    model, idx = make(**fields), batch()
    logits = logits_of(model, idx)
    with torch.no_grad():
        for b in range(2):
            x = model.wte.weight[idx[b]]
            if model.config.position == "learned":
                x = x + model.wpe.weight[:36]
            elif model.config.position == "sinusoidal":
                i = torch.arange(0, 16, 2)
                angle = torch.arange(36)[:, None] / 10000 ** (i / 16)
                x = x.clone()
                x[:, 0::2] += angle.sin()
                x[:, 1::2] += angle.cos()
            x = model.before(x[None])[0]
            places = chosen(model, idx[b : b + 1])[0].nonzero().flatten().tolist()
            wide = torch.zeros(1, len(places), 32, dtype=torch.float64)
            for k, t in enumerate(places):
                wide[0, k, 16:] = x[t]
            out = model.globl(wide)[0]
            for k, t in enumerate(places):
                x[t] = out[k, 16:]
            expected = model.head(model.behind(x[None]))[0]
            torch.testing.assert_close(logits[b], expected, atol=1e-5, rtol=1e-5)


def test_every_byte_counts():
    model, idx = make(), torch.zeros(2, 20, dtype=torch.int64)
    logits, loss = model(idx, idx)
    assert loss.item() == pytest.approx(F.cross_entropy(logits.flatten(0, 1), idx.flatten()).item())
    targets = idx.clone()
    targets[:, 5:] = -1
    logits, loss = model(idx, targets)
    expected = F.cross_entropy(logits[:, :5].flatten(0, 1), idx[:, :5].flatten())
    assert loss.item() == pytest.approx(expected.item())


@pytest.mark.parametrize("boundary", ["space", "fixed"])
def test_random_bytes_teach_nothing(boundary):
    torch.manual_seed(0)
    shape = {**SHAPE, "vocab_size": 256, "block_size": 64, "boundary": boundary}
    model = Spacebyte(SpacebyteConfig(**shape))
    optimizer = model.configure_optimizers(0.1, 3e-3, (0.9, 0.95), "cpu")
    generator = torch.Generator().manual_seed(1)

    def window():
        data = torch.randint(256, (16, 65), generator=generator)
        return data[:, :-1], data[:, 1:]

    for _ in range(60):
        optimizer.zero_grad()
        model(*window())[1].backward()
        optimizer.step()
    with torch.no_grad():
        bits = torch.stack([model(*window())[1] for _ in range(40)]).mean().item() / math.log(2)
    assert 7.99 <= bits < 8.2


# ---- caches ----


@variants
@pytest.mark.parametrize("start", [1, 2, 6, 11])
def test_cached_equals_whole_at_every_length(fields, start):
    """Rows whose patches begin at different places, in one cache."""
    model, idx = make(**fields), batch(36)
    with torch.no_grad():
        cache = model.new_cache(2, 36)
        for a, b in [(0, start), *((t, t + 1) for t in range(start, 30)), (30, 36)]:
            cached, _ = model(idx[:, a:b], cache=cache)
            whole = logits_of(model, idx[:, :b])[:, -1:]
            torch.testing.assert_close(cached, whole, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(model(idx[:, :b])[0], whole, atol=1e-5, rtol=1e-5)


def test_global_blocks_run_where_patches_begin():
    model, idx, calls = make(), batch(36)[:1], []
    model.globl.register_forward_pre_hook(lambda m, args: calls.append(args[0].size(1)))
    with torch.no_grad():
        cache = model.new_cache(1, 36)
        model(idx[:, :9], cache=cache)
        for t in range(9, 36):
            model(idx[:, t : t + 1], cache=cache)
            assert sum(calls) == chosen(model, idx[:, : t + 1]).sum() == cache.globl.lengths[0]


@pytest.mark.parametrize("on_full", ["refill", "slide", "stop"])
@pytest.mark.parametrize("boundary", ["space", "fixed"])
def test_the_engine_gives_the_same_bytes_cached_or_not(boundary, on_full):
    model = make(position="rope", boundary=boundary).float()
    params = SamplingParams(70, seed=3)
    found = [
        list(generate(model, list(b"two b"), params, 3, cached, on_full))
        for cached in (True, False)
    ]
    assert found[0] == found[1] and len(found[0]) == (70 if on_full != "stop" else 36)


@pytest.mark.parametrize("prefix_cache", [0, 100])
@pytest.mark.parametrize("boundary", ["space", "fixed"])
def test_requests_side_by_side_get_what_they_get_alone(boundary, prefix_cache):
    model = make(position="rope", boundary=boundary).float()
    prompts = [b"to be or", b"x", b"to be, or not", b"to b", b"to be or not"]
    engine = Engine(model, max_batch=3, prefix_cache=prefix_cache)
    requests = []
    for i, prompt in enumerate(prompts):
        params = SamplingParams(5 + 2 * i, seed=i, logprobs=1, prompt_logprobs=i == 2)
        requests += engine.submit(list(prompt), params, n=2 if i == 0 else 1)
    while engine.busy:
        engine.step()
    for request in requests:
        rows = generate(model, request.prompt, request.params, 1, False, first_row=request.row)
        assert request.tokens == [row[0] for row in rows], request.prompt


# ---- the contract of models ----


@variants
def test_every_parameter_learns_and_is_in_one_group(fields):
    model = make(**fields)
    model(batch(), batch().flip(1))[1].backward()
    groups = model.param_groups()
    ids = [id(p) for group in groups.values() for p in group]
    assert len(ids) == len(set(ids)) and set(ids) == {id(p) for p in model.parameters()}
    assert all(p.dim() == 2 for p in groups["matrices"])
    assert all(p.dim() < 2 for p in groups["scalars"])
    for name, p in model.named_parameters():
        assert p.grad is not None and p.grad.abs().sum() > 0, name


@pytest.mark.parametrize("fields", [{}, MODERN], ids=["plain", "modern"])
def test_flops_are_those_counted(fields):
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    sizes = dict(n_embd=64, local_embd=48, boundary="fixed")
    torch.manual_seed(0)
    model = Spacebyte(SpacebyteConfig(**{**SHAPE, **sizes, **fields}))
    idx = torch.randint(256, (2, 40))
    counter = FlopCounterMode(display=False)
    with counter, sdpa_kernel(SDPBackend.MATH):
        model(idx, idx)[1].backward()
    assert counter.get_total_flops() / idx.numel() == pytest.approx(
        model.flops_per_token(40), rel=0.02
    )


def test_crop_block_size():
    model, idx = make(), batch(16)
    before = logits_of(model, idx)
    model.crop_block_size(16)
    assert model.config.block_size == 16 and torch.equal(logits_of(model, idx), before)
    with pytest.raises(AssertionError):
        model(batch(17))


@pytest.mark.parametrize(
    "fields, words",
    [
        (dict(boundary="word"), ["boundary", "word", "space, fixed"]),
        (dict(local_layer=3), ["local_layer=3", "odd"]),
        (dict(local_layer=0), ["local_layer=0"]),
        (dict(patch_size=0), ["patch_size=0"]),
        (dict(local_window=-1), ["local_window=-1"]),
        (dict(local_embd=64), ["local_embd=64", "n_embd=32"]),
        (dict(local_embd=15), ["local", "n_embd=15"]),
    ],
    ids=str,
)
def test_choices_that_do_not_go_together_are_named(fields, words):
    with pytest.raises(ValueError) as e:
        SpacebyteConfig(**{**SHAPE, **fields})
    assert all(word in str(e.value) for word in words) and "\n" not in str(e.value)


def test_the_table_of_models_makes_it():
    assert MODELS["spacebyte"] == (Spacebyte, SpacebyteConfig)
    assert isinstance(build_model("spacebyte", {**SHAPE, "learning_rate": 1e-3}), Spacebyte)
