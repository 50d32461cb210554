"""bonsai/engine/cuda/kernels.py: kernels are used where they give what torch gives, only there."""

from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from bonsai.engine.cuda import kernels as module
from bonsai.engine.sampling import noise
from bonsai.system.hashing import splitmix_tensor


def product(x, weight, scale, bias):
    return (F.linear(x.float(), weight.float()) * (1 if scale is None else scale) + bias).half()


def draw(logits, ids, keys, steps):
    best = logits + noise(splitmix_tensor(keys, steps)[:, None], ids)
    return ids.gather(1, best.argmax(1, keepdim=True))[:, 0]


def attend(q, k, v, mask, scale):
    return F.scaled_dot_product_attention(q, k, v, mask, scale=scale, enable_gqa=True)


RIGHT = dict(product=product, draw=draw, attend=attend)


def test_kernels_that_compute_the_same_pass():
    module.check(SimpleNamespace(**RIGHT), torch.device("cpu"))


@pytest.mark.parametrize(
    "wrong, says",
    [
        (dict(product=lambda x, w, s, b: product(x, w, s, 0 * b)), "float16 is off by"),
        (dict(product=lambda *all: product(*all) * torch.nan), "float16 is off by nan"),
        (dict(product=lambda x, w, s, b: product(x, w, None, b)), "int8 is off by"),
        (dict(attend=lambda q, k, v, m, scale: attend(q, k, v, m, 0.3)), "attention is off by"),
        (dict(attend=lambda q, k, v, m, scale: attend(q, k, v, 0 * m, scale)), "attention is off"),
        (dict(draw=lambda x, ids, k, s: draw(x, ids, k, s + 1)), "a draw is not"),
        (dict(draw=lambda x, ids, k, s: draw(x[:, :99], ids[:, :99], k, s)), "a draw is not"),
    ],
)
def test_kernels_that_compute_something_else_are_refused(wrong, says):
    with pytest.raises(RuntimeError, match=says):
        module.check(SimpleNamespace(**{**RIGHT, **wrong}), torch.device("cpu"))


def test_where_there_are_none_it_is_said_once(monkeypatch, capsys):
    module.kernels.cache_clear()
    assert module.kernels() is None and capsys.readouterr().err == ""  # no GPU: nothing is missed
    module.kernels.cache_clear()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)

    def fail(*args):
        raise RuntimeError("failed to find a C compiler\nand more")

    monkeypatch.setattr(module, "check", fail)
    monkeypatch.setitem(module.sys.modules, "bonsai.engine.cuda.triton_kernels", SimpleNamespace())
    monkeypatch.setattr("bonsai.engine.cuda.triton_kernels", SimpleNamespace(), raising=False)
    assert module.kernels() is None and module.kernels() is None
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "slower: failed to find a C compiler" in said
    module.kernels.cache_clear()
