"""Optimizers by name.

An optimizer is one function and one line in OPTIMIZERS. The function takes (model, c, runtime),
where c are train.py's settings or a StepSettings, and returns a torch.optim.Optimizer whose step
needs no closure. A setting of its own is a line in train.py and one in settings.py beside this
file; that others are without effect is said by ONLY_WITH in settings.py.

- Each of its groups has a learning rate, which the schedule changes in proportion to learning_rate.
- bonsai/training/step.py leaves out steps whose gradient is not finite, and clips gradients, unless
  the optimizer has a method clip_gradients(max_norm).
- It remembers tensors and numbers in its `state`. A resumed run gets them back; its groups are made
  anew from the settings.
- If it has `sharded = True` it averages the gradients over the processes itself, in clip_gradients;
  for the others DistributedDataParallel does that.
"""

import math
from collections import Counter
from collections.abc import Callable
from inspect import signature

import torch
import torch.nn as nn

from bonsai.system.errors import UserError
from bonsai.system.runtime import Runtime
from bonsai.training.adam import fastest_adamw
from bonsai.training.eager import AdamW
from bonsai.training.muon import Muon
from bonsai.training.orthogonal import POLAR_EXPRESS


def clip_gradients(optimizer: torch.optim.Optimizer, max_norm: float) -> torch.Tensor:
    """Scale the gradients down to a norm of max_norm (0: don't), now or within the next step;
    returns the norm before."""
    if hasattr(optimizer, "clip_gradients"):
        return optimizer.clip_gradients(max_norm)
    params = [p for group in optimizer.param_groups for p in group["params"]]
    return torch.nn.utils.clip_grad_norm_(params, max_norm or math.inf)


def guards_itself(optimizer: torch.optim.Optimizer) -> bool:
    """Whether a step changes nothing if the tensor `optimizer.found_inf` is 1. Fused kernels and
    Muon read it on the device; for other optimizers the host has to wait and decide."""
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

    learning_rate is the matrices' rate; the other kinds have their own. Matrices decay by
    weight_decay, and tables by table_decay, as in modded-nanogpt and nanochat.
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
    kinds = {
        k: [p for p in params if p.requires_grad] for k, params in model.param_groups().items()
    }
    kinds = {k: params for k, params in kinds.items() if params}
    if "matrices" not in kinds:
        raise UserError("optimizer=muon is for matrices, of which this model has none: use adamw")
    for name, p in model.named_parameters():
        if p.dim() != 2 and any(p is matrix for matrix in kinds["matrices"]):
            raise UserError(
                f"optimizer=muon is for matrices, and {name} has {p.dim()} dimensions: let the "
                "model's param_groups put it into another group"
            )
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
    except AttributeError as e:
        if e.obj is not c:
            raise
        raise UserError(
            f"optimizer={name} reads a setting {e.name}: give it a line in train.py, and "
            "one in bonsai/training/settings.py, for other programs"
        ) from None
    check_complete(built, model)
    for group in built.param_groups:
        # schedule.set_rates gives the group this share of each step's rate
        group["share"] = group["lr"] / top if (top := c.learning_rate) else 0.0
    return built


def check_complete(optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
    """Raise UserError unless each parameter that has gradients is in one group: without a group it
    would silently keep its first weights."""
    times = Counter(id(p) for group in optimizer.param_groups for p in group["params"])
    for name, p in model.named_parameters():
        if p.requires_grad and times[id(p)] != 1:
            raise UserError(
                f"{name} is in {times[id(p)]} groups of the optimizer, which should be 1: look at "
                f"the optimizer's function and at param_groups of {type(model).__name__}, or "
                "freeze it (requires_grad_(False))"
            )


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: dict) -> None:
    """Load the moments saved by us or by nanoGPT; rates, decay and betas stay as they are set now.

    So does `fused`, which guards_itself needs, and from which torch's load_state_dict decides on
    which device the step counters live.
    """
    own = optimizer.state_dict()["param_groups"]
    saved, now = (
        # (kind, number) of each parameter, in order, and not the groups themselves: before tables
        # could decay they shared a group with the other embeddings
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
