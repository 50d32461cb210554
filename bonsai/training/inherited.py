"""Settings that a run takes from the weights it begins with, and those that the command decides.

The fields of the architecture are those of the weights. If a run goes on, all its other settings
are taken, too, unless the command gives them. A setting that the command gives and that does not
fit the weights is an error.
"""

import shlex
from dataclasses import fields

import torch.nn as nn

from bonsai.models.loading import RUN_FIELDS, Loaded
from bonsai.models.table import CONFIGS
from bonsai.system.errors import UserError

# never taken from a checkpoint: where a run is, on what machine, and what it is to do this time
OF_THE_COMMAND = ("out_dir", "init_from", "eval_only", "other_tokenizer", "wandb_run_name")
OF_THE_COMMAND += ("device", "dtype", "compile", "backend")


def take_settings(c, before: dict, source: str) -> None:
    """Take the settings that the command leaves out from `before`, those of the run that goes on.

    source: its checkpoint, for messages.
    """
    used = before.get("optimizer", "adamw")  # nanoGPT's checkpoints do not say
    if "optimizer" in c.given and c.optimizer != used:
        advice = shlex.quote(f"--init_from={source}")
        raise UserError(
            f"{source} was trained with another optimizer, {used}: leave optimizer={c.optimizer} "
            f"out, or start from its weights alone, {advice}"
        )
    normuon = "neuron_beta" in c.given and c.neuron_beta
    if used == "muon" and normuon and not before.get("neuron_beta"):
        advice = shlex.quote(f"--init_from={source}")
        raise UserError(
            f"{source} was trained without neuron_beta: set neuron_beta=0, or start from its "
            f"weights alone, {advice}"
        )
    for name, value in before.items():
        if name in (*c.given, *OF_THE_COMMAND, "model") or name not in c.defaults:
            continue
        if type(value) is type(c.defaults[name]):
            setting = getattr(c, "settings", {}).get(name)
            if setting and (fault := setting.fault(value)):
                raise UserError(f"{source} was trained with {name}={value!r:.60}, which {fault}")
            c[name] = value


def fit_model(c, loaded: Loaded) -> None:
    """Set the settings of the model to the loaded one's. Raises UserError for one that the command
    gives and that the weights cannot follow."""
    model, config = loaded.model, vars(loaded.model.config)
    given = [name for name in c if name in c.given]  # in the order of their declaration
    if "model" in given and c.model != loaded.name:
        raise UserError(
            f"{loaded.source} is a {loaded.name}, not a {c.model}: leave --model={c.model} out"
        )
    others = set()  # fields of the architecture in `c` that the loaded one does not have
    if c.model in CONFIGS:
        others = {f.name for f in fields(CONFIGS[c.model])} - config.keys()
    for name in given:
        if name in others:
            raise UserError(
                f"{loaded.source} is a {loaded.name}, which has no {name}: leave it out"
            )
        if name not in config or name in RUN_FIELDS or c[name] == config[name]:
            continue
        if name == "block_size" and c.block_size < config[name]:
            try:
                model.crop_block_size(c.block_size)
            except ValueError as e:
                raise UserError(e) from None
            continue
        if name == "block_size" and loaded.name == "gpt" and model.config.position != "learned":
            model.config.block_size = c.block_size  # no part of it is as long as the context
            continue
        has = f"has {name}={config[name]}"
        if name == "block_size":
            has = f"has a context of {config[name]}"
        raise UserError(
            f"{loaded.source} {has}, so {name}={c[name]} cannot be: leave it out, or train a new "
            "model with --init_from=scratch"
        )
    for name in others:
        c.pop(name, None)
    c["model"] = loaded.name
    for name, value in config.items():
        c[name] = value
        c.defaults.setdefault(name, value)


def defaults_of(c, model: nn.Module) -> dict:
    """Defaults of the settings that the command gives, except for fields that the weights fix.

    They stand in for settings that a checkpoint does not have, because it is nanoGPT's or older
    than the setting: its run trained with what is the default now.
    """
    fixed = vars(model.config).keys() - set(RUN_FIELDS)
    return {k: c.defaults[k] for k in c.defaults if k in c.given and k not in fixed}


def changed_settings(before: dict, now: dict) -> str:
    """What differs in a resumed run from before, as '; changed: batch_size 64 -> 32'; or ''."""
    changed = [
        f"{k} {before[k]} -> {v}"
        for k, v in now.items()
        if k in before and before[k] != v and k not in (*OF_THE_COMMAND, "max_iters")
    ]
    return f"; changed: {', '.join(changed)}" if changed else ""
