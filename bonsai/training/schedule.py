"""What depends on the number of a step alone: its learning rates, whether to evaluate, how far
attention looks back, and the weight of the second loss."""

import math

import torch

from bonsai.data.batches import ramped
from bonsai.system.errors import UserError
from model import CausalSelfAttention


def learning_rate_at(step: int, c) -> float:
    """The learning rate of a step by train.py's settings `c`: constant, a cosine, or a trapezoid.

    The warm-up is linear and never 0. 'cosine' (Loshchilov & Hutter 2017), nanoGPT's, falls from
    learning_rate to min_lr between warmup_iters and lr_decay_iters; 'trapezoid' (Hägele et al.
    2024) stays at learning_rate and falls linearly to min_lr over the last share `cooldown` of
    lr_decay_iters.
    """
    top, low = c.learning_rate, c.min_lr
    if not c.decay_lr:
        return top
    if step < c.warmup_iters:
        return top * (step + 1) / (c.warmup_iters + 1)
    if step > c.lr_decay_iters:
        return low
    if c.lr_schedule == "trapezoid":
        length = max(1, round(c.cooldown * c.lr_decay_iters))
        left = (c.lr_decay_iters - step) / length  # 1 at the start of the cooldown, 0 at its end
        return low + min(1.0, left) * (top - low)
    ratio = (step - c.warmup_iters) / max(1, c.lr_decay_iters - c.warmup_iters)
    return low + 0.5 * (1.0 + math.cos(math.pi * ratio)) * (top - low)


def evaluation_due(step: int, c) -> bool:
    """Whether a run is evaluated after `step` steps: every eval_interval, and at its end."""
    return step % c.eval_interval == 0 or step >= c.max_iters


def set_rates(optimizer: torch.optim.Optimizer, lr: float, step: int, c) -> None:
    """Set the learning rate of each of the optimizer's groups: its share of `lr`, the step's rate.

    Also Muon's momentum, which rises linearly from 0.85 over momentum_warmup steps.
    """
    for group in optimizer.param_groups:
        group["lr"] = lr * group["share"]
        if group.get("kind") == "muon":
            share = min(1.0, step / max(1, c.momentum_warmup))
            low = min(0.85, c.momentum)
            group["momentum"] = low + share * (c.momentum - low)


def check_further(c) -> None:
    """Raise UserError if the second loss is asked for in a model that does not have it."""
    if c.further_weight and c.model != "gpt":
        raise UserError(f"further_weight is the GPT's alone: leave it out for model={c.model}")


def set_further(model: torch.nn.Module, step: int, c) -> None:
    """Set the weight of a GPT's loss on the token after next: it falls linearly from further_weight
    to 0 at two thirds of lr_decay_iters. It is a tensor, as for each new number a compiled model
    would be compiled again."""
    if c.further_weight:
        if model.further is None:
            model.further = torch.zeros((), device=next(model.parameters()).device)
        left = 1 - 1.5 * step / max(1, c.lr_decay_iters)
        model.further.fill_(c.further_weight * max(0.0, left))


def set_windows(model: torch.nn.Module, step: int, c) -> None:
    """Let attention see less of a text at first, as in modded-nanogpt: in the first half of
    window_ramp steps every layer sees a quarter of its window (a dense layer of the context), in
    the second half one half. From then on, and in every evaluation, it sees all of it.
    """
    if not c.window_ramp:
        return
    narrowed = ramped(step, c.window_ramp)
    for module in model.modules():
        if isinstance(module, CausalSelfAttention):
            module.narrowed = narrowed
