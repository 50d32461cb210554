"""Tiny models of bytes, of each kind, whose answers depend on all they may depend on."""

import pytest
import torch

from bonsai.models.megabyte import Megabyte, MegabyteConfig
from bonsai.models.spacebyte import Spacebyte, SpacebyteConfig

B, V, P = 2, 31, 4  # rows, vocabulary and patch of MEGABYTE's
SIZES = dict(n_layer=2, n_head=2, n_embd=32, patch_size=P)
SIZES |= dict(local_layer=2, local_head=2, local_embd=16)
MEGABYTE = dict(**SIZES, block_size=24, vocab_size=V)
SPACEBYTE = dict(**SIZES, block_size=40, local_window=0)
MODERN = dict(
    bias=False, norm="rmsnorm", norm_gain=False, norm_embedding=True, position="rope",
    activation="relu2", qk_norm=True, tie_head=False, logit_softcap=15.0,
)  # fmt: skip
MEGABYTES = {
    "paper": {},
    "modern": MODERN,
    "sinusoidal, no bias": dict(position="sinusoidal", bias=False),
    "no positions": dict(position="none"),
    "cross-patch": dict(cross_patch=2),
    "cross-patch, whole, rope": dict(cross_patch=4, position="rope", local_layer=3),
    "convolutions": dict(conv_encoder=True),
    "all": dict(**MODERN, cross_patch=3, conv_encoder=True, n_kv_head=1),
    "patches of 3": dict(patch_size=3, n_embd=24),
    "patches of 1": dict(patch_size=1),
}
SPACEBYTES = {
    "plain": {},
    "fixed": dict(boundary="fixed"),
    "modern": MODERN,
    "modern, fixed": dict(**MODERN, boundary="fixed", n_kv_head=1),
    "sinusoidal": dict(position="sinusoidal", local_layer=4),
    "windows": dict(position="rope", local_window=5),
}
MODELS = {
    "megabyte": (Megabyte, MegabyteConfig, MEGABYTE),
    "spacebyte": (Spacebyte, SpacebyteConfig, SPACEBYTE),
}
TEXT = b"a few words. 2 x=[1,\xc3\xa9t\xc3\xa9] \xe6\x9c\xa8\xe6\x9c\xa8  End!\n"

ALL = [("megabyte", n, f) for n, f in MEGABYTES.items()]
ALL += [("spacebyte", n, f) for n, f in SPACEBYTES.items()]
# every variant of every model: (name of the model, its fields)
every = pytest.mark.parametrize(
    "name, fields", [pytest.param(name, f, id=f"{name}, {n}") for name, n, f in ALL]
)


def make(name: str, **fields) -> Megabyte | Spacebyte:
    """A model with weights so large that all depends on all it may depend on."""
    torch.manual_seed(0)
    kind, make_config, shape = MODELS[name]
    model = kind(make_config(**{**shape, **fields})).double().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return model


def batch(name: str, t: int, seed: int = 1, rows: int = B) -> torch.Tensor:
    """Rows of t bytes: any for MEGABYTE, for SpaceByte two of a text, whose patches begin at
    different places."""
    if name == "megabyte":
        return torch.randint(V, (rows, t), generator=torch.Generator().manual_seed(seed))
    ids = torch.tensor(list(TEXT * 2))
    return torch.stack((ids[:t], ids[7 : 7 + t]))


@torch.no_grad()
def logits_of(model: torch.nn.Module, idx: torch.Tensor) -> torch.Tensor:
    return model(idx, idx)[0]


def chosen(model: Spacebyte, idx: torch.Tensor) -> torch.Tensor:
    """Where patches begin: (B, T) bool."""
    return model.boundaries(idx, torch.arange(idx.size(1)).expand(idx.shape))
