"""The settings of train.py: those that a training step and its schedule read, for other programs,
and those that clash, are odd or have no effect.

`TrainingStep`, `build_optimizer` and `set_rates` take train.py's settings or a StepSettings.
"""

from dataclasses import dataclass

from bonsai.system.errors import UserError
from bonsai.training.schedule import check_further


@dataclass
class StepSettings:
    """train.py's comments explain each. A test checks that the defaults are the same as there."""

    optimizer: str = "adamw"
    learning_rate: float = 6e-4
    weight_decay: float = 1e-1
    beta1: float = 0.9
    beta2: float = 0.95
    adam_eps: float = 1e-8
    grad_clip: float = 1.0
    embedding_lr: float = 0.3
    table_decay: float = 0.0
    head_lr: float = 4e-3
    scalar_lr: float = 1.5e-2
    momentum: float = 0.95
    momentum_warmup: int = 300
    neuron_beta: float = 0.0
    cautious_decay: bool = False
    decay_lr: bool = True
    lr_schedule: str = "cosine"
    warmup_iters: int = 2000
    lr_decay_iters: int = 600000
    min_lr: float = 6e-5
    cooldown: float = 0.4
    further_weight: float = 0.0
    seed: int = 1337


ONLY_WITH = {  # settings that have an effect only if another one has this value
    ("optimizer", "muon"): (
        "embedding_lr table_decay head_lr scalar_lr momentum momentum_warmup neuron_beta "
        "cautious_decay"
    ),
    ("decay_lr", True): "lr_schedule warmup_iters lr_decay_iters min_lr cooldown",
    ("position", "rope"): "rope_base",
}
NOT_WITH = {  # settings that have no effect if another one has this value
    ("lr_schedule", "cosine"): "cooldown",
    ("attention_window", 0): "window_pattern",
    ("dtype", "float32"): "bfloat16_stream",
    ("dtype", "float16"): "bfloat16_stream",
}


def check_settings(c, world_size: int) -> None:
    """Raise UserError for settings that clash."""
    if c.gradient_accumulation_steps % world_size:
        raise UserError(
            f"gradient_accumulation_steps={c.gradient_accumulation_steps} is not divisible by the "
            f"{world_size} processes: use a multiple of {world_size}"
        )
    check_further(c)
    if c.batch_ramp and c.gradient_accumulation_steps % (4 * world_size):
        raise UserError(
            f"batch_ramp begins with a quarter of gradient_accumulation_steps="
            f"{c.gradient_accumulation_steps}: use a multiple of {4 * world_size}"
        )


def schedule_notes(c) -> list[str]:
    """Lines about a learning rate schedule that is odd, and settings that have no effect."""
    notes = []
    if c.decay_lr and c.lr_decay_iters < c.max_iters:
        notes.append(
            f"from step {c.lr_decay_iters:,} (lr_decay_iters) to {c.max_iters:,} (max_iters) the "
            f"learning rate is min_lr={c.min_lr:g}"
        )
    elif c.decay_lr and c.lr_decay_iters > c.max_iters > 0:
        notes.append(
            f"the run ends at step {c.max_iters:,} (max_iters), before the learning rate is at "
            f"min_lr={c.min_lr:g}: at step {c.lr_decay_iters:,} (lr_decay_iters)"
        )
    if c.decay_lr and c.warmup_iters >= c.max_iters > 0:
        notes.append(
            f"warm-up (warmup_iters={c.warmup_iters:,}) is as long as the run or longer "
            f"(max_iters={c.max_iters:,}): learning_rate={c.learning_rate:g} is never reached"
        )
    if c.decay_lr and c.min_lr > c.learning_rate:
        notes.append(
            f"min_lr={c.min_lr:g} is above learning_rate={c.learning_rate:g}: the rate rises to it"
        )
    for (name, value), words in (ONLY_WITH | NOT_WITH).items():
        idle = [word for word in words.split() if word in c.given]
        if idle and (c[name] == value) == ((name, value) in NOT_WITH):
            notes.append(f"without effect, as {name}={c[name]}: {', '.join(idle)}")
    return notes
