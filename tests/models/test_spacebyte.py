"""bonsai/models/spacebyte.py: its rule for patches, and its blocks index by index."""

import functools

import pytest
import torch
from helpers import byte_models
from helpers.byte_models import SPACEBYTE, SPACEBYTES, TEXT, chosen, logits_of

from bonsai.models.spacebyte import SpacebyteConfig, space_like

make = functools.partial(byte_models.make, "spacebyte")
variants = pytest.mark.parametrize("fields", SPACEBYTES.values(), ids=SPACEBYTES)


def batch(t: int = 36) -> torch.Tensor:
    return byte_models.batch("spacebyte", t)


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


@pytest.mark.parametrize("name", [n for n in SPACEBYTES if n != "windows"])
def test_causality_by_gradient(name):
    """The logits at t depend on the embeddings at 0..t and on none after."""
    fields = SPACEBYTES[name]
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
        SpacebyteConfig(**{**SPACEBYTE, **fields})
    assert all(word in str(e.value) for word in words) and "\n" not in str(e.value)
