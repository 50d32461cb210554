"""The settings of train.py that a training step and its schedule read, for other programs.

`TrainingStep`, `build_optimizer` and `set_rates` take train.py's settings or a StepSettings.
"""

from dataclasses import dataclass


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
