"""Optimizers by name.

An optimizer is one function and one line in OPTIMIZERS: (model, settings, runtime) -> any
torch.optim.Optimizer, built from the settings of train.py. Its groups keep their rates' share of
learning_rate; clipping and leaving out steps without a finite gradient come by themselves.
"""

import math
from collections.abc import Callable

import torch
import torch.nn as nn

from bonsai.system.errors import UserError
from bonsai.system.runtime import Runtime
from bonsai.training.muon import POLAR_EXPRESS, Muon


class Trainable:
    """What train.py needs of an optimizer beyond torch's: build_optimizer adds it to each that has
    it not.

    sharded: whether it averages the gradients over the processes itself; else
    DistributedDataParallel does.
    """

    sharded = False

    def clip_gradients(self, max_norm: float) -> torch.Tensor:
        """Scale the gradients down to a norm of max_norm (0: don't); returns the norm before."""
        params = [p for group in self.param_groups for p in group["params"]]
        return torch.nn.utils.clip_grad_norm_(params, max_norm or math.inf)

    def step(self, closure: Callable | None = None):
        """A step that changes nothing where found_inf, a tensor, is 1.

        Fused kernels look at it themselves; for the others this waits for the device.
        """
        if not getattr(self, "_step_supports_amp_scaling", False):
            found = self.__dict__.pop("found_inf", None)  # plain kernels refuse to see it
            if found is not None and found:
                return None
        return super().step(closure)


def make_trainable(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The same optimizer with what it lacks of Trainable."""
    kind = type(optimizer)
    if not hasattr(kind, "clip_gradients"):
        optimizer.__class__ = type(kind.__name__, (Trainable, kind), {})
    return optimizer


def adamw(model: nn.Module, settings: dict, runtime: Runtime) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter 2019), fused: tensors of two or more dimensions decay."""
    return model.configure_optimizers(
        settings["weight_decay"],
        settings["learning_rate"],
        (settings["beta1"], settings["beta2"]),
        runtime.device.type,
        settings["adam_eps"],
    )


def muon(model: nn.Module, settings: dict, runtime: Runtime) -> torch.optim.Optimizer:
    """Muon for the matrices of the blocks, AdamW for the rest; see bonsai/training/muon.py.

    learning_rate is the matrices' rate, the other kinds have their own; only matrices decay.
    """
    s = settings
    if runtime.dtype == "float16" and runtime.world_size > 1:
        raise UserError("optimizer=muon on several processes needs bfloat16 or float32")
    adam = {"kind": "adamw", "weight_decay": 0.0, "betas": (s["beta1"], s["beta2"])}
    rates = {
        "embeddings": s["embedding_lr"],
        "head": s["head_lr"],
        "scalars": s["scalar_lr"],
        "residual": s["scalar_lr"] / 100,  # their effect adds up over the layers
    }
    kinds = {k: p for k, p in model.param_groups().items() if p}
    groups = [
        {"params": params, "lr": rates[k], "eps": s["adam_eps"], **adam}
        for k, params in kinds.items()
        if k != "matrices"
    ]
    groups.append(
        {
            "kind": "muon",
            "params": kinds["matrices"],
            "lr": s["learning_rate"],
            "weight_decay": s["weight_decay"],
            "cautious": s["cautious_decay"],
            "momentum": s["momentum"],
            "coefficients": POLAR_EXPRESS,
        }
    )
    dtype = torch.bfloat16 if runtime.dtype == "bfloat16" else torch.float32
    return Muon(groups, dtype, runtime.compile)


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {"adamw": adamw, "muon": muon}


def build_optimizer(model: nn.Module, settings: dict, runtime: Runtime) -> torch.optim.Optimizer:
    """The optimizer named by settings['optimizer'] for a model; UserError for an unknown name."""
    name = settings["optimizer"]
    if name not in OPTIMIZERS:
        raise UserError(f"optimizer={name} is not one of {', '.join(OPTIMIZERS)}")
    try:
        built = make_trainable(OPTIMIZERS[name](model, settings, runtime))
    except ValueError as e:  # torch names the value
        known = "learning_rate, weight_decay, beta1, beta2, adam_eps"
        raise UserError(f"{name}: {e}; look at {known}") from None
    for group in built.param_groups:
        group["share"] = group["lr"] / top if (top := settings["learning_rate"]) else 0.0
    return built


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: dict) -> None:
    """Load the moments saved by us or by nanoGPT; rates, decay and betas stay those set now.

    That also keeps our choice of fused kernels, which the non-finite guard needs, and by which
    load_state_dict decides on which device the step counters live.
    """
    saved, now = (
        [(g.get("kind"), len(g["params"])) for g in s["param_groups"]]
        for s in (state, optimizer.state_dict())
    )
    if saved != now:
        raise UserError(
            "the checkpoint was trained with the other optimizer: set optimizer as it was, or "
            "start from its weights alone, --init_from=FILE"
        )
    groups = [
        {**own, "params": saved["params"]}
        for saved, own in zip(state["param_groups"], optimizer.param_groups)
    ]
    try:
        optimizer.load_state_dict({"state": state["state"], "param_groups": groups})
    except (KeyError, ValueError, RuntimeError) as e:
        raise UserError(
            f"the checkpoint's optimizer does not fit its model ({' '.join(str(e).split()):.120}): "
            "start from its weights alone, --init_from=FILE"
        ) from None
