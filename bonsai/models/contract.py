"""The contract of a model: all that the rest of bonsai asks of one, with defaults for most of it.

An architecture is one file with a LanguageModel and a dataclass of its settings, and one line in
bonsai/models/table.py. Two things have no default:

    Model(config)                       config: its dataclass, kept as self.config; it has
                                        block_size and vocab_size, each with a default
    model(idx, targets=None)            idx, targets (B, T) int64 -> (logits, loss): with targets
                                        logits (B, T, V) and the mean cross-entropy in nats over
                                        the targets that are not -1; without: (B, 1, V) and None

A model with a cache names its kind of Cache as `cache_type` and takes a third argument, `cache`:
idx are then the tokens after those in it. Without a cache every token is computed from all before
it. A model whose logits are large takes `return_logits`, see `loss_alone`; one whose shapes depend
on which tokens it reads has `counted`, see `counted_arguments`. The defaults, by their users:

    training      param_groups (all of model.py's GROUPS), crop_block_size, configure_optimizers
                  (whose last argument, the optimizer's class, is optional)
    planning      num_params, flops_per_token, channels_per_token
    engine        new_cache, context_step; what it needs of a cache is the class Cache in cache.py
    benchmarks    serial_layers

On a CPU the engine replaces linear layers wherever it finds them, and the blocks of GPTs and of
decoders, unless their code was edited (edits.py). The GPT itself is no LanguageModel, as model.py
needs only torch, but has all of this. Tests hold every model to the contract.

Checkpoints hold the model's state_dict and the fields of its config, which are bool, int, float,
str or None: what a class makes besides, it makes again when it is loaded. Buffers are constants:
processes do not exchange what one of them writes there.
"""

import inspect

import torch
import torch.nn as nn

from bonsai.models.cache import Cache, TokenCache
from model import GPT, GROUPS


def loss_alone(model: nn.Module) -> dict[str, bool]:
    """Arguments for a forward pass whose logits nobody reads: {'return_logits': False} if the model
    (or the model that was compiled) takes it. Then the logits need not all be in memory."""
    model = getattr(model, "_orig_mod", model)
    takes = "return_logits" in inspect.signature(model.forward).parameters
    return {"return_logits": False} if takes else {}


def counted_arguments(
    model: nn.Module, idx: torch.Tensor, device: torch.device
) -> dict[str, torch.Tensor]:
    """Further arguments for a forward pass of a compiled model: sizes that depend on idx (B, T).

    They are counted here, while idx is still on the host, so that the pass is one graph and does
    not wait for the device.
    """
    counted = getattr(getattr(model, "_orig_mod", model), "counted", None)
    return counted(idx, device) if counted else {}


class LanguageModel(nn.Module):
    """The defaults of the contract; a model overrides what it knows better."""

    cache_type: type[Cache] = TokenCache
    context_step = 1  # a full context moves on by multiples of this many tokens

    def new_cache(self, batch: int, length: int = 0, dtype=None, device=None) -> Cache:
        """An empty cache for `batch` rows of up to `length` tokens (default: block_size)."""
        return self.cache_type.of(self, batch, length, dtype, device)

    def num_params(self, non_embedding: bool = True) -> int:
        """How many parameters; by default without those that are only looked up, not multiplied."""
        n = sum(p.numel() for p in self.parameters())
        multiplied = {id(m.weight) for m in self.modules() if isinstance(m, nn.Linear)}  # if tied
        tables = (p for p in self.param_groups()["embeddings"] if id(p) not in multiplied)
        return n - sum(p.numel() for p in tables) if non_embedding else n

    def flops_per_token(self, T: int | None = None) -> float:
        """To train on one token: 6 per parameter that is multiplied (Kaplan et al. 2020)."""
        return 6 * self.num_params()

    def channels_per_token(self) -> float:
        """Channels of all layers together, from which memory is estimated: here the rows of all
        matrices."""
        return sum(p.size(0) for p in self.param_groups()["matrices"])

    def serial_layers(self) -> float:
        """Layers that a generated token waits for, one after another, on average."""
        return getattr(self.config, "n_layer", 1)

    def crop_block_size(self, block_size: int) -> None:
        """Shorten the context; a model with a table of positions also cuts that."""
        self.config.block_size = block_size

    def param_groups(self) -> dict[str, list[nn.Parameter]]:
        """The parameters by kind, for optimizers that treat them differently; each in one group.
        The head is what is named lm_head; matrices have two dimensions, so filters have none."""
        tables = {id(m.weight) for m in self.modules() if isinstance(m, nn.Embedding)}
        groups = {name: [] for name in GROUPS}
        for name, p in self.named_parameters():
            kind = "matrices" if p.dim() == 2 else "scalars"
            kind = "head" if name.startswith("lm_head") else kind
            groups["embeddings" if id(p) in tables else kind].append(p)
        return groups

    configure_optimizers = GPT.configure_optimizers  # AdamW, by the tensors' dimensions alone
