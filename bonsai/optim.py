"""Optimizers by name, and the learning rate as a pure function of the step."""

import math
from collections.abc import Callable

import torch
import torch.nn as nn

from bonsai.errors import UserError


def adamw(model: nn.Module, settings: dict, device_type: str) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter 2019), fused, in the model's own two groups."""
    return model.configure_optimizers(
        settings["weight_decay"],
        settings["learning_rate"],
        (settings["beta1"], settings["beta2"]),
        device_type,
        settings["adam_eps"],
    )


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {"adamw": adamw}
SCHEDULES = ("cosine", "trapezoid")


def build_optimizer(model: nn.Module, settings: dict, device_type: str) -> torch.optim.Optimizer:
    """The optimizer named by settings['optimizer'] for a model; UserError for an unknown name."""
    name = settings["optimizer"]
    if name not in OPTIMIZERS:
        raise UserError(f"optimizer={name} is not one of {', '.join(OPTIMIZERS)}")
    try:
        return OPTIMIZERS[name](model, settings, device_type)
    except ValueError as e:  # torch names the value
        known = "learning_rate, weight_decay, beta1, beta2, adam_eps"
        raise UserError(f"{name}: {e}; look at {known}") from None


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: dict) -> None:
    """Load the moments saved by us or by nanoGPT; rates, decay and betas stay those set now.

    That also keeps our choice of fused kernels, which the non-finite guard needs, and by which
    load_state_dict decides on which device the step counters live.
    """
    groups = [
        {**own, "params": saved["params"]}
        for saved, own in zip(state["param_groups"], optimizer.param_groups)
    ]
    optimizer.load_state_dict({"state": state["state"], "param_groups": groups})


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
