"""Checkpoints, with a model and without."""

from pathlib import Path

import pytest
import torch

from bonsai.models.table import describe_model
from model import GPT, GPTConfig


def state(step: int = 1) -> dict:
    weights = torch.arange(3000, dtype=torch.float32) + step
    return {"model": {"w": weights}, "model_args": {"n_layer": 1}, "iter_num": step}


needs_resource = pytest.mark.skipif(
    not Path("/proc/self/statm").exists(), reason="limits the address space, which needs Linux"
)


def tiny(**fields) -> tuple[GPT, dict]:
    """A model, and its checkpoint as train.py writes it."""
    torch.manual_seed(0)
    sizes = dict(n_layer=2, n_head=2, n_embd=16, block_size=8, vocab_size=30)
    model = GPT(GPTConfig(**{**sizes, **fields}))
    optimizer = model.configure_optimizers(0.1, 1e-3, (0.9, 0.95), "cpu")
    idx = torch.arange(16).view(2, 8)
    model(idx, idx)[1].backward()
    optimizer.step()
    return model, {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scaler": {},
        **describe_model(model, "gpt"),
        "iter_num": 3,
        "best_val_loss": torch.tensor(2.5),
        "config": {"dataset": "meta", "learning_rate": 1e-3, "compile": False},
        "tokenizer": {"type": "char", "chars": list("abcdefghijklmnopqrstuvwxyz ,.\n")},
        "chat_template": None,
        "data": {"meta/train": "0" * 64},
        "progress": {"evaluated": 3, "bad_evals": 0, "seconds": 1.5, "best_val_loss": 2.5},
        "wandb_id": None,
        "versions": {"torch": "2"},
        "format": 1,
    }


def replaced(value, path: list[str], new):
    """A copy of nested dicts and lists in which what stands at `path` is `new`."""
    if not path:
        return new
    key = path[0] if isinstance(value, dict) and path[0] in value else None
    if key is None and isinstance(value, dict | list) and path[0].isdecimal():
        key = int(path[0])
    if key is None:  # a name with dots in it
        key, path = ".".join(path), path[-1:]
    copy = list(value) if isinstance(value, list) else dict(value)
    copy[key] = replaced(value.get(key) if isinstance(value, dict) else value[key], path[1:], new)
    return copy
