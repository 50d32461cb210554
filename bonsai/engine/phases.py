"""The two phases of inference, and the cache of a model that cannot remember."""

from collections.abc import Sequence

import torch

from bonsai.engine.sampling import SamplingParams
from bonsai.errors import UserError


def prefill(model: torch.nn.Module, idx: torch.Tensor, cache=None) -> torch.Tensor:
    """idx (B, T), tokens behind those in the cache -> logits (B, V) of what follows them."""
    if isinstance(cache, TokenCache):
        return cache.forward(model, idx)
    return model(idx, cache=cache)[0][:, -1] if cache is not None else model(idx)[0][:, -1]


def all_logits(model: torch.nn.Module, idx: torch.Tensor, cache) -> torch.Tensor:
    """As prefill, with the logits behind each of the tokens: (B, T, V). Rows equally long."""
    if isinstance(cache, TokenCache):
        cache.append(idx)
        seen = cache.ids[:, : cache.lengths[0]]
        return model(seen, seen)[0][:, -idx.size(1) :]
    return model(idx, idx, cache=cache)[0]


def decode_one_token(model: torch.nn.Module, idx: torch.Tensor, cache) -> torch.Tensor:
    """idx (B, 1), the tokens behind those in the cache -> logits (B, V) of what follows them."""
    return prefill(model, idx, cache)


class TokenCache:
    """For architectures without a cache: remembers the tokens alone and recomputes the rest.

    The same methods as model.KVCache, so that every model goes through the same engine.
    """

    def __init__(self, batch: int, length: int, device: torch.device):
        self.ids = torch.zeros((batch, length), dtype=torch.int64, device=device)
        self.lengths = [0] * batch

    @property
    def length(self) -> int:
        return self.ids.size(1)

    def view(self, begin: int, end: int, length: int = 0) -> "TokenCache":
        part = TokenCache(0, 0, self.ids.device)
        part.ids, part.lengths = self.ids[begin:end], self.lengths[begin:end]
        return part

    def copy_row(self, row: int, source: "TokenCache", source_row: int, length: int) -> None:
        self.ids[row, :length] = source.ids[source_row, :length]
        self.lengths[row] = length

    def clone(self, length: int) -> "TokenCache":
        part = self.view(0, len(self.lengths))
        part.ids = part.ids[:, :length].clone()
        return part

    def append(self, idx: torch.Tensor) -> None:
        T = idx.size(1)
        for row, n in enumerate(self.lengths):
            self.ids[row, n : n + T] = idx[row]
        self.lengths = [n + T for n in self.lengths]

    def forward(self, model: torch.nn.Module, idx: torch.Tensor) -> torch.Tensor:
        """As prefill."""
        self.append(idx)
        if len(set(self.lengths)) == 1:
            return model(self.ids[:, : self.lengths[0]])[0][:, -1]
        rows = [model(self.ids[i : i + 1, :n])[0][:, -1] for i, n in enumerate(self.lengths)]
        return torch.cat(rows)


def new_cache(model: torch.nn.Module, batch: int, length: int, dtype=None):
    """The model's own cache, or one of tokens for a model that has none."""
    if hasattr(model, "new_cache"):
        return model.new_cache(batch, length, dtype or compute_dtype(model))
    return TokenCache(batch, length, next(model.parameters()).device)


def compute_dtype(model: torch.nn.Module) -> torch.dtype:
    """What the keys and values are computed in: autocast's dtype where on, else the weights'."""
    weight = next(model.parameters())
    if torch.is_autocast_enabled(weight.device.type):
        return torch.get_autocast_dtype(weight.device.type)
    return weight.dtype


def check_request(prompt: Sequence[int], params: SamplingParams, n: int, vocab_size: int) -> None:
    """Raise UserError for what a model of this vocabulary cannot do."""
    if not prompt:
        raise UserError("the prompt is empty: give at least one token to continue")
    for token in prompt:
        if not 0 <= token < vocab_size:
            raise UserError(f"token {token} is outside the model's vocabulary of {vocab_size}")
    if n < 1:
        raise UserError(f"n={n} must be at least 1")
    for token, _ in params.logit_bias:
        if token >= vocab_size:
            raise UserError(f"logit_bias: token {token} is outside the vocabulary of {vocab_size}")
