"""bonsai/models/decoder.py: what every model of bytes is held to, all their variants."""

import math

import pytest
import torch
from helpers.byte_models import ALL, MODELS, MODERN, P, batch, every, logits_of, make
from torch.nn import functional as F

from bonsai.engine import Engine, SamplingParams, generate
from bonsai.models.decoder import Decoder, decoder_config
from model import GPTConfig

LENGTH = {"megabyte": 23, "spacebyte": 36}  # of a batch


@every
def test_no_byte_sees_the_future(name, fields):
    """Other bytes from c on change no logits before c, and do change those at c."""
    T = LENGTH[name]
    model, idx = make(name, **fields), batch(name, T)
    before = logits_of(model, idx)
    for c in range(1, T):
        other, most = idx.clone(), model.config.vocab_size - 1
        if name == "megabyte":
            other[:, c:] = (other[:, c:] + 1 + batch(name, T, seed=c)[:, c:] % most) % (most + 1)
        else:
            other[:, c:] = 255 - other[:, c:]
        after = logits_of(model, other)
        if name == "megabyte":
            assert torch.equal(before[:, :c], after[:, :c]), c
        else:  # as many global positions or not, only rounding may differ
            torch.testing.assert_close(before[:, :c], after[:, :c], atol=1e-6, rtol=1e-6)
        assert (before[:, c] != after[:, c]).any(), c


@pytest.mark.parametrize(
    "name, fields",
    [("megabyte", {}), *(("spacebyte", {"boundary": b}) for b in ("space", "fixed"))],
)
def test_random_bytes_teach_nothing(name, fields):
    """After training, held-out random bytes cost 8 bits and no less: nothing leaks."""
    torch.manual_seed(0)
    kind, make_config, shape = MODELS[name]
    model = kind(make_config(**{**shape, "vocab_size": 256, "block_size": 64, **fields}))
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
    for strided in (False, True) if name == "megabyte" else (False,):
        if strided:
            model.strided = True
        with torch.no_grad():
            loss = torch.stack([model(*window())[1] for _ in range(40)]).mean().item()
        assert 7.99 <= loss / math.log(2) < 8.2


@every
def test_every_parameter_learns_and_is_in_one_group(name, fields):
    model, T = make(name, **fields), LENGTH[name] // 4 * 4
    targets = batch(name, T, seed=2) if name == "megabyte" else batch(name, T).flip(1)
    model(batch(name, T), targets)[1].backward()
    groups = model.param_groups()
    assert {"matrices", "embeddings", "head", "scalars"} <= set(groups)
    assert not groups["tables"] and not groups["residual"]  # the GPT's alone
    ids = [id(p) for group in groups.values() for p in group]
    assert len(ids) == len(set(ids)) and set(ids) == {id(p) for p in model.parameters()}
    assert all(p.dim() == 2 for p in groups["matrices"])
    assert all(p.dim() < 2 for p in groups["scalars"])
    assert len(groups["head"]) == (not model.config.tie_head)
    for parameter, p in model.named_parameters():
        assert p.grad is not None and p.grad.abs().sum() > 0, parameter
    optimizer = model.configure_optimizers(0.1, 1e-3, (0.9, 0.95), "cpu")
    assert sum(len(g["params"]) for g in optimizer.param_groups) == len(ids)
    if name == "megabyte":
        names = {id(p): name for name, p in model.named_parameters()}
        tables = {names[id(p)] for p in groups["embeddings"]}
        assert {"global_wte.weight", "local_wte.weight", "global_pad", "local_pad"} <= tables


COUNTED = [(name, n, f) for name, n, f in ALL if name == "megabyte" or n in ("plain", "modern")]


@pytest.mark.parametrize(
    "name, fields", [pytest.param(name, f, id=f"{name}, {n}") for name, n, f in COUNTED]
)
def test_flops_are_those_counted(name, fields):
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    T = {"megabyte": 48, "spacebyte": 40}[name]
    torch.manual_seed(0)
    kind, make_config, shape = MODELS[name]
    sizes = dict(n_embd=64, local_embd=48, block_size=T)
    sizes |= {} if name == "megabyte" else {"boundary": "fixed"}
    model = kind(make_config(**{**shape, **sizes, **fields}))
    idx = torch.randint(model.config.vocab_size, (2, T))
    counter = FlopCounterMode(display=False)
    with counter, sdpa_kernel(SDPBackend.MATH):
        model(idx, idx)[1].backward()
    counted = counter.get_total_flops() / idx.numel()
    # the counter has no backward to the input of a first matrix, because embeddings need none
    assert counted == pytest.approx(model.flops_per_token(T), rel=0.02)


# ---- in the engine ----

ENGINE = [("megabyte", dict(position="rope", cross_patch=2))]
ENGINE += [("spacebyte", dict(position="rope", boundary=b)) for b in ("space", "fixed")]


@pytest.mark.parametrize("on_full", ["refill", "slide", "stop"])
@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("name, fields", ENGINE)
def test_the_engine_gives_the_same_bytes_cached_or_not(name, fields, on_full, n):
    """Also beyond the context, which moves on by whole patches."""
    model = make(name, **fields).float()
    prompt = [5, 7, 1, 2, 3, 4, 2] if name == "megabyte" else list(b"two b")
    params = SamplingParams(60 if name == "megabyte" else 70, temperature=1.0, seed=3)
    texts = [list(generate(model, prompt, params, n, on, on_full)) for on in (True, False)]
    left = model.config.block_size - len(prompt) + 1
    assert texts[0] == texts[1]
    assert len(texts[0]) == (params.max_new_tokens if on_full != "stop" else left)


SIDE_BY_SIDE = [
    ("megabyte", {}),
    ("megabyte", dict(position="rope", cross_patch=3, conv_encoder=True)),
]
SIDE_BY_SIDE += ENGINE[1:]


@pytest.mark.parametrize("prefix_cache", [0, 100])
@pytest.mark.parametrize("name, fields", SIDE_BY_SIDE)
def test_requests_side_by_side_get_what_they_get_alone(name, fields, prefix_cache):
    """Rows at different places of their patches; slots that move; prompts that begin alike."""
    model = make(name, **fields).float()
    prompts = [b"to be or", b"x", b"to be, or not", b"to b", b"to be or not"]
    if name == "megabyte":
        start = [3, 1, 4, 1, 5, 9]
        prompts = [start, [2, 7], [*start, 2, 6, 5], start[:4], [*start, 8]]
    engine = Engine(model, max_batch=3, prefix_cache=prefix_cache)
    requests = []
    for i, prompt in enumerate(prompts):
        params = SamplingParams(5 + 2 * i, seed=i, logprobs=1, prompt_logprobs=i == 2)
        requests += engine.submit(list(prompt), params, n=2 if i == 0 else 1)
    scored = {}
    while engine.busy:
        for event in engine.step():
            if event.prompt_logprobs:
                scored[event.request] = [p for p, _ in event.prompt_logprobs[1:]]
    for request in requests:
        rows = generate(model, request.prompt, request.params, 1, False, first_row=request.row)
        assert request.tokens == [row[0] for row in rows], request.prompt
    (scores,) = scored.values()
    idx = torch.tensor([list(prompts[2])])
    logp = F.log_softmax(logits_of(model, idx)[0], dim=-1)[:-1].gather(1, idx[0, 1:, None])
    torch.testing.assert_close(torch.tensor(scores), logp[:, 0], atol=1e-4, rtol=1e-4)


# ---- a decoder alone ----


def test_a_decoder_has_no_positions_but_rope():
    for position in ("learned", "sinusoidal", "none", "rope"):
        config = decoder_config(GPTConfig(position=position), n_layer=1, n_embd=P * 8, n_head=2)
        assert config.position == ("rope" if position == "rope" else "none")
    for field in ("value_embeddings", "residual_lambdas", "bigram_embeddings", "bfloat16_stream"):
        with pytest.raises(ValueError, match=f"{field} is the GPT's alone"):
            decoder_config(GPTConfig(**{field: True, "position": "rope"}))


@pytest.mark.parametrize("fields", [{}, {k: MODERN[k] for k in ("norm", "position", "qk_norm")}])
def test_a_decoder_is_causal_and_can_leave_the_last_norm_out(fields):
    torch.manual_seed(0)
    config = decoder_config(GPTConfig(**fields, n_layer=2, n_head=2, n_embd=16, bias=False))
    decoder, x = Decoder(config).eval(), torch.randn(2, 9, 16)
    y = decoder(x)
    other = x.clone()
    other[:, 5:] += 1
    assert torch.equal(decoder(other)[:, :5], y[:, :5]) and not torch.equal(decoder(other), y)
    open_end = Decoder(config, final_norm=False).eval()
    open_end.load_state_dict(decoder.state_dict(), strict=False)
    torch.testing.assert_close(decoder.ln_f(open_end(x)), y)
