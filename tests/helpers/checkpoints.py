"""Checkpoints without a model."""

import torch


def state(step: int = 1) -> dict:
    weights = torch.arange(3000, dtype=torch.float32) + step
    return {"model": {"w": weights}, "model_args": {"n_layer": 1}, "iter_num": step}


def one_line(e) -> str:
    text = str(e.value)
    assert "\n" not in text
    return text
