"""What follows from the number of a step alone: its learning rate, when to evaluate, how far
attention and loss look."""

import math

import torch

from bonsai.system.errors import UserError
from model import CausalSelfAttention


def learning_rate_at(step: int, c) -> float:
    """The rate of a step by train.py's settings `c`: constant, nanoGPT's cosine, or a trapezoid.

    Warm-up is linear and never 0. 'cosine' (Loshchilov & Hutter 2017) falls from learning_rate to
    min_lr between warmup_iters and lr_decay_iters; 'trapezoid' (Hagele et al. 2024) stays at
    learning_rate and falls linearly to min_lr over the last `cooldown` share of lr_decay_iters.
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
    """Whether a run is evaluated when `step` steps are done: at eval_interval, and at its end."""
    return step % c.eval_interval == 0 or step >= c.max_iters


def set_rates(optimizer: torch.optim.Optimizer, lr: float, step: int, c) -> None:
    """Give each group of an optimizer its share of a step's learning rate.

    Muon's momentum rises linearly from 0.85 over momentum_warmup steps.
    """
    for group in optimizer.param_groups:
        group["lr"] = lr * group["share"]
        if group.get("kind") == "muon":
            share = min(1.0, step / max(1, c.momentum_warmup))
            low = min(0.85, c.momentum)
            group["momentum"] = low + share * (c.momentum - low)


def check_further(c) -> None:
    """Raise UserError where a model without that loss is given it."""
    if c.further_weight and c.model != "gpt":
        raise UserError(f"further_weight is the GPT's alone: leave it out for model={c.model}")


def set_further(model: torch.nn.Module, step: int, c) -> None:
    """Give a GPT the weight of the loss of the token after next: from further_weight linearly to 0
    at two thirds of lr_decay_iters. A tensor, so that a compiled graph stays as it is."""
    if c.further_weight:
        if model.further is None:
            model.further = torch.zeros((), device=next(model.parameters()).device)
        left = 1 - 1.5 * step / max(1, c.lr_decay_iters)
        model.further.fill_(c.further_weight * max(0.0, left))


def set_windows(model: torch.nn.Module, step: int, c) -> None:
    """Let attention see less of a text at first: every layer a quarter of its window (a dense one
    of the context) in the first half of window_ramp steps, half of it in the second, as in
    modded-nanogpt. From then on, and always in evaluations, it sees all.
    """
    if not c.window_ramp:
        return
    narrowed = 4 if 2 * step < c.window_ramp else 2 if step < c.window_ramp else 1
    for module in model.modules():
        if isinstance(module, CausalSelfAttention):
            module.narrowed = narrowed
