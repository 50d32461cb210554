"""Folders as transformers writes them, of a tiny GPT-2 of its own shape."""

import json
from pathlib import Path

import pytest
import torch

SIZES = dict(vocab_size=61, n_positions=24, n_embd=32, n_layer=3, n_head=4, bos_token_id=60)


transformers = pytest.importorskip("transformers", reason="transformers is not installed")


def save(folder: Path, seed: int = 0, safe: bool = True, **fields) -> Path:
    """A GPT2LMHeadModel of its own shape with weights that are not nearly zero."""
    torch.manual_seed(seed)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**{**SIZES, **fields})).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(0, 0.3)
    model.save_pretrained(folder)
    if not safe:
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
    return folder


def change(folder: Path, **fields) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def logits(model, ids) -> torch.Tensor:
    """Of our model at every position, (B, T, V), to compare with those of transformers."""
    with torch.no_grad():
        return model(ids, ids)[0]
