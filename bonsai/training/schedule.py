"""The learning rate as a pure function of the step, and what else follows the schedule."""

import math

import torch

SCHEDULES = ("cosine", "trapezoid")


def learning_rate_at(step: int, settings: dict) -> float:
    """The rate of a step: constant, nanoGPT's cosine, or a trapezoid.

    Warm-up is linear and never 0. 'cosine' (Loshchilov & Hutter 2017) falls from learning_rate to
    min_lr between warmup_iters and lr_decay_iters; 'trapezoid' (Hagele et al. 2024) stays at
    learning_rate and falls linearly to min_lr over the last `cooldown` share of lr_decay_iters.
    """
    s = settings
    top, low = s["learning_rate"], s["min_lr"]
    if not s["decay_lr"]:
        return top
    if step < s["warmup_iters"]:
        return top * (step + 1) / (s["warmup_iters"] + 1)
    if step > s["lr_decay_iters"]:
        return low
    if s["lr_schedule"] == "trapezoid":
        length = max(1, round(s["cooldown"] * s["lr_decay_iters"]))
        left = (s["lr_decay_iters"] - step) / length  # 1 at the start of the cooldown, 0 at its end
        return low + min(1.0, left) * (top - low)
    ratio = (step - s["warmup_iters"]) / max(1, s["lr_decay_iters"] - s["warmup_iters"])
    return low + 0.5 * (1.0 + math.cos(math.pi * ratio)) * (top - low)


def set_rates(optimizer: torch.optim.Optimizer, step: int, settings: dict) -> float:
    """Set what a step's learning rates and momentum are; returns learning_rate's value.

    All rates follow one schedule, each at its share of learning_rate. Muon's momentum rises
    linearly from 0.85 over momentum_warmup steps.
    """
    lr = learning_rate_at(step, settings)
    for group in optimizer.param_groups:
        group["lr"] = lr * group["share"]
        if group.get("kind") == "muon":
            share = min(1.0, step / max(1, settings["momentum_warmup"]))
            low = min(0.85, settings["momentum"])
            group["momentum"] = low + share * (settings["momentum"] - low)
    return lr
