"""bonsai/training/settings.py: the same defaults wherever a model is trained."""

from dataclasses import asdict

from helpers.settings import settings

from bonsai.training.settings import StepSettings


def test_the_defaults_are_those_of_train_py():
    declared = settings("train.py", [])
    assert asdict(StepSettings()) == {name: declared[name] for name in asdict(StepSettings())}


def test_bench_py_has_the_same_defaults():
    declared = settings("bench.py", [])
    shared = asdict(StepSettings()).keys() & declared.keys()
    assert {"learning_rate", "weight_decay", "grad_clip", "seed"} <= shared
    assert all(declared[name] == getattr(StepSettings(), name) for name in shared)
