"""bonsai/engine/cuda/block.py: steps through the kernels are steps through the block.

In place of the kernels there is what they compute, in plain torch: what goes into which, with which
norm, activation, cache and positions is the same. block_kernels.py has a test of its own.
"""

import copy

import pytest
import torch
from helpers.tiny_model import VARIANTS, VOCAB, tiny

from bonsai.engine.cuda import block as module
from bonsai.engine.cuda import layers
from bonsai.engine.cuda.block import StepBlock, join
from bonsai.engine.cuda.kernels import Kernels
from bonsai.engine.phases import decode_one_token, fixed_view, prefill

PLAIN = Kernels(layers.product, layers.attend_step, None, few=8, normed=2)


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
def test_every_kind_of_block(variant, position, monkeypatch):
    model = tiny(position=position, **VARIANTS[variant])
    joined, calls = copy.deepcopy(model), []
    counted = PLAIN._replace(product=lambda *given: (calls.append(1), layers.product(*given))[1])
    join(joined, torch.float32, counted, 9)
    post = VARIANTS[variant].get("norm_placement") == "post"
    assert [isinstance(b, StepBlock) for b in joined.transformer.h] == [not post] * 2
    for rows in (1, 2, 3, 9):  # with norms in the products, with norms apart, too many
        calls.clear()
        for got, want in zip(logits_of_steps(joined, rows), logits_of_steps(model, rows)):
            torch.testing.assert_close(got, want, atol=2e-5, rtol=2e-5)
        assert len(calls) == (0 if post or rows == 9 else 4 * 2 * 4)  # of 4 steps, 2 blocks, 4 each


@pytest.mark.parametrize("name", ["product", "attend_step"])
@pytest.mark.parametrize("how", ["wrong", "fails"])
def test_where_a_kernel_computes_something_else_blocks_stay(name, how, capsys):
    def spoilt(*given):
        if how == "fails":
            raise ValueError("out of shared memory\nand more")
        return 1.1 * getattr(layers, name)(*given)

    model = tiny()
    join(model, torch.float32, PLAIN._replace(**{name: spoilt}), 9)
    assert not any(isinstance(b, StepBlock) for b in model.transformer.h)
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and ("is off by" if how == "wrong" else "shared memory") in said


def test_the_eps_of_heads_is_torchs():
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.full((1, 8), 0.002).to(dtype)
        want = torch.nn.functional.rms_norm(x, (8,))
        eps = module.head_eps(torch.device("cpu"), dtype)
        got = x.float() * (x.float().square().mean() + eps).rsqrt()
        torch.testing.assert_close(got, want.float(), atol=0.01, rtol=0.01)
