"""bonsai/engine/cuda/kernels.py: kernels are used where they give what torch gives, only there."""

from itertools import product
from math import exp, inf
from types import SimpleNamespace

import pytest
import torch

from bonsai.engine.cuda import kernels as module
from bonsai.engine.cuda import layers
from bonsai.engine.cuda.kernels import Kernels
from bonsai.engine.cuda.layers import LAYER, RMS, Heads, NormLayer, Product
from bonsai.engine.sampling import SamplingParams, candidates, noise
from bonsai.system.hashing import splitmix_tensor


def draw(logits, ids, keys, steps, temperature=None, top_k=None, log_min_p=None):
    """As draw_kernel.draw, by sampling.py: a row at a time."""
    tokens = []
    for i, row in enumerate(logits):
        k, log_p = (0, -inf) if top_k is None else (int(top_k[i]), float(log_min_p[i]))
        heat = 1.0 if temperature is None else float(temperature[i])
        params = SamplingParams(temperature=heat, top_k=k, min_p=exp(log_p))
        places = torch.arange(len(row)) if ids is None else ids[i]
        kept, chosen = candidates(row[None], params)
        chosen = torch.arange(len(row))[None] if chosen is None else chosen
        best = kept[0] + noise(splitmix_tensor(keys[i], steps[i]), places[chosen[0]])
        tokens.append(int(places[chosen[0, best.argmax()]]))
    return torch.tensor(tokens)


def kernels_with(**others) -> Kernels:
    names = ("product", "add_and_norm", "normed", "attend_step")
    plain = {name: getattr(layers, name) for name in names}
    return Kernels(**{**plain, **others}, draw=draw, sizes=(4, 10, 20))


UP = Product(
    torch.randn(40, 24),
    None,
    torch.randn(40),
    LAYER,
    torch.randn(24),
    torch.randn(24),
    1e-5,
    "gelu",
)
HEADS, LIKE = Heads(4, 2, 16, 0.3, 200, LAYER, 1e-5), torch.empty(0)


DOWN, NORM = UP._replace(norm=0, activation=""), NormLayer(LAYER, torch.randn(40))


def test_kernels_that_compute_the_same_pass():
    module.check_draw(draw, torch.device("cpu"))
    for layer in (UP, UP._replace(activation="swiglu"), UP._replace(scale=torch.rand(40))):
        module.check_product(kernels_with(), layer, torch.float32, 64)
    for layer in (DOWN, DOWN._replace(scale=torch.rand(40), bias=None)):
        for norm in (NORM, None):
            module.check_sum(kernels_with(), layer, norm, torch.float32, 64)
    for norm in (NORM, NormLayer(RMS)):
        module.check_norm(kernels_with(), norm, 40, LIKE, 64)
    for rope, values in product((True, False), repeat=2):
        for rows in (2, 5):
            module.check_attend_step(kernels_with(), HEADS, LIKE, rope, rows, values)


def many(x, layer):  # wrong for many rows alone
    return layers.product(x, layer) * (1.1 if len(x) > 4 else 1)


@pytest.mark.parametrize(
    "product, says",
    [
        (lambda x, layer: torch.nan * layers.product(x, layer), "off by nan"),
        (lambda x, layer: layers.product(x, layer._replace(bias=None)), "of 1 rows is off by"),
        (lambda x, layer: layers.product(x, layer._replace(activation="")), "is off by"),
        (many, "of 10 rows is off by"),
    ],
)
def test_wrong_products_are_refused(product, says):
    with pytest.raises(RuntimeError, match=says):
        module.check_product(kernels_with(product=product), UP, torch.float32, 64)


def forgets_the_stream(x, layer, residual, norm=None):
    stream = layers.product(x, layer)
    return stream, layers.normed(stream, *norm)


def forgets_the_norm(x, layer, residual, norm=None):
    stream = layers.product(x, layer, residual)
    return stream, stream


@pytest.mark.parametrize(
    "function, says",
    [
        (
            {"product": lambda x, layer, residual: layers.product(x, layer)},
            "a sum of 1 rows is off by",
        ),
        ({"add_and_norm": forgets_the_stream}, "a sum of 10 rows or its norm is off by"),
        ({"add_and_norm": forgets_the_norm}, "a sum of 10 rows or its norm is off by"),
    ],
)
def test_wrong_sums_are_refused(function, says):
    with pytest.raises(RuntimeError, match=says):
        module.check_sum(kernels_with(**function), DOWN, NORM, torch.float32, 64)


def test_wrong_norms_are_refused():
    for wrong in (lambda x, kind, *given: x, lambda x, *given: layers.normed(x, RMS)):
        with pytest.raises(RuntimeError, match="a norm of 1 rows is off by"):
            module.check_norm(kernels_with(normed=wrong), NORM, 40, LIKE, 64)


def test_as_many_rows_are_checked_as_there_may_be():
    for batch, want in ((1, [1]), (3, [1, 3]), (7, [1, 4, 7]), (64, [1, 4, 10, 20])):
        seen = []

        def noting(function, seen=seen):
            return lambda *given: (seen.append(len(given[0])), function(*given))[1]

        every = ("product", "add_and_norm", "normed")
        kernels = kernels_with(**{name: noting(getattr(layers, name)) for name in every})
        for check, about in (
            (module.check_product, (UP, torch.float32)),
            (module.check_sum, (DOWN, NORM, torch.float32)),
            (module.check_norm, (NORM, 40, LIKE)),
        ):
            seen.clear()
            check(kernels, *about, batch)
            assert seen == want


ATTEND = layers.attend_step


def forgets(qkv, k, v, *given):  # the new key does not go into the cache
    return layers.attend_step(qkv, k.clone(), v, *given)


@pytest.mark.parametrize(
    "attend, says",
    [
        (lambda a, k, v, p, h, *more: ATTEND(a, k, v, p, h._replace(scale=1.0), *more), "atten"),
        (lambda a, k, v, p, h, *more: ATTEND(a, k, v, p, h._replace(window=0), *more), "atten"),
        (lambda a, k, v, p, h, *more: ATTEND(a, k, v, p - 1, h, *more), "off by"),
        (lambda a, k, v, p, h, t, extra: ATTEND(a, k, v, p, h, None, extra), "off by"),
        (lambda a, k, v, p, h, t, extra: ATTEND(a, k, v, p, h, t), "off by"),
        (forgets, "a key in the cache is off by"),
    ],
)
def test_wrong_attention_is_refused(attend, says):
    with pytest.raises(RuntimeError, match=says):
        kernels = kernels_with(attend_step=attend)
        module.check_attend_step(kernels, HEADS, LIKE, True, values=True)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda x, ids, keys, steps, *more: draw(x, ids, keys, steps + 1, *more),
        lambda x, ids, keys, steps, *more: draw(x[:, :99], ids, keys, steps, *more),
        lambda x, ids, keys, steps, *more: draw(x, ids, keys, steps),
        lambda x, ids, keys, steps, t=None, *more: draw(x, ids, keys, steps, None, *more),
        lambda x, ids, keys, steps, t=None, k=None, p=None: draw(x, ids, keys, steps, t),
        lambda *a: draw(*a[:5], a[5] * 4, a[6]) if len(a) > 5 else draw(*a),
        lambda *a: draw(*a[:6], a[6] * 4) if len(a) > 5 else draw(*a),
    ],
)
def test_wrong_draws_are_refused(wrong):
    with pytest.raises(RuntimeError, match="a draw differs"):
        module.check_draw(wrong, torch.device("cpu"))


def test_a_replay_has_to_give_the_same_bits():
    state = torch.ones(3, dtype=torch.bfloat16)

    def grows():
        return [state.add_(1)]

    def sets_anew():
        state.fill_(1)
        return [state.div_(0) * 0]  # what is no number is the same, too

    with pytest.raises(RuntimeError, match="other numbers"):
        module.check_overlap(grows, state.device)
    module.check_overlap(sets_anew, state.device)


def test_products_of_products_are_replayed():
    seen = []

    def product(x, layer):
        seen.append(x)
        return layers.product(x, layer)

    module.check_products_overlap(kernels_with(product=product), torch.device("cpu"))
    chain = 8
    assert len(seen) == chain * (1 + module.REPLAYS)
    assert len({x.data_ptr() for x in seen[:2]}) == 2 and not torch.equal(seen[0], seen[1])
    late = iter(range(1000))  # something else each time
    with pytest.raises(RuntimeError, match="other numbers"):
        wrong = kernels_with(product=lambda x, layer: layers.product(x, layer) + next(late))
        module.check_products_overlap(wrong, torch.device("cpu"))


FIRST, SECOND = (torch.device("cuda", i) for i in range(2))


@pytest.fixture
def gpu(monkeypatch):
    """As if there were some: what block_kernels.py and draw_kernel.py are does not matter."""
    functions = {name: getattr(layers, name) for name in ("product", "add_and_norm", "normed")}
    blocks = SimpleNamespace(**functions, attend_step=layers.attend_step, SIZES=(4, 10, 20))
    for name, fake in (("block_kernels", blocks), ("draw_kernel", SimpleNamespace(draw=draw))):
        monkeypatch.setitem(module.sys.modules, f"bonsai.engine.cuda.{name}", fake)
        monkeypatch.setattr(f"bonsai.engine.cuda.{name}", fake, raising=False)
    monkeypatch.setattr(module, "check_draw", lambda *given: None)
    module.load_kernels.cache_clear()
    yield
    module.load_kernels.cache_clear()


@pytest.mark.parametrize("how", ["can", "cannot", "asking fails"])
def test_kernels_overlap_where_that_is_right(gpu, how, monkeypatch, capsys):
    def fail(*given):
        raise RuntimeError("it fails\nand more")

    monkeypatch.setattr(
        module, "can_overlap", fail if how == "asking fails" else lambda d: how != "cannot"
    )
    got = module.load_kernels(FIRST)
    assert got is module.load_kernels(FIRST) and got.sizes == (4, 10, 20) and got.draw is draw
    said = capsys.readouterr().err
    if how == "can":
        assert all(f.keywords == {"overlap": True} for f in got[:4]) and said == ""
        assert [f.func for f in got[:4]] == list(got.in_order[:4]) and not got.in_order.in_order
        return
    assert got.in_order is None and got.product is layers.product
    if how == "cannot":
        assert said == ""
    else:
        assert said == "kernels of a step run one after another, slower: it fails\n"


@pytest.mark.parametrize(
    "capability, driver, hip, want",
    [
        ((9, 0), 12030, None, True),
        ((10, 0), 13000, None, True),
        ((9, 0), 12020, None, False),
        ((8, 9), 13000, None, False),
        ((9, 4), 13000, "6.4", False),
    ],
)
def test_which_devices_overlap_kernels(monkeypatch, capability, driver, hip, want):
    def version(at):
        at._obj.value = driver

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.version, "hip", hip)
    library = SimpleNamespace(cuDriverGetVersion=version)
    monkeypatch.setattr(module.ctypes, "CDLL", lambda name: library)
    assert module.can_overlap(torch.device("cuda", 0)) == want


def test_where_there_are_none_it_is_said_once(gpu, monkeypatch, capsys):
    def fail(*args):
        raise RuntimeError("failed to find a C compiler\nand more")

    monkeypatch.setattr(module, "check_draw", fail)
    assert module.load_kernels(FIRST) is None and module.load_kernels(FIRST) is None
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "slower: failed to find a C compiler" in said


def test_each_device_is_asked_for_itself(gpu, monkeypatch, capsys):
    """Say an old GPU beside a new one, whichever of them the thread is on."""
    asked = []

    def check_draw(draw, device):
        asked.append(device)
        if device == SECOND:
            raise RuntimeError("too old")

    monkeypatch.setattr(module, "check_draw", check_draw)
    monkeypatch.setattr(module, "can_overlap", lambda device: asked.append(device) or False)
    for _ in range(2):
        assert module.load_kernels(FIRST) and module.load_kernels(SECOND) is None
    assert asked == [FIRST, FIRST, SECOND]
    assert capsys.readouterr().err.count("\n") == 1
