"""bonsai/engine/cuda/block.py: steps through the kernels are steps through the block.

In place of the kernels there is what they compute, in plain torch: what goes into which, with which
norm, activation, cache and positions is the same. block_kernels.py has a test of its own.
"""

import copy
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from helpers.byte_models import MEGABYTE, SPACEBYTE
from helpers.tiny_model import VARIANTS, VOCAB, tiny
from torch import nn

from bonsai.engine.cuda import block as module
from bonsai.engine.cuda import kernels as kernels_module
from bonsai.engine.cuda import layers
from bonsai.engine.cuda.block import StepBlock, StepNorm, join
from bonsai.engine.cuda.int8 import CudaInt8Linear
from bonsai.engine.cuda.kernels import Kernels
from bonsai.engine.prefill_decode import decode_one_token, fixed_view, prefill
from bonsai.models.cache import KVCache
from bonsai.models.decoder import Decoder, decoder_config
from bonsai.models.table import build_model
from model import GPTConfig, Norm

OF_LAYERS = (layers.product, layers.add_and_norm, layers.normed, layers.attend_step)
PLAIN = Kernels(*OF_LAYERS, draw=None, sizes=(2, 4, 8))


def counted(calls: list[str]) -> Kernels:
    """PLAIN, noting the name of each function that is called."""

    def noting(function):
        return lambda *given: (calls.append(function.__name__), function(*given))[1]

    return Kernels(*map(noting, OF_LAYERS), draw=None, sizes=PLAIN.sizes)


@torch.no_grad()
def logits_of_steps(model, rows: int) -> torch.Tensor:
    """Those of four steps after prompts of different lengths, and the cache that they leave."""
    cache, generator = model.new_cache(rows, 16), torch.Generator().manual_seed(rows)
    lengths = [3 + row % 4 for row in range(rows)]
    for row, length in enumerate(lengths):
        idx = torch.randint(VOCAB, (1, length), generator=generator)
        prefill(model, idx, cache.view(row, row + 1))
    found = []
    for step in range(4):
        part = fixed_view(cache, rows, 16)
        part.pos = torch.tensor(lengths) + step
        idx = torch.randint(VOCAB, (rows, 1), generator=generator)
        found.append(decode_one_token(model, idx, part))
    return torch.stack(found), torch.stack((cache.k, cache.v))


@pytest.mark.parametrize("position", ["learned", "rope"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_kind_of_block(variant, position):
    fields = VARIANTS[variant]
    model = tiny(position=position, **fields)
    joined, calls = copy.deepcopy(model), []
    join(joined, torch.float32, counted(calls), 9)
    post, apart = fields.get("norm_placement") == "post", fields.get("value_embeddings")
    assert [isinstance(b, StepBlock) for b in joined.transformer.h] == [not post] * 2
    for rows in (1, 2, 3, 8, 9):  # with norms in the products, with norms apart, too many
        calls.clear()
        for got, want in zip(logits_of_steps(joined, rows), logits_of_steps(model, rows)):
            torch.testing.assert_close(got, want, atol=2e-5, rtol=2e-5)
        blocks = 0 if post or rows == 9 else 4 * 2  # of 4 steps, 2 each
        products, sums = (4, 0) if rows <= 2 else (2, 2)
        assert calls.count("product") == products * blocks
        assert calls.count("add_and_norm") == sums * blocks
        assert calls.count("attend_step") == blocks
        # the first block of a step has no block before it that computes its norm
        norms = 4 if blocks and rows > 2 else 0
        norms *= 2 if fields.get("residual_lambdas") else 1
        norms = 4 if blocks and apart and rows <= 2 else norms  # of one block of the two
        assert calls.count("normed") == norms


@torch.no_grad()
def test_all_other_norms_of_many_rows_come_with_a_sum():
    """No norm of torch is left, the final one included, but in steps that the kernels leave."""
    model = tiny()
    join(model, torch.float32, PLAIN, 8)
    called = []
    for norm in (m for m in model.modules() if isinstance(m, Norm)):
        norm.register_forward_hook(lambda *given: called.append(1))
    for rows, norms in ((3, 0), (9, 5 * 4)):
        called.clear()
        logits_of_steps(model, rows)
        # prompts are read by the blocks as they are, row by row
        assert len(called) == 5 * rows + norms


@torch.no_grad()
def test_only_the_norm_that_follows_takes_what_is_handed_on():
    """Another norm may look at the stream between blocks, as the page's look inside does."""
    model = tiny()
    final, stream = copy.deepcopy(model.transformer.ln_f), []
    join(model, torch.float32, PLAIN, 8)
    model.transformer.h[0].register_forward_hook(lambda module, given, x: stream.append(x))
    logits_of_steps(model, 3)
    x = stream[-1]
    assert x.handed[1] is not None
    torch.testing.assert_close(model.transformer.ln_f(x), final(x))


def test_decoders_of_bytes_hand_on_their_norms():
    """A final norm is there or is not, and a narrow decoder stands beside a wide one."""
    for final_norm in (True, False):
        torch.manual_seed(0)
        config = GPTConfig(block_size=16, vocab_size=31, n_layer=2, n_head=2, n_embd=16)
        config = decoder_config(config, n_embd=16)
        plain = Decoder(config, final_norm).eval()
        joined = copy.deepcopy(plain)
        joined.new_cache = partial(KVCache, config, dtype=torch.float32, device="cpu")
        join(joined, torch.float32, PLAIN, 8)
        assert isinstance(joined.ln_f, StepNorm) == final_norm
        found = []
        for decoder in (joined, plain):
            cache = KVCache(config, 5, 8, torch.float32, "cpu")
            cache.pos = torch.tensor([0, 1, 2, 3, 4])
            x = torch.randn(5, 1, 16, generator=torch.Generator().manual_seed(1))
            with torch.no_grad():
                found.append((decoder(x, cache), cache.k, cache.v))
        for got, want in zip(*found):
            torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["product", "add_and_norm", "normed", "attend_step"])
@pytest.mark.parametrize("how", ["wrong", "fails"])
def test_where_a_kernel_computes_something_else_blocks_stay(name, how, capsys):
    def spoilt(*given):
        if how == "fails":
            raise ValueError("out of shared memory\nand more")
        y = getattr(layers, name)(*given)
        return (y[0], 1.1 * y[1]) if isinstance(y, tuple) else 1.1 * y

    model = tiny()
    join(model, torch.float32, PLAIN._replace(**{name: spoilt}), 9)
    assert not any(isinstance(b, StepBlock) for b in model.transformer.h)
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and ("is off by" if how == "wrong" else "shared memory") in said


def in_int8(model):
    """The model with all of its linear layers in int8, as `prepare` makes them on a GPU."""
    for owner in list(model.modules()):
        for name, child in owner.named_children():
            if type(child) is nn.Linear:
                setattr(owner, name, CudaInt8Linear(child, torch.float32))
    return model


def linears_of(model) -> list[CudaInt8Linear]:
    return [m for m in model.modules() if isinstance(m, CudaInt8Linear)]


@pytest.mark.parametrize("variant", ["classic", "rmsnorm, swiglu", "post norm, relu"])
@pytest.mark.parametrize("how", ["right", "wrong", "fails", "wrong for the head alone"])
def test_layers_in_int8_use_kernels_that_were_compared(variant, how, capsys):
    """Those outside of the blocks, too, and of blocks that no kernel computes; else all layers
    compute by themselves."""

    def product(x, of, residual=None):
        if how == "fails":
            raise ValueError("out of shared memory\nand more")
        y = layers.product(x, of, residual)
        head = len(of.weight) == VOCAB
        return 1.1 * y if how == "wrong" or (head and "head" in how) else y

    model = in_int8(tiny(**VARIANTS[variant]))
    want = logits_of_steps(model, 3)
    join(model, torch.float32, PLAIN._replace(product=product), 3)
    taken = how == "right"
    assert {m.kernels is not None for m in linears_of(model)} == {taken}
    steps = [isinstance(b, StepBlock) for b in model.transformer.h]
    assert steps == [taken and variant != "post norm, relu"] * 2
    said = capsys.readouterr().err
    assert said.count("\n") == (not taken) and ("no Triton kernels" in said) == (not taken)
    for got, same in zip(logits_of_steps(model, 3), want):
        torch.testing.assert_close(got, same, atol=1e-4, rtol=1e-4)


def test_layers_in_int8_are_compared_for_the_rows_of_prompts():
    rows = []

    def product(x, of, residual=None):
        rows.append(len(x))
        return layers.product(x, of, residual)

    model = tiny()
    model.lm_head = CudaInt8Linear(model.lm_head, torch.float32)
    join(model, torch.float32, PLAIN._replace(product=product), 1)
    assert {*rows} == {1, *PLAIN.sizes} and linears_of(model)[0].few == PLAIN.sizes[-1]


@pytest.mark.parametrize("name", ["megabyte", "spacebyte"])
def test_byte_models_have_no_such_steps(name, capsys):
    """Nothing is compiled for blocks that never see one; layers in int8 have their kernels."""
    fields = {"megabyte": MEGABYTE, "spacebyte": SPACEBYTE}[name]
    model, calls = in_int8(build_model(name, fields)).eval(), []
    join(model, torch.float32, counted(calls), 9)
    assert not any(isinstance(m, StepBlock | StepNorm) for m in model.modules())
    assert {*calls} == {"product"} and all(m.kernels for m in linears_of(model))
    assert not capsys.readouterr().err


VALUES = dict(value_embeddings=True, attention_window=5, window_pattern="LLD", n_layer=4)


@pytest.mark.parametrize("kind", ["values", "no values", "a window", "none", "no norm follows"])
def test_blocks_of_each_kind_are_compared(kind, capsys):
    """A kernel that is wrong for some of the blocks alone: with value embeddings, to a window, or
    where lambdas mix the stream before the next norm."""

    def attend(qkv, k, v, pos, heads, rotation=None, extra=None):
        y = layers.attend_step(qkv, k, v, pos, heads, rotation, extra)
        wrong = {"values": extra is not None, "no values": extra is None, "a window": heads.window}
        return y + 0.5 if wrong.get(kind) else y

    def add_and_norm(x, of, residual, norm=None):
        stream, normed = layers.add_and_norm(x, of, residual, norm)
        return stream + 0.5 * (norm is None and kind == "no norm follows"), normed

    model = tiny(**VALUES, residual_lambdas=True)
    kernels = PLAIN._replace(attend_step=attend, add_and_norm=add_and_norm)
    join(model, torch.float32, kernels, 9)
    assert [isinstance(b, StepBlock) for b in model.transformer.h] == [kind == "none"] * 4
    assert capsys.readouterr().err.count("\n") == (kind != "none")


def test_attention_is_compared_for_no_more_rows_than_it_takes():
    rows = []

    def attend(qkv, *given):
        rows.append(len(qkv))
        return layers.attend_step(qkv, *given)

    for batch, most in ((1, 2), (5, 5), (500, PLAIN.sizes[-1])):
        rows.clear()
        join(tiny(), torch.float32, PLAIN._replace(attend_step=attend), batch)
        assert max(rows) == most


class Late:
    """A kernel that reads what it needs before the one ahead has written it, in replays alone."""

    def __init__(self, name: str, monkeypatch):
        self.function, self.replays = getattr(layers, name), False
        monkeypatch.setattr(kernels_module, "Uncaptured", self.uncaptured)

    def uncaptured(self, function):
        def replay():
            self.replays = True
            function()
            self.replays = False

        return SimpleNamespace(replay=replay)

    def __call__(self, x, *given):
        y = self.function(x, *given)
        if self.replays:  # the last number of a row is not there yet
            for part in y if isinstance(y, tuple) else (y,):
                if part is not None:
                    part[..., -1] += 0.125
        return y


@pytest.mark.parametrize("variant", ["classic", "values, lambdas, windows of all layers"])
def test_kernels_that_overlap_are_taken_where_a_replay_gives_the_same(variant, capsys):
    model = tiny(**VARIANTS[variant])
    want = logits_of_steps(model, 3)
    join(model, torch.float32, PLAIN._replace(in_order=PLAIN), 9)
    assert all(b.kernels.in_order for b in model.transformer.h) and not capsys.readouterr().err
    for got, same in zip(logits_of_steps(model, 3), want):
        torch.testing.assert_close(got, same, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("name", ["product", "add_and_norm", "normed", "attend_step"])
def test_kernels_that_overlap_wrongly_run_in_order(name, capsys, monkeypatch):
    """Those of int8 layers beside the blocks, too; and a line says so."""
    late = Late(name, monkeypatch)
    model = tiny()
    model.lm_head = CudaInt8Linear(model.lm_head, torch.float32)
    overlap = PLAIN._replace(**{name: late}, in_order=PLAIN)
    join(model, torch.float32, overlap, 9)
    assert all(b.kernels is PLAIN for b in model.transformer.h) and model.lm_head.kernels is PLAIN
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "run one after another, slower: overlapping kernels" in said
    # with what is wrong in order, too, there are none, and one line
    model = tiny()
    wrong = PLAIN._replace(**{name: lambda *given: None})
    join(model, torch.float32, wrong._replace(in_order=wrong), 9)
    assert not any(isinstance(b, StepBlock) for b in model.transformer.h)
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "no Triton kernels" in said


@pytest.mark.parametrize("in_order", ["right", "wrong"])
def test_kernels_that_overlap_wrongly_where_layers_in_int8_alone_use_them(
    in_order, capsys, monkeypatch
):
    """Post-norm blocks are no StepBlocks. One line, whether those in order do or do not, either."""
    plain = PLAIN if in_order == "right" else PLAIN._replace(product=lambda *given: None)
    late = Late("product", monkeypatch)
    model = in_int8(tiny(**VARIANTS["post norm, relu"]))
    join(model, torch.float32, PLAIN._replace(product=late, in_order=plain), 9)
    want = PLAIN if in_order == "right" else None
    assert all(linear.kernels is want for linear in linears_of(model))
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert ("run one after another" if want else "no Triton kernels") in said


def test_the_eps_of_heads_is_torchs():
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.full((1, 8), 0.002).to(dtype)
        want = torch.nn.functional.rms_norm(x, (8,))
        eps = module.head_eps(torch.device("cpu"), dtype)
        got = x.float() * (x.float().square().mean() + eps).rsqrt()
        torch.testing.assert_close(got, want.float(), atol=0.01, rtol=0.01)
