"""What MEGABYTE's two levels remember: keys and values per patch, and of the patch in progress.

The model is in megabyte.py beside this file, whose MegabyteConfig is meant by `config` here: the
GPT's fields and patch_size, cross_patch, local_embd, decoder_configs(). Shapes as there.
"""

import copy

import torch

from model import GPTConfig, KVCache, rope_angles, rotate


class PatchBefore:
    """Lets each patch attend to the end of the one before it (paper, cross-patch attention).

    Stands in for a KVCache while all patches are computed at once: in front of the keys and values
    of patch k come the last `cross_patch` of patch k - 1. In front of the first they are zero.
    """

    def __init__(self, config: GPTConfig, patches: int, device=None):
        self.config, self.patches, self.device = config, patches, device

    def place(self, T: int) -> torch.Tensor:
        self.mask = see_before(T, self.config.cross_patch, self.device) if T > 1 else None
        return torch.arange(T, device=self.device)

    def mask_within(self, window: int) -> torch.Tensor | None:
        return self.mask  # the local model has no window

    def update(self, layer: int, k: torch.Tensor, v: torch.Tensor):
        """k, v (B K, nh, P, hs), each patch a row -> (B K, nh, cross_patch + P, hs)."""
        c, before = self.config, []
        for x in (k, v):
            x = x[:, :, -c.cross_patch :].unflatten(0, (-1, self.patches))  # (B, K, nh, r, hs)
            x = torch.cat((torch.zeros_like(x[:, :1]), x[:, :-1]), dim=1)
            before.append(x.flatten(0, 1))
        before[0] = one_patch_back(before[0], c)
        return torch.cat((before[0], k), dim=2), torch.cat((before[1], v), dim=2)

    def advance(self, T: int) -> None:
        pass


def see_before(T: int, count: int, device=None) -> torch.Tensor:
    """Mask (T, count + T) of T places that see `count` before them, themselves, and one another."""
    return torch.ones(T, count + T, dtype=torch.bool, device=device).tril(count)


def one_patch_back(k: torch.Tensor, config: GPTConfig) -> torch.Tensor:
    """Keys (..., hs) as the next patch sees them, at positions that are patch_size lower."""
    if config.position != "rope":
        return k
    pos = torch.tensor([-config.patch_size], device=k.device)
    return rotate(k, rope_angles(pos, k.size(-1), config.rope_base))


class LocalCache(KVCache):
    """Keys and values of the patch in progress, after the last `before` of the one before it."""

    def __init__(self, config: GPTConfig, batch: int, dtype, device):
        self.config, self.before = config, config.cross_patch
        length = self.before + config.patch_size
        super().__init__(config.decoder_configs()[1], batch, length, dtype, device)

    def begin_patch(self, first: bool) -> None:
        """Make room for the next patch, or for the first."""
        end = self.before + self.lengths[0]
        if first and self.before:
            self.k[..., : self.before, :], self.v[..., : self.before, :] = 0, 0
        elif self.before and self.lengths[0]:
            k, v = (x[..., end - self.before : end, :].clone() for x in (self.k, self.v))
            self.k[..., : self.before, :] = one_patch_back(k, self.config)
            self.v[..., : self.before, :] = v
        self.lengths = [0] * len(self.lengths)

    def place(self, T: int) -> torch.Tensor:
        """Places of the next T bytes in the patch; the rows are equally long."""
        first = self.lengths[0]
        self.at, self.end = None, self.before + first + T
        self.mask = see_before(T, self.end - T, self.k.device) if 1 < T < self.end else None
        return torch.arange(first, first + T, device=self.k.device)


class MegabyteCache:
    """What both levels remember, with the methods of model.KVCache; of row i lengths[i] bytes.

    ids (B, length): the bytes. globl: a KVCache with an entry per patch. told (B, K, P, DL): what
    the global model said about each patch. local: of the patch in progress alone; `at` says after
    how many bytes of each row it stands, -1 if it has to be computed anew. Rows that are equally
    long are computed together, others one by one.
    """

    def __init__(self, config: GPTConfig, batch: int, length: int, dtype, device):
        outer, patches = config.decoder_configs()[0], -(-length // config.patch_size)
        told = (batch, patches, config.patch_size, config.local_embd)
        self.ids = torch.zeros((batch, length), dtype=torch.int64, device=device)
        self.globl = KVCache(outer, batch, patches, dtype, device)
        self.told = torch.zeros(told, dtype=dtype, device=device)
        self.local = LocalCache(config, batch, dtype, device)
        self.at = torch.zeros(batch, dtype=torch.int64)
        self.lengths = [0] * batch
        self.patch_size = config.patch_size

    @property
    def k(self) -> torch.Tensor:
        """Keys of the global model, by far the larger part of the memory; v: as many values."""
        return self.globl.k

    @property
    def v(self) -> torch.Tensor:
        return self.globl.v

    @property
    def length(self) -> int:
        return self.ids.size(1)

    @property
    def used(self) -> int:
        """Bytes in the longest row."""
        return max(self.lengths)

    def reset(self) -> None:
        """Forget all bytes."""
        self.lengths = [0] * len(self.lengths)

    def expand(self, n: int) -> None:
        """Turn the one row into n equal rows, in place."""
        self.globl.expand(n)
        self.local.expand(n)
        self.ids, self.at = self.ids.repeat(n, 1), self.at.repeat(n)
        self.told = self.told.repeat(n, 1, 1, 1)
        self.lengths = self.lengths * n

    def view(self, begin: int, end: int, length: int = 0) -> "MegabyteCache":
        """Rows begin to end (and only `length` positions) in the same memory, own lengths."""
        part, patches = copy.copy(self), -(-length // self.patch_size)
        part.ids = self.ids[begin:end, : length or None]
        part.told = self.told[begin:end, : patches or None]
        part.globl = self.globl.view(begin, end, patches)
        part.local = self.local.view(begin, end)
        part.at, part.lengths = self.at[begin:end], self.lengths[begin:end]
        return part

    def copy_row(self, row: int, source: "MegabyteCache", source_row: int, length: int) -> None:
        """Make `row` the first `length` bytes of a row of another cache (or of this one)."""
        patches = -(-length // self.patch_size)
        self.ids[row, :length] = source.ids[source_row, :length]
        self.told[row, :patches] = source.told[source_row, :patches]
        self.globl.copy_row(row, source.globl, source_row, patches)
        self.lengths[row], self.at[row] = length, -1

    def clone(self, length: int) -> "MegabyteCache":
        """The first `length` positions in memory of their own."""
        part = self.view(0, len(self.lengths), length)
        part.ids, part.told, part.at = part.ids.clone(), part.told.clone(), part.at.clone()
        part.globl = part.globl.clone(part.globl.length)
        part.local = part.local.clone(part.local.length)
        return part
