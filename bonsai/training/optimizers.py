"""Optimizers by name.

An optimizer is one function and one line in OPTIMIZERS: (model, c, runtime) -> a
torch.optim.Optimizer whose step needs no closure, built from the settings `c` of train.py, or a
StepSettings. Each of its groups has a rate, which the schedule moves in proportion to
learning_rate; leaving out a step without a finite gradient is bonsai/training/step.py's, and so is
clipping, unless it has a method clip_gradients(max_norm). What it remembers are tensors and numbers
in its `state`: a run that is resumed has them back, and its groups as the settings then make them.
One with `sharded = True` averages the gradients over the processes itself, in that method; for the
others DistributedDataParallel does.
"""

import math
from collections.abc import Callable
from inspect import signature

import torch
import torch.nn as nn

from bonsai.system.errors import UserError
from bonsai.system.runtime import Runtime
from bonsai.training.adam import fastest_adamw
from bonsai.training.eager import AdamW
from bonsai.training.muon import POLAR_EXPRESS, Muon


def clip_gradients(optimizer: torch.optim.Optimizer, max_norm: float) -> torch.Tensor:
    """Scale the gradients down to a norm of max_norm (0: don't), by the next step at the latest;
    returns the norm before."""
    if hasattr(optimizer, "clip_gradients"):
        return optimizer.clip_gradients(max_norm)
    params = [p for group in optimizer.param_groups for p in group["params"]]
    return torch.nn.utils.clip_grad_norm_(params, max_norm or math.inf)


def guards_itself(optimizer: torch.optim.Optimizer) -> bool:
    """Whether a step changes nothing where `optimizer.found_inf`, a tensor, is 1: fused kernels and
    Muon look at it on the device, where others would have to be waited for."""
    return getattr(optimizer, "_step_supports_amp_scaling", False)


def adamw(model: nn.Module, c, runtime: Runtime) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter 2019), fused: tensors of two or more dimensions decay; see
    bonsai/training/adam.py."""
    configure, betas = model.configure_optimizers, (c.beta1, c.beta2)
    kind = {"make": AdamW} if "make" in signature(configure).parameters else {}
    built = configure(
        c.weight_decay, c.learning_rate, betas, runtime.device.type, c.adam_eps, **kind
    )
    return fastest_adamw(built)


def muon(model: nn.Module, c, runtime: Runtime) -> torch.optim.Optimizer:
    """Muon for the matrices of the blocks, AdamW for the rest; see bonsai/training/muon.py.

    learning_rate is the matrices' rate, the other kinds have their own. Matrices decay, and tables
    by table_decay, as they do in modded-nanogpt and nanochat.
    """
    if runtime.dtype == "float16" and runtime.world_size > 1:
        raise UserError("optimizer=muon on several processes needs bfloat16 or float32")
    adam = {"kind": "adamw", "betas": (c.beta1, c.beta2), "eps": c.adam_eps}
    decays = {"tables": c.table_decay}
    rates = {
        "embeddings": c.embedding_lr,
        "tables": c.embedding_lr,
        "head": c.head_lr,
        "scalars": c.scalar_lr,
        "residual": c.scalar_lr / 100,  # their effect adds up over the layers
    }
    kinds = {k: p for k, p in model.param_groups().items() if p}
    if "matrices" not in kinds:
        raise UserError("optimizer=muon is for matrices, of which this model has none: use adamw")
    groups = [
        {"params": params, "lr": rates[k], "weight_decay": decays.get(k, 0.0), **adam}
        for k, params in kinds.items()
        if k != "matrices"
    ]
    groups.append(
        {
            "kind": "muon",
            "params": kinds["matrices"],
            "lr": c.learning_rate,
            "weight_decay": c.weight_decay,
            "cautious": c.cautious_decay,
            "momentum": c.momentum,
            "neuron_beta": c.neuron_beta,
            "coefficients": POLAR_EXPRESS,
        }
    )
    dtype = torch.bfloat16 if runtime.dtype == "bfloat16" else torch.float32
    return Muon(groups, dtype, runtime.compile)


ADAM = {"step", "exp_avg", "exp_avg_sq"}  # what AdamW and Muon remember of a parameter, all or none

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {"adamw": adamw, "muon": muon}


def build_optimizer(model: nn.Module, c, runtime: Runtime) -> torch.optim.Optimizer:
    """The optimizer named by c.optimizer for a model; UserError for an unknown name."""
    name = c.optimizer
    if name not in OPTIMIZERS:
        raise UserError(f"optimizer={name} is not one of {', '.join(OPTIMIZERS)}")
    try:
        built = OPTIMIZERS[name](model, c, runtime)
    except ValueError as e:  # torch names the value
        known = "learning_rate, weight_decay, beta1, beta2, adam_eps"
        raise UserError(f"{name}: {e}; look at {known}") from None
    for group in built.param_groups:
        # of learning_rate, which the schedule changes from step to step
        group["share"] = group["lr"] / top if (top := c.learning_rate) else 0.0
    return built


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: dict) -> None:
    """Load the moments saved by us or by nanoGPT; rates, decay and betas stay those set now.

    That also keeps our choice of fused kernels, which the non-finite guard needs, and by which
    load_state_dict decides on which device the step counters live.
    """
    own = optimizer.state_dict()["param_groups"]
    saved, now = (
        # numbered in order; tables were in a group with other embeddings before they could decay
        [(g.get("kind", i), number) for i, g in enumerate(groups) for number in g["params"]]
        for groups in (state["param_groups"], own)
    )
    if saved != now:
        raise UserError(
            "the checkpoint was trained with another optimizer: set optimizer as it was, or "
            "start from its weights alone, --init_from=FILE"
        )
    entries = state["state"].values()
    if isinstance(optimizer, torch.optim.AdamW | Muon) and any(
        entry.keys() & ADAM and not entry.keys() >= ADAM for entry in entries
    ):
        raise UserError(
            f"the checkpoint's optimizer has not all of {', '.join(sorted(ADAM))}: start from its "
            "weights alone, --init_from=FILE"
        )
    groups = [
        {**group, "params": numbered["params"]}
        for numbered, group in zip(own, optimizer.param_groups)
    ]
    try:
        optimizer.load_state_dict({"state": state["state"], "param_groups": groups})
    except (LookupError, ValueError, TypeError, AttributeError, RuntimeError) as e:
        raise UserError(
            f"the checkpoint's optimizer does not fit its model ({' '.join(str(e).split()):.120}): "
            "start from its weights alone, --init_from=FILE"
        ) from None
