"""Whether model.py was edited, so that faster code would compute something else.

model.py is there to be edited. But kernels.py, head_loss.py, engine/cpu and engine/cuda compute
what its parts compute without calling them, and the formats of export.py expect its formulas: all
of them would silently ignore an edit. So each asks here first. The code of model.py is compared
with formulas.py, in float64 on a CPU, on a few random numbers and with random parameters, which
takes milliseconds. Where the two differ, the code of model.py runs as it is, and one line says so.
"""

import functools
import itertools
import operator
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch import nn

from bonsai.models import formulas
from model import GPT, MLP, Block, CausalSelfAttention, GPTConfig, Norm


def random(*shape: int, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def close(got: torch.Tensor, want: torch.Tensor, tolerance: float = 1e-5) -> bool:
    """Whether two tensors are equal but for rounding. (Rotations are in float32.)"""
    return got.shape == want.shape and torch.allclose(
        got, want.type_as(got), rtol=tolerance, atol=tolerance * want.abs().max().item()
    )


def is_true(check: Callable[..., bool]) -> Callable[..., bool]:
    """The check in a context of its own; False if edited code ends in an error of whatever kind."""

    @functools.wraps(check)
    def checked(*args) -> bool:
        try:
            # the draws of layers that are made here must not change those of a run
            with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.no_grad():
                return check(*args)
        except Exception:
            return False

    return checked


@functools.cache
@is_true
def computes_attention(attend: Callable) -> bool:
    """Whether a function computes formulas.attention."""
    q, k, v = (random(2, heads, 5, 8, seed=heads + i) for i, heads in enumerate((4, 2, 2)))
    mask = random(2, 1, 5, 5) > 0
    mask |= torch.eye(5, dtype=torch.bool)  # no query without a key
    cases = [(q, k, v, None, window, 0.3) for window in (0, 2)]
    cases += [(q, k, v, mask, 0, 0.3), (q[:, :, :1], k, v, None, 0, 0.3)]
    return all(close(attend(*case, 0.0), formulas.attention(*case)) for case in cases)


@functools.cache
@is_true
def computes_activation(name: str, activate: Callable) -> bool:
    """Whether a function computes the activation of this name."""
    x = 3 * random(4, 64)
    return close(activate(x), formulas.ACTIVATIONS[name](x))


@is_true
def computes_loss(model: nn.Module) -> bool:
    """Whether a model's `head_loss` computes that of formulas.py: the value, and the
    gradient, with a second loss. Its output head is a small one meanwhile."""
    x, targets = random(2, 3, 8).requires_grad_(), torch.tensor([[1, -1, 3], [0, 2, 10]])
    before = model.lm_head, model.further
    model.lm_head = randomised(nn.Linear(8, 11, bias=False))
    model.further = torch.tensor(0.5, dtype=torch.float64)
    try:
        with torch.enable_grad():
            got, want = (f(model, x, targets) for f in (model.head_loss, formulas.head_loss))
            pairs = [(got, want), *zip(torch.autograd.grad(got, x), torch.autograd.grad(want, x))]
    finally:
        model.lm_head, model.further = before
    return all(close(got.detach(), want.detach()) for got, want in pairs)


def small(config: GPTConfig) -> GPTConfig:
    """The same choices in a model that is computed in no time."""
    kv_heads = min(config.kv_heads, 2)
    heads = kv_heads * min(config.n_head // config.kv_heads, 2)
    return replace(
        config,
        n_head=heads,
        n_kv_head=kv_heads,
        n_embd=8 * heads,
        head_size=12 if config.head_size else 0,
        attention_window=min(config.attention_window, 3),
        block_size=16,
        vocab_size=48,
        dropout=0.0,
        activation_checkpointing=False,
    )


def randomised(module: nn.Module) -> nn.Module:
    """A module in float64 with random parameters: what starts at 0 would hide what it does."""
    for i, p in enumerate(module.double().parameters()):
        p.copy_(0.4 * random(*p.shape, seed=i))
    return module.eval()


@is_true
def computes_blocks(blocks: nn.ModuleList, config: GPTConfig) -> bool:
    """Whether each of a model's blocks is one as model.py makes it, and computes formulas.block."""
    config, T = small(config), 5
    x = random(2, T, config.n_embd)
    x[0] *= 1e-3  # where the eps of a norm matters
    values = random(2, T, config.kv_heads * config.head_dim)
    rotation = None
    if config.position == "rope":
        rotation = random(T, config.head_dim), random(T, config.head_dim, seed=2)
    for i, original in enumerate(blocks):
        one = randomised(Block(config, i))
        own = values if config.has_value_embedding(i) else None
        got, want = one(x, rotation, None, own), formulas.block(one, x, rotation, own)
        if parts(original) != parts(one) or not close(got, want):
            return False
    return True


def parts(blocks: nn.Module) -> dict[str, list]:
    """By the name of each part of some blocks that computes more than one layer: its class, the
    names of what it consists of, and its hooks."""
    kinds = (Block, CausalSelfAttention, MLP, Norm)
    return {
        name: [type(m), *m._modules, *m._parameters, *m._forward_hooks, *m._forward_pre_hooks]
        for name, m in blocks.named_modules()
        if isinstance(m, kinds)
    }


@is_true
def computes_gpt(model: GPT) -> bool:
    """Whether a GPT computes formulas.logits."""
    one = randomised(type(model)(small(model.config)))
    idx = torch.arange(12).view(2, 6) * 7 % one.config.vocab_size
    same = parts(model.transformer.h) == parts(one.transformer.h)
    return same and close(one(idx, idx)[0], formulas.logits(one, idx))


@is_true
def computes_with_cache(model: GPT) -> bool:
    """Whether a GPT gives the same logits if it reads some tokens first and then one at a time,
    with a cache, as it must for texts to be right. (It does not if a token depends on the one
    before in other ways than by keys and values.)"""
    one = randomised(type(model)(small(model.config)))
    idx = torch.arange(16).view(2, 8) * 7 % one.config.vocab_size
    cache = one.new_cache(2, 8, torch.float64)
    want = one(idx, idx)[0]
    got = [one(part, cache=cache)[0][:, 0] for part in idx.split((4, 1, 1, 1, 1), dim=1)]
    return close(torch.stack(got, 1), want[:, 3:])


# ---- what a model does between its blocks ----


@dataclass
class Call:
    """Of a block, or of the norm after the last one."""

    x: torch.Tensor
    numbers: torch.Tensor  # of x at that time
    others: tuple  # all other arguments
    y: torch.Tensor
    returned: torch.Tensor  # the numbers of y at that time


class Observed(nn.Module):
    """A part of a model whose calls are kept."""

    def __init__(self, part: nn.Module, calls: list[Call]):
        super().__init__()
        self.part, self.calls = part, calls

    def forward(self, x: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        numbers = x.clone()
        y = self.part(x, *args, **kwargs)
        self.calls.append(Call(x, numbers, (*args, *kwargs.values()), y, y.clone()))
        return y


def between_blocks(model: nn.Module, owner: nn.Module) -> str:
    """'nothing', if the blocks owner.h are called one after another with the same arguments, each
    on the output of the one before; 'something', if more happens between them; '', if they cannot
    be replaced at all: because they are not called once each, or because what calls them wants more
    of them or changes their output in place.

    owner: of which model.forward, or its own, calls the blocks.
    """
    runner, count = model if getattr(model, "transformer", None) is owner else owner, len(owner.h)
    calls: list[Call] = []

    @is_true
    def are_replaced() -> bool:
        one = randomised(type(runner)(small(runner.config)))
        x = random(2, 6, one.config.n_embd)
        if isinstance(runner, GPT):
            x = torch.arange(12).view(2, 6) * 7 % one.config.vocab_size
        want = one(x)
        holder = one if runner is owner else one.transformer
        holder.h = nn.ModuleList(Observed(b, calls) for b in holder.h)
        holder.ln_f = Observed(holder.ln_f, calls)
        pairs = zip(one(x), want) if isinstance(want, tuple) else [(one(x), want)]
        return all(got is want is None or torch.equal(got, want) for got, want in pairs)

    if not are_replaced() or len(calls) != count + 1:
        return ""
    following = [*itertools.pairwise(calls)]
    if any(a.y is b.x and not torch.equal(a.returned, b.numbers) for a, b in following):
        return ""
    first = calls[0].others
    for call, after in following[: count - 1]:
        same = len(after.others) == len(first) and all(map(operator.is_, after.others, first))
        if not (same and after.x is call.y):
            return "something"
    return "nothing"


def order_of_blocks(model: nn.Module, owner: nn.Module) -> str:
    """`between_blocks`, for faster code that computes formulas.block; '' where the blocks compute
    something else, too. Says so, unless they are no Blocks at all."""
    config = getattr(owner, "config", None) or model.config
    if not isinstance(config, GPTConfig) or not all(isinstance(b, Block) for b in owner.h):
        return ""
    if not may_replace("Block", computes_blocks(owner.h, config)):
        return ""
    found = between_blocks(model, owner)
    may_replace(f"{type(model).__name__}.forward", bool(found))
    return found


def may_replace(part: str, known: bool) -> bool:
    """`known`; where it is False, say that this part of model.py runs as it is."""
    if not known:
        left_as_it_is(part)
    return known


@functools.cache
def left_as_it_is(part: str) -> None:
    if not dist.is_initialized() or dist.get_rank() == 0:
        print(
            f"{part} was changed: the faster code for it computes something else, so it runs as "
            "it is in model.py, slower",
            file=sys.stderr,
        )
