"""model.py: every choice of GPTConfig, and the surface that nanoGPT's users rely on."""

import inspect
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from model import ACTIVATIONS, CLASSIC_KEYS, GPT, GPTConfig, Norm, attention, causal_mask

B, T, V = 2, 12, 29
SHAPE = dict(block_size=16, vocab_size=V, n_layer=2, n_head=4, n_embd=32)

# one or more for each field; a modern GPT last
VARIANTS = {
    "classic": {},
    "no bias": dict(bias=False),
    "norm bias alone": dict(bias=False, norm_bias=True),
    "bias, none in the norms": dict(bias=True, norm_bias=False),
    "rmsnorm": dict(norm="rmsnorm"),
    "rmsnorm, no gain": dict(norm="rmsnorm", norm_gain=False),
    "layernorm, no gain": dict(norm_gain=False, norm_bias=False),
    "post norm": dict(norm_placement="post"),
    "norm of the embedding": dict(norm_embedding=True),
    "sinusoidal": dict(position="sinusoidal"),
    "rope": dict(position="rope"),
    "rope, other base": dict(position="rope", rope_base=500000.0),
    "no positions": dict(position="none"),
    "gelu_tanh": dict(activation="gelu_tanh"),
    "relu": dict(activation="relu"),
    "relu2": dict(activation="relu2"),
    "swiglu": dict(activation="swiglu"),
    "grouped queries": dict(n_kv_head=2),
    "one key head": dict(n_kv_head=1),
    "wide heads": dict(head_size=12),
    "heads that do not divide n_embd": dict(n_head=3, head_size=10),
    "qk_norm": dict(qk_norm=True),
    "attention scale": dict(attention_scale=0.5),
    "untied head": dict(tie_head=False),
    "softcap": dict(logit_softcap=5.0),
    "zero init": dict(zero_init=True),
    "activation checkpointing": dict(activation_checkpointing=True),
    "variance by fan-in": dict(init="fan_in", tie_head=False, zero_init=True),
    "residual lambdas": dict(residual_lambdas=True),
    "value embeddings": dict(value_embeddings=True),
    "value embeddings, grouped": dict(value_embeddings=True, n_kv_head=2, head_size=12),
    "bigrams": dict(bigram_embeddings=2),
    "window": dict(attention_window=4),
    "window of one": dict(attention_window=1),
    "alternating window, grouped": dict(attention_window=3, window_pattern="DL", n_kv_head=2),
    "modern": dict(
        bias=False,
        norm="rmsnorm",
        norm_gain=False,
        norm_embedding=True,
        position="rope",
        activation="relu2",
        qk_norm=True,
        n_kv_head=2,
        tie_head=False,
        logit_softcap=15.0,
        zero_init=True,
        residual_lambdas=True,
        value_embeddings=True,
        bigram_embeddings=1,
        attention_window=5,
        window_pattern="LD",
    ),
}
variants = pytest.mark.parametrize("fields", VARIANTS.values(), ids=VARIANTS)


def make(**fields) -> GPT:
    torch.manual_seed(0)
    return GPT(GPTConfig(**{**SHAPE, **fields}))


def batch(seed: int = 1, t: int = T) -> torch.Tensor:
    return torch.randint(V, (B, t), generator=torch.Generator().manual_seed(seed))


def shaken(model: GPT) -> GPT:
    """Weights large and irregular enough that everything depends on everything it may."""
    torch.manual_seed(3)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return model


# ---- forward ----


@variants
def test_shapes_and_loss(fields):
    model, idx, targets = make(**fields), batch(), batch(2)
    logits, loss = model(idx, targets)
    assert logits.shape == (B, T, V) and logits.dtype == torch.float32
    assert loss.item() == pytest.approx(
        F.cross_entropy(logits.flatten(0, 1), targets.flatten()).item()
    )
    assert abs(loss.item() - math.log(V)) < 0.2  # a new model knows nothing
    last, none = model.eval()(idx)
    assert last.shape == (B, 1, V) and none is None
    torch.testing.assert_close(last[:, 0], model(idx, targets)[0][:, -1])


@variants
def test_causality_by_gradient(fields):
    """The logits at t depend on the embeddings at 0..t (each of them), and on none after."""
    model, idx = shaken(make(**fields)), batch()
    # how far local layers alone see: their windows add up
    windows = [block.attn.window for block in model.transformer.h]
    back = sum(w - 1 for w in windows) if all(windows) else T
    seen = []

    def keep(module, args, output):
        output.retain_grad()
        seen.append(output)

    model.transformer.wte.register_forward_hook(keep)
    for t in (0, 5, T - 1):
        seen.clear()
        logits, _ = model(idx, batch(2))
        (logits[:, t] * torch.randn(V)).sum().backward()
        size = seen[0].grad.abs().amax(dim=-1)  # (B, T)
        assert (size[:, t + 1 :] == 0).all()
        assert (size[:, max(0, t - back) : t + 1] > 0).all()


@variants
def test_every_parameter_learns_and_is_in_one_group(fields):
    model = shaken(make(**fields))
    _, loss = model(batch(), batch(2))
    loss.backward()
    groups = model.param_groups()
    assert set(groups) == {"matrices", "embeddings", "tables", "head", "scalars", "residual"}
    ids = [id(p) for group in groups.values() for p in group]
    assert len(ids) == len(set(ids)) and set(ids) == {id(p) for p in model.parameters()}
    assert all(p.dim() == 2 for p in groups["matrices"])
    gates = [block.attn.gate.weight for block in model.transformer.h if block.attn.gate]
    assert all(p.dim() < 2 or any(p is g for g in gates) for p in groups["scalars"])
    for name, p in model.named_parameters():
        assert p.grad is not None and p.grad.abs().sum() > 0, name
    optimizer = model.configure_optimizers(0.1, 1e-3, (0.9, 0.95), "cpu")
    grouped = [id(p) for g in optimizer.param_groups for p in g["params"]]
    assert len(grouped) == len(set(grouped)) == len(list(model.parameters()))
    decayed, others = optimizer.param_groups
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.1, 0.0)
    assert all(p.dim() >= 2 for p in decayed["params"])
    assert all(p.dim() < 2 for p in others["params"])


@pytest.mark.parametrize("name", ["classic", "modern"])
def test_activation_checkpointing_changes_nothing(name):
    """Gradients too, and with dropout: the recomputed masks are the first ones."""
    grads = []
    for on in (False, True):
        model = make(**VARIANTS[name], dropout=0.3, activation_checkpointing=on)
        torch.manual_seed(7)
        _, loss = model(batch(), batch(2))
        loss.backward()
        grads.append([loss.detach(), *(p.grad for p in model.parameters())])
    for a, b in zip(*grads):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


def record_streams(model: GPT) -> list[torch.dtype]:
    """A list that gets the dtype of the stream before and after each block as the model runs."""
    seen = []
    for block in model.transformer.h:
        block.register_forward_hook(lambda _, args, y: seen.extend((args[0].dtype, y.dtype)))
    return seen


def loss_and_gradients(model: GPT, dtype=torch.bfloat16) -> list[torch.Tensor]:
    torch.manual_seed(7)
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        loss = model(batch(), batch(2), return_logits=False)[1]
    loss.backward()
    return [loss.detach(), *(p.grad for p in model.parameters())]


@pytest.mark.parametrize("float32_norms", [False, True])  # True: as CUDA's autocast has them
@variants
def test_a_stream_in_bfloat16(fields, float32_norms, monkeypatch):
    """Before and after every block, in all variants; with gradients that are those of a stream in
    float32, up to rounding and the kinks of ReLU, and in float32."""
    if float32_norms:
        norm = Norm.forward
        monkeypatch.setattr(Norm, "forward", lambda self, x: norm(self, x.float()))
    results = []
    for on, dtype in ((False, torch.float32), (True, torch.bfloat16)):
        model = shaken(make(**fields, bfloat16_stream=on))
        seen = record_streams(model)
        results.append(loss_and_gradients(model))
        assert set(seen) == {dtype} and len(seen) >= 2 * model.config.n_layer
    for a, b in zip(*results):
        assert a.dtype == b.dtype == torch.float32 and (a - b).norm() <= 0.2 * a.norm()


def test_a_stream_is_in_bfloat16_only_where_products_are():
    """Else nothing changes: without autocast, and in float16, which reaches less far."""
    for dtype in (torch.float32, torch.float16):
        results = []
        for on in (False, True):
            model = shaken(make(bfloat16_stream=on))
            seen = record_streams(model)
            results.append(loss_and_gradients(model, dtype))
            assert set(seen) == {torch.float32}
        assert all(map(torch.equal, *results))


@torch.no_grad()
def test_a_stream_in_bfloat16_is_that_of_weights_in_bfloat16():
    """Decoding has such weights: its logits differ by rounding alone."""
    model = shaken(make(**VARIANTS["modern"], bfloat16_stream=True))
    exact = model(batch(), batch())[0]
    with torch.autocast("cpu", torch.bfloat16):
        trained = model(batch(), batch())[0]
    decoded = model.bfloat16()(batch(), batch())[0]
    assert (decoded - trained).norm() <= 0.05 * exact.norm()


def test_queries_and_keys_are_of_one_tensor(monkeypatch):
    """In the precision of the products, whatever a norm returns (autocast's on CUDA: fp32)."""
    norm, seen = F.rms_norm, []
    monkeypatch.setattr(F, "rms_norm", lambda *given: norm(*given).float())
    model = make(norm="rmsnorm", qk_norm=True, position="rope", n_layer=1, norm_gain=False)
    block = model.transformer.h[0].bfloat16()
    block.attn.attend = lambda q, k, v, *rest: seen.extend((q, k, v)) or attention(q, k, v, *rest)
    block.attn(torch.randn(B, T, 32).bfloat16(), [torch.ones(T, 8), torch.zeros(T, 8)])
    q, k, v = seen
    assert q.dtype == k.dtype == v.dtype == torch.bfloat16
    assert q.untyped_storage().data_ptr() == k.untyped_storage().data_ptr()


def test_targets_of_minus_1_are_ignored():
    model, idx, targets = make(), batch(), batch(2)
    targets[:, :7] = -1
    logits, loss = model(idx, targets)
    expected = F.cross_entropy(logits[:, 7:].flatten(0, 1), targets[:, 7:].flatten())
    assert loss.item() == pytest.approx(expected.item())


def test_positions_are_told_apart_exactly_where_they_should_be():
    """Without positions a reordered past gives the same answer; with them it does not."""
    idx = batch()
    mixed = idx.clone()
    mixed[:, :-1] = idx[:, :-1].flip(1)
    for position in ("none", "learned", "sinusoidal", "rope"):
        # one layer: deeper ones know the order from the causal mask
        model = shaken(make(position=position, n_layer=1)).eval()
        same = torch.allclose(model(idx)[0], model(mixed)[0], atol=1e-5)
        assert same == (position == "none"), position


def test_rope_knows_only_distances():
    """Queries and keys turned at positions p and p + d have a product that depends on d alone."""
    from model import rope_angles, rotate

    q, k = torch.randn(2, 1, 1, 1, 16)
    cos, sin = rope_angles(torch.arange(40), 16, 10000.0)

    def product(p, d):
        a = rotate(q, (cos[[p]], sin[[p]]))
        b = rotate(k, (cos[[p + d]], sin[[p + d]]))
        return (a * b).sum().item()

    for d in (0, 1, 7):
        assert product(0, d) == pytest.approx(product(30, d), abs=1e-4)


def test_softcap_bounds_the_logits():
    model = shaken(make(logit_softcap=0.5))
    assert model(batch(), batch())[0].abs().max() <= 0.5


def test_zero_init_starts_as_the_identity():
    model = make(zero_init=True)
    for name, p in model.named_parameters():
        assert name.endswith("c_proj.weight") <= bool((p == 0).all())


@variants
@pytest.mark.parametrize("init", ["gpt2", "fan_in"])
def test_weights_are_those_of_all_draws_one_after_another(fields, init, monkeypatch):
    """Those that nobody sees are left out only where no other weight depends on them."""

    def all_draws(model: GPT) -> None:
        for path, module in model.named_modules():
            table = path.split(".")[0] in ("values", "bigrams")
            if isinstance(module, nn.Linear | nn.Embedding) and not table:
                fan_in = 1 / 3 if isinstance(module, nn.Embedding) else module.in_features
                module.weight.normal_(std=0.02 if init == "gpt2" else (3 * fan_in) ** -0.5)
        for name, p in model.named_parameters():
            if init == "gpt2" and name.endswith("c_proj.weight"):
                p.normal_(std=0.02 / math.sqrt(2 * model.config.n_layer))
            ends = name.split(".")[-2:]
            if model.config.zero_init and ends in (["c_proj", "weight"], ["lm_head", "weight"]):
                p.zero_()
            if ends == ["gate", "weight"] or name.split(".")[0] in ("values", "bigrams"):
                p.zero_()

    fields = {**fields, "init": init}
    weights = make(**fields)
    monkeypatch.setattr(GPT, "init_weights", torch.no_grad()(all_draws))
    wanted = dict(make(**fields).named_parameters())
    for name, p in weights.named_parameters():
        if p.dim() >= 2:
            assert torch.equal(p, wanted[name]), name


def test_tables_that_start_at_0_are_not_drawn(monkeypatch):
    """Neither by us nor by torch; the others are the same with bigrams and without."""
    normal, drawn = nn.init.normal_, []
    monkeypatch.setattr(nn.init, "normal_", lambda p, **how: drawn.append(p) or normal(p, **how))
    fields = dict(value_embeddings=True, bigram_embeddings=3, tie_head=False)
    model = make(init="fan_in", **fields)
    tables = [model.bigrams, *model.values.values()]
    assert len(tables) == 2 and all((table.weight == 0).all() for table in tables)
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            times = sum(p is module.weight for p in drawn)
            assert times == (module not in tables) * (1 + isinstance(module, nn.Embedding))
    without, with_bigrams = make(tie_head=False), make(tie_head=False, bigram_embeddings=3)
    for name, p in without.named_parameters():
        assert torch.equal(p, with_bigrams.get_parameter(name)), name


# ---- configuration ----


@pytest.mark.parametrize(
    "fields, words",
    [
        (dict(n_embd=33), ["n_embd=33", "n_head=4"]),
        (dict(n_kv_head=3), ["n_head=4", "n_kv_head=3"]),
        (dict(norm="batchnorm"), ["norm", "batchnorm", "rmsnorm"]),
        (dict(position="alibi"), ["position", "alibi", "rope"]),
        (dict(activation="tanh"), ["activation", "tanh", "swiglu"]),
        (dict(norm_placement="mid"), ["norm_placement", "post"]),
        (dict(norm_bias="yes"), ["norm_bias", "auto"]),
        (dict(position="rope", head_size=7), ["rope", "even", "7"]),
        (dict(dropout=1.0), ["dropout=1.0"]),
        (dict(dropout=-0.1), ["dropout=-0.1"]),
        (dict(n_layer=0), ["n_layer=0"]),
        (dict(block_size=0), ["block_size=0"]),
        (dict(vocab_size=0), ["vocab_size=0"]),
        (dict(n_kv_head=-2), ["n_kv_head=-2"]),
        (dict(head_size=-4), ["head_size=-4"]),
    ],
    ids=str,
)
def test_choices_that_do_not_go_together_are_named(fields, words):
    with pytest.raises(ValueError) as e:
        GPTConfig(**{**SHAPE, **fields})
    assert all(word in str(e.value) for word in words) and "\n" not in str(e.value)


def test_the_defaults_are_nanogpts():
    c = GPTConfig()
    assert {k: getattr(c, k) for k in CLASSIC_KEYS} == dict(
        n_layer=12,
        n_head=12,
        n_embd=768,
        block_size=1024,
        bias=True,
        vocab_size=50304,
        dropout=0.0,
    )


# ---- the surface nanoGPT's users know ----


def test_names_and_signatures():
    def names(f):
        return [p for p in inspect.signature(f).parameters if p != "self"]

    assert names(GPT.forward)[:2] == ["idx", "targets"]
    assert names(GPT.generate) == ["idx", "max_new_tokens", "temperature", "top_k"]
    assert names(GPT.from_pretrained) == ["source", "override_args"]
    assert names(GPT.crop_block_size) == ["block_size"]
    expected = ["weight_decay", "learning_rate", "betas", "device_type"]
    assert names(GPT.configure_optimizers)[:4] == expected
    assert names(GPT.estimate_mfu)[:2] == ["fwdbwd_per_iter", "dt"]
    assert names(GPT.get_num_params) == ["non_embedding"]


def test_crop_block_size():
    model = make().eval()
    idx = batch(t=8)
    before = model(idx, idx)[0]
    model.crop_block_size(8)
    assert model.config.block_size == 8 and model.transformer.wpe.weight.shape == (8, 32)
    assert torch.equal(model(idx, idx)[0], before)
    assert model.transformer.wpe.weight.requires_grad
    with pytest.raises(AssertionError):
        model(batch(t=9))
    with pytest.raises(AssertionError):
        model.crop_block_size(9)
    rope = make(position="rope")
    rope.crop_block_size(8)
    assert rope.config.block_size == 8


def test_generate():
    model = shaken(make()).eval()
    idx = batch(t=3)
    greedy = model.generate(idx, 20, temperature=0)  # beyond block_size as well
    assert greedy.shape == (B, 23) and torch.equal(greedy[:, :3], idx)
    assert torch.equal(greedy, model.generate(idx, 20, temperature=0))
    assert torch.equal(greedy, model.generate(idx, 20, top_k=1))
    assert torch.equal(greedy[:, 3], model(idx)[0][:, -1].argmax(-1))
    drawn = []
    for top_k in (None, 0, V, V + 100):  # all of them: no limit
        torch.manual_seed(0)
        drawn.append(model.generate(idx, 10, temperature=1.5, top_k=top_k))
    assert all(torch.equal(drawn[0], d) for d in drawn[1:])
    torch.manual_seed(0)
    # (1, 4): the four likeliest first tokens, and no others
    best = set(model(idx[:1])[0][0, -1].topk(4).indices.tolist())
    rows = model.generate(idx[:1].expand(300, -1), 1, temperature=1.0, top_k=4)[:, -1]
    assert set(rows.tolist()) <= best and len(set(rows.tolist())) > 1
    assert not rows.requires_grad


@variants
def test_sizes_and_flops(fields):
    model = make(**fields)
    c = model.config
    total = sum(p.numel() for p in model.parameters())
    looked_up = 0
    if c.position == "learned":
        looked_up += 16 * 32
    if not c.tie_head:
        looked_up += V * 32
    if c.value_embeddings:  # of the second of two layers
        looked_up += V * c.kv_heads * c.head_dim
    looked_up += c.bigram_embeddings * V * 32
    assert model.num_params(non_embedding=False) == total
    assert model.num_params() == model.get_num_params() == total - looked_up
    width = c.n_head * (c.head_size or c.n_embd // c.n_head)
    for t in (16, 5):
        seen = sum(min(t, block.attn.window or t) for block in model.transformer.h)
        expected = 6 * (total - looked_up) + 12 * width * seen
        assert model.flops_per_token(t) == expected
    # 8 rows of 16 tokens in a tenth of a second, of an A100's peak
    assert model.estimate_mfu(8, 0.1) == pytest.approx(
        model.flops_per_token(16) * 16 * 8 / 0.1 / 312e12
    )
    assert model.estimate_mfu(8, 0.1, peak_flops=1e12) == pytest.approx(
        model.estimate_mfu(8, 0.1) * 312
    )


def test_gpt2_has_124m_parameters():
    with torch.device("meta"):
        model = GPT(GPTConfig())
    assert f"{model.num_params() / 1e6:.2f}M" == "123.69M"
    assert model.num_params(non_embedding=False) == 124475904


def test_a_cache_continues_where_it_stopped():
    """A prefill of 5, then 3 and 1 tokens: the logits of the whole (engine tests do the rest)."""
    for fields in (VARIANTS["classic"], VARIANTS["modern"]):
        model, idx = shaken(make(**fields)).eval(), batch(t=9)
        with torch.no_grad():
            cache = model.new_cache(B, 9)
            for a, b in ((0, 5), (5, 8), (8, 9)):
                logits, _ = model(idx[:, a:b], cache=cache)
                assert logits.shape == (B, 1, V)
                torch.testing.assert_close(logits, model(idx[:, :b])[0], atol=1e-5, rtol=1e-4)


def test_a_second_loss_is_of_the_token_after_next():
    """It adds its gradient to that of the loss, and nothing to the loss itself."""
    model, idx, targets = shaken(make(tie_head=False)), batch(), batch(2)
    targets[0, 4:7] = -1

    def gradient(loss):
        return torch.autograd.grad(loss, model.transformer.h[0].mlp.c_fc.weight)[0]

    logits, loss = model(idx, targets)
    second = [
        F.cross_entropy(logits[b, t], targets[b, t + 1])
        for b in range(B)
        for t in range(T - 1)
        if targets[b, t + 1] >= 0
    ]
    want = gradient(loss + 0.3 * sum(second) / (targets >= 0).sum())
    model.further = torch.tensor(0.3)
    _, got = model(idx, targets, return_logits=False)
    assert got.item() == loss.item()
    torch.testing.assert_close(gradient(got), want, rtol=1e-4, atol=1e-6)
    with torch.no_grad():  # where there is no gradient, there is no second loss to compute
        assert torch.equal(model(idx, targets, return_logits=False)[1], loss)
    targets[:, 1:] = -1  # no second target is left: the first alone counts
    alone = gradient(model(idx, targets)[1])
    torch.testing.assert_close(gradient(model(idx, targets, return_logits=False)[1]), alone)


# ---- attention windows ----


@pytest.mark.parametrize("window", [0, 1, 5, 40])
def test_a_mask_says_what_a_query_sees(window):
    i, j = torch.arange(21)[:, None], torch.arange(21)
    seen = (j <= i) & (j > i - (window or 21))
    assert torch.equal(causal_mask(21, 21, window, "cpu"), seen)
    assert torch.equal(causal_mask(5, 21, window, "cpu"), seen[-5:])
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 4, 21, 8), torch.randn(2, 2, 21, 8), torch.randn(2, 2, 21, 8)
    want = attention(q, k, v, seen, 0, 0.3, 0.0)
    torch.testing.assert_close(attention(q, k, v, None, window, 0.3, 0.0), want)
    one = attention(q[:, :, -1:], k, v, None, 0, 0.3, 0.0)  # a single query sees all keys
    torch.testing.assert_close(one, attention(q, k, v, None, 0, 0.3, 0.0)[:, :, -1:])


def test_a_window_hides_what_lies_before_it():
    """Two layers of window 3 see 4 positions back, by gradient; a dense one sees all."""
    for pattern, back in (("L", 4), ("D", T - 1), ("DL", T - 1)):
        model = shaken(make(n_layer=2, attention_window=3, window_pattern=pattern))
        x = model.transformer.wte.weight[batch()].detach().requires_grad_()
        model.transformer.wte = torch.nn.Identity()
        model.transformer.wpe.weight.requires_grad_(False)
        logits, _ = model(x)
        logits.sum().backward()
        reached = x.grad.abs().sum(dim=(0, 2)) > 0
        assert reached.nonzero().min() == T - 1 - back


@variants
def test_queries_keys_and_values_are_of_one_dtype(fields):
    """That of products. Torch's attention makes them so, but not FlexAttention of every release."""
    model, seen = make(**fields), []

    def look(q, k, v, *rest):
        seen.append({q.dtype, k.dtype, v.dtype})
        return attention(q, k, v, *rest)

    for block in model.transformer.h:
        block.attn.attend = look
    with torch.autocast("cpu", torch.bfloat16):
        model(batch(), batch())
    assert seen == [{torch.bfloat16}] * 2


def test_value_embeddings_gate_each_head():
    model = shaken(make(value_embeddings=True, n_layer=3))
    assert sorted(model.values) == ["0", "2"]
    model(batch(), batch())[1].backward()
    for name, p in model.named_parameters():
        assert p.grad.abs().sum() > 0, name


def test_a_bigram_is_a_token_and_the_one_before_it():
    """What is added to the stream depends on both and on their order; 0 stands before the first."""
    model, added = make(bigram_embeddings=10**3), []
    model.bigrams.register_forward_hook(lambda module, args, output: added.append(args[0]))
    model(torch.tensor([[3, 5, 3, 5, 0, 3]]))
    first, a, b, again, _, last = added[0][0].tolist()
    assert a == again and first == last and len({first, a, b}) == 3
    assert not model.bigrams.weight.any()  # a new model is the one without
    model.bigrams.weight.requires_grad_(False).normal_()
    assert (model(batch())[0] - make()(batch())[0]).abs().max() > 1e-3


def test_squared_relu():
    x = torch.randn(50)
    assert torch.equal(ACTIVATIONS["relu2"](x), x.relu() ** 2)


@pytest.mark.parametrize(
    "name, dynamic",
    [*((name, None) for name in ("classic", "one key head", "window", "modern")), ("modern", True)],
)
def test_compiled_without_a_break_at_any_length(name, dynamic):
    """From the second length on torch.compile takes the length for a symbol."""
    torch._dynamo.reset()
    n_layer = 2 if name == "modern" else 1  # layers that differ; else a second one is the same code
    model = shaken(make(**VARIANTS[name], n_layer=n_layer))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for length in (T, T - 3, 4):
        idx = batch()[:, :length]
        compiled(idx, idx)[1].backward()
        torch.testing.assert_close(compiled(idx, idx)[0], model(idx, idx)[0])
    model.eval()
    for length in (1, 5, T):
        idx = batch()[:, :length]
        torch.testing.assert_close(compiled(idx)[0], model(idx)[0])


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_torch_jit_traces_it():
    """As TensorBoard's graph and counters of FLOPs do."""
    model, idx = make().eval(), torch.arange(12).view(2, 6)
    traced = torch.jit.trace(model, (idx, idx), check_trace=False)
    for a, b in zip(traced(idx[:1, :4], idx[:1, :4]), model(idx[:1, :4], idx[:1, :4])):
        torch.testing.assert_close(a, b)
