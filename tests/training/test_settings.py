"""bonsai/training/settings.py: the same defaults wherever a model is trained; odd settings."""

from dataclasses import asdict

import pytest
from helpers.settings import settings

from bonsai.training.settings import StepSettings, schedule_notes
from configurator import Config


def test_the_defaults_are_those_of_train_py():
    declared = settings("train.py", [])
    assert asdict(StepSettings()) == {name: declared[name] for name in asdict(StepSettings())}


def test_bench_py_has_the_same_defaults():
    declared = settings("bench.py", [])
    shared = asdict(StepSettings()).keys() & declared.keys()
    assert {"learning_rate", "weight_decay", "grad_clip", "seed"} <= shared
    assert all(declared[name] == getattr(StepSettings(), name) for name in shared)


BASE = dict(
    decay_lr=True, lr_decay_iters=9, max_iters=9, min_lr=0.0, warmup_iters=0, learning_rate=1e-3
)
BASE |= dict(optimizer="adamw", lr_schedule="cosine", momentum=0.9, cooldown=0.4)
BASE |= dict(position="learned", attention_window=0)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({}, []),
        (dict(warmup_iters=9), ["learning_rate=0.001 is never reached"]),
        (dict(min_lr=2e-3), ["min_lr=0.002 is above learning_rate=0.001: the rate rises to it"]),
        (dict(min_lr=1e-3), []),
        (dict(momentum=0.8), ["without effect, as optimizer=adamw: momentum"]),
        (dict(momentum=0.8, optimizer="muon"), []),
        (dict(neuron_beta=0.9), ["without effect, as optimizer=adamw: neuron_beta"]),
        (dict(table_decay=0.1), ["without effect, as optimizer=adamw: table_decay"]),
        (dict(cooldown=0.5), ["without effect, as lr_schedule=cosine: cooldown"]),
        (dict(cooldown=0.5, lr_schedule="of one's own"), []),
        (dict(decay_lr=False, min_lr=1e-4), ["without effect, as decay_lr=False: min_lr"]),
        (dict(rope_base=5e5), ["without effect, as position=learned: rope_base"]),
        (dict(rope_base=5e5, position="rope"), []),
        (dict(window_pattern="DL"), ["without effect, as attention_window=0: window_pattern"]),
        (dict(window_pattern="DL", attention_window=8), []),
        (
            dict(bfloat16_stream=True, dtype="float32"),
            ["without effect, as dtype=float32: bfloat16_stream"],
        ),
        (dict(bfloat16_stream=True, dtype="bfloat16"), []),
        (dict(lr_decay_iters=5), ["from step 5"]),
        (dict(lr_decay_iters=10), ["the run ends at step 9 (max_iters), before the learning rate"]),
        (dict(lr_decay_iters=10, max_iters=0), []),
        (dict(lr_decay_iters=10, decay_lr=False), ["without effect, as decay_lr=False"]),
    ],
)
def test_what_is_odd_is_said(changes, words):
    c = Config({**BASE, **changes})
    c.given, c.defaults = set(changes), BASE
    notes = schedule_notes(c)
    assert len(notes) == len(words)
    for note, word in zip(notes, words):
        assert word in note
