"""What a model remembers of the tokens that it has read, so that it only computes new ones.

    cache = model.new_cache(batch=2)
    model(prompts, cache=cache)             # (2, T): the tokens so far
    logits, _ = model(ids, cache=cache)     # (2, 1): one more token each -> (2, 1, V)

`Cache` keeps track of rows and tokens, whatever is remembered of them. KVCache remembers keys and
values, TokenCache only the tokens. byte_caches.py has the caches of the byte models.
"""

import copy
import math
from collections.abc import Sequence

import torch

from model import GPTConfig, causal_mask


class Cache:
    """Rows of tokens; row i holds lengths[i] of them. This is all that the engine needs of a cache.

    A subclass lists its buffers, as (name of the attribute, axis of the rows, axis of the tokens;
    None if a row has a single entry, which is 0 at first), and the attributes that are caches of
    parts of the model. A single entry, such as the state of a recurrent model, is that of all
    tokens: it cannot be cut back to fewer, unless a subclass knows how.
    """

    buffers: tuple[tuple[str, int, int | None], ...] = ()
    parts: tuple[str, ...] = ()
    unit = "tokens"  # what the model reads, for messages

    def __init__(self, batch: int, length: int):
        self.lengths = [0] * batch
        self.length = length  # tokens that a row has room for

    @classmethod
    def of(cls, model: torch.nn.Module, batch: int, length: int = 0, dtype=None, device=None):
        """An empty cache for `batch` rows of up to `length` tokens (0: block_size), by default in
        the model's dtype and on its device. ValueError if a table of positions is too short."""
        c, weight = model.config, next(model.parameters())
        length = length or c.block_size
        if getattr(c, "position", "") == "learned" and length > c.block_size:
            raise ValueError(f"{length} {cls.unit} do not fit block_size {c.block_size}")
        return cls(c, batch, length, dtype or weight.dtype, device or weight.device)

    def entries(self, name: str, tokens: int, row: int | None = None) -> int:
        """How many entries of a buffer or part hold the first `tokens` of a row; without a row: at
        most."""
        return tokens

    @property
    def shortens(self) -> bool:
        """Whether the first tokens of a row can be copied without the rest."""
        return all(tokens is not None for *_, tokens in self.buffers)

    @property
    def rewinds(self) -> bool:
        """Whether a smaller length makes a row forget its last tokens."""
        return self.shortens

    @property
    def used(self) -> int:
        """Tokens in the longest row."""
        return max(self.lengths)

    @property
    def nbytes(self) -> int:
        """Bytes of memory for all rows."""
        total = sum(getattr(self, name).nbytes for name, *_ in self.buffers)
        return total + sum(getattr(self, name).nbytes for name in self.parts)

    def reset(self) -> None:
        """Forget all tokens."""
        self.lengths = [0] * len(self.lengths)
        for name, _, tokens in self.buffers:
            if tokens is None:
                getattr(self, name).zero_()

    def expand(self, n: int) -> None:
        """Turn the only row into n equal rows, in place."""
        for name, rows, _ in self.buffers:
            setattr(self, name, getattr(self, name).repeat_interleave(n, rows))
        for name in self.parts:
            getattr(self, name).expand(n)
        self.lengths = self.lengths * n

    def view(self, begin: int, end: int, length: int = 0) -> "Cache":
        """Rows begin ... end - 1 (and only `length` tokens of them) in the same memory, but with
        lengths of their own."""
        part = copy.copy(self)
        for name, rows, tokens in self.buffers:
            x = getattr(self, name).narrow(rows, begin, end - begin)
            if length and tokens is not None:
                x = x.narrow(tokens, 0, self.entries(name, length))
            setattr(part, name, x)
        for name in self.parts:
            most = self.entries(name, length) if length else 0
            setattr(part, name, getattr(self, name).view(begin, end, most))
        part.lengths, part.length = self.lengths[begin:end], length or self.length
        return part

    def copy_row(self, row: int, source: "Cache", source_row: int, length: int) -> None:
        """Copy the first `length` tokens of a row of another cache (or of this one) into `row`."""
        for name, rows, tokens in self.buffers:
            x, y = getattr(self, name).narrow(rows, row, 1), getattr(source, name)
            y = y.narrow(rows, source_row, 1)
            if tokens is not None:
                n = source.entries(name, length, source_row)
                x, y = x.narrow(tokens, 0, n), y.narrow(tokens, 0, n)
            x.copy_(y)
        for name in self.parts:
            n = source.entries(name, length, source_row)
            getattr(self, name).copy_row(row, getattr(source, name), source_row, n)
        self.lengths[row] = length

    def clone(self, length: int) -> "Cache":
        """A copy of the first `length` tokens of every row."""
        part = self.view(0, len(self.lengths), length)
        for name, *_ in self.buffers:
            setattr(part, name, getattr(part, name).clone())
        for name in self.parts:
            inner = getattr(part, name)
            setattr(part, name, inner.clone(inner.length))
        return part


class KVCache(Cache):
    """Keys and values of each layer: k, v (n_layer, B, nkv, length, hs). For a model with bigram
    embeddings also the tokens: ids (B, length).

    In a forward pass `place` gives the positions of the next tokens, each layer's attention calls
    `update` to append their keys and values, and `advance` counts them. If `pos`, a tensor (B,), is
    set, the positions come from it, and the whole buffers are read: so addresses and shapes are
    fixed, for a step that is compiled or captured as a graph. Then the caller counts the lengths.
    """

    buffers = (("k", 1, 3), ("v", 1, 3))

    def __init__(self, config: GPTConfig, batch: int, length: int, dtype, device):
        super().__init__(batch, length)
        shape = (config.n_layer, batch, config.kv_heads, length, config.head_dim)
        self.k = torch.zeros(shape, dtype=dtype, device=device)
        self.v = torch.zeros(shape, dtype=dtype, device=device)
        if config.bigram_embeddings:
            self.buffers += (("ids", 0, 1),)
            self.ids = torch.zeros((batch, length), dtype=torch.int64, device=device)
        self.pos = None

    def reshaped(self, rows: int, length: int) -> "KVCache":
        """An empty cache of another shape in the same memory, which must be large enough."""
        part = copy.copy(self)
        for name, at_rows, at_tokens in self.buffers:
            shape = list(getattr(self, name).shape)
            shape[at_rows], shape[at_tokens] = rows, length
            memory = getattr(self, name).view(-1)[: math.prod(shape)]
            setattr(part, name, memory.view(shape))
        part.lengths, part.length = [0] * rows, length
        return part

    def copy_rows(self, rows: Sequence[int], source: "KVCache", lengths: Sequence[int]) -> None:
        """`copy_row` for all of `rows` at once, from the first rows of another cache.

        Each row is copied up to the longest of `lengths`, whatever is there beyond its own length.
        """
        index = torch.tensor(rows).to(self.k.device, non_blocking=True)
        for name, at_rows, at_tokens in self.buffers:
            x, y = (getattr(c, name).narrow(at_tokens, 0, max(lengths)) for c in (self, source))
            x.index_copy_(at_rows, index, y.narrow(at_rows, 0, len(rows)))
        for row, length in zip(rows, lengths):
            self.lengths[row] = length

    def place(self, T: int) -> torch.Tensor:
        """Positions of the next T tokens: (T,), or (B, 1, T) where the rows differ."""
        self.mask, self.masks, first = None, {}, self.lengths[0]
        if self.pos is None and self.lengths.count(first) == len(self.lengths):
            self.at, self.end = None, first + T
            if 1 < T < self.end:  # several tokens after others: they see those and one another
                self.mask = causal_mask(T, self.end, 0, self.k.device)
            pos = torch.arange(first, self.end, device=self.k.device)
            self.queries = pos[:, None]  # (T, 1)
            return pos
        pos = torch.tensor(self.lengths, device=self.k.device) if self.pos is None else self.pos
        self.at = pos[:, None]  # (B, T)
        if T > 1:
            self.at = self.at + torch.arange(T, device=self.k.device)
        self.end = self.used + T if self.pos is None else self.length
        self.queries = self.at[:, None, :, None]  # (B, 1, T, 1)
        if self.pos is None:  # else window_mask makes it if needed: a step's own kernels need none
            self.mask = torch.arange(self.end, device=self.k.device) <= self.queries
        return self.at[:, None]

    def before(self, idx: torch.Tensor) -> torch.Tensor:
        """Store the placed tokens idx (B, T). Returns the token before each; 0 before the first."""
        at = self.at  # (B, T), or the same for all rows
        if at is None:
            at = torch.arange(self.end - idx.size(1), self.end, device=idx.device).expand_as(idx)
        self.ids.scatter_(1, at, idx)
        return self.ids.gather(1, (at - 1).clamp(min=0)) * (at > 0)

    def update(self, layer: int, k: torch.Tensor, v: torch.Tensor, window: int = 0):
        """Append k, v (B, nkv, T, hs) of the placed tokens -> keys, values, mask.

        Returns keys and values of all tokens so far (or, for a single query, of those that it
        sees), and the mask for model.attention. window: how many positions a query sees, its own
        included; 0: all.
        """
        K, V, T = self.k[layer], self.v[layer], k.size(2)
        if self.at is None:  # narrow, as a slice takes twice as long, and a step has dozens of them
            K.narrow(2, self.end - T, T).copy_(k)
            V.narrow(2, self.end - T, T).copy_(v)
        elif self.pos is not None:  # scatter is one kernel, an index would be several
            at = self.at[:, None, :, None].expand(k.shape)
            K.scatter_(2, at, k.type_as(K))
            V.scatter_(2, at, v.type_as(V))
        else:
            rows = torch.arange(k.size(0), device=k.device)[:, None]
            K.transpose(1, 2)[rows, self.at] = k.transpose(1, 2).type_as(K)
            V.transpose(1, 2)[rows, self.at] = v.transpose(1, 2).type_as(V)
        K, V, mask = K.narrow(2, 0, self.end), V.narrow(2, 0, self.end), self.mask
        if K.dtype != k.dtype:
            K, V = K.to(k.dtype), V.to(v.dtype)
        if mask is not None or self.pos is not None:
            mask = self.window_mask(window, k.dtype)
        elif window and T == 1:
            K, V = K[:, :, -window:], V[:, :, -window:]
        return K, V, mask

    def window_mask(self, window: int, dtype: torch.dtype) -> torch.Tensor:
        """The mask for a window (0: no window), made once for all layers of a forward pass.

        With `pos` it holds what is added to the scores, 0 or -inf, because on CUDA torch would make
        that of a bool mask anew in every layer.
        """
        if window not in self.masks:
            mask = self.mask
            if mask is None or window:
                keys = torch.arange(self.end, device=self.k.device)
            if mask is None:
                mask = keys <= self.queries
            if window:
                mask = mask & (keys > self.queries - window)
            if self.pos is not None:
                mask = torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, -math.inf)
            self.masks[window] = mask
        return self.masks[window]

    def advance(self, T: int) -> None:
        """Count T more tokens in each row."""
        if self.pos is None:
            self.lengths = [n + T for n in self.lengths]


class TokenCache(Cache):
    """For a model without a cache of its own: ids (B, length), from which all is computed anew."""

    buffers = (("ids", 0, 1),)

    def __init__(self, config, batch: int, length: int, dtype, device):
        super().__init__(batch, length)
        self.ids = torch.zeros((batch, length), dtype=torch.int64, device=device)

    def append(self, idx: torch.Tensor) -> None:
        """Add the tokens idx (B, T)."""
        T = idx.size(1)
        for row, n in enumerate(self.lengths):
            self.ids[row, n : n + T] = idx[row]
        self.lengths = [n + T for n in self.lengths]

    def forward(self, model: torch.nn.Module, idx: torch.Tensor) -> torch.Tensor:
        """Append the tokens idx (B, T) -> logits (B, V) of what follows each row."""
        self.append(idx)
        if len(set(self.lengths)) == 1:
            return model(self.ids[:, : self.lengths[0]])[0][:, -1]
        rows = [model(self.ids[i : i + 1, :n])[0][:, -1] for i, n in enumerate(self.lengths)]
        return torch.cat(rows)
