"""The caches of the byte models: of MEGABYTE's two levels, and SpaceByte's global and local blocks.

The models, their configs and the meaning of the shapes are in megabyte.py and spacebyte.py beside
this file.
"""

import torch

from bonsai.models.cache import Cache, KVCache
from model import GPTConfig, rope_angles, rotate

# ---- MEGABYTE ----


class PatchBefore:
    """Lets each patch attend to the end of the one before it (the paper's cross-patch attention).

    Takes the place of a KVCache while all patches are computed at once: it puts the last
    `cross_patch` keys and values of patch k - 1 in front of those of patch k, and zeros in front
    of the first patch's.
    """

    def __init__(self, config: GPTConfig, patches: int, device=None):
        self.config, self.patches, self.device = config, patches, device

    def place(self, T: int) -> torch.Tensor:
        self.mask = see_before(T, self.config.cross_patch, self.device) if T > 1 else None
        return torch.arange(T, device=self.device)

    def update(self, layer: int, k: torch.Tensor, v: torch.Tensor, window: int = 0):
        """k, v (B K, nh, P, hs), each patch a row -> (B K, nh, cross_patch + P, hs), and the mask.
        The local model has no window."""
        c, before = self.config, []
        for x in (k, v):
            x = x[:, :, -c.cross_patch :].unflatten(0, (-1, self.patches))  # (B, K, nh, r, hs)
            x = torch.cat((torch.zeros_like(x[:, :1]), x[:, :-1]), dim=1)
            before.append(x.flatten(0, 1))
        before[0] = one_patch_back(before[0], c)
        return torch.cat((before[0], k), dim=2), torch.cat((before[1], v), dim=2), self.mask

    def advance(self, T: int) -> None:
        pass


def see_before(T: int, count: int, device=None) -> torch.Tensor:
    """Mask (T, count + T) for T places that see `count` places before all of them, the places
    before their own, and their own."""
    return torch.ones(T, count + T, dtype=torch.bool, device=device).tril(count)


def one_patch_back(k: torch.Tensor, config: GPTConfig) -> torch.Tensor:
    """Keys (..., hs) as the next patch sees them: rotated back by patch_size positions."""
    if config.position != "rope":
        return k
    pos = torch.full((1,), -config.patch_size, device=k.device)  # made on the device, not copied
    return rotate(k, rope_angles(pos, k.size(-1), config.rope_base))


class LocalCache(KVCache):
    """Keys and values of the patch in progress, behind the last `before` of the patch before it."""

    def __init__(self, config: GPTConfig, batch: int, dtype, device):
        self.config, self.before = config, config.cross_patch
        length = self.before + config.patch_size
        super().__init__(config.decoder_configs()[1], batch, length, dtype, device)

    def begin_patch(self, first: bool) -> None:
        """Make room for the next patch, which is the first of the context or not."""
        end = self.before + self.lengths[0]
        if first and self.before:
            self.k[..., : self.before, :], self.v[..., : self.before, :] = 0, 0
        elif self.before and self.lengths[0]:
            k, v = (x[..., end - self.before : end, :].clone() for x in (self.k, self.v))
            self.k[..., : self.before, :] = one_patch_back(k, self.config)
            self.v[..., : self.before, :] = v
        self.lengths = [0] * len(self.lengths)

    def place(self, T: int) -> torch.Tensor:
        """The places of the next T bytes within the patch; the rows are equally long."""
        first = self.lengths[0]
        self.at, self.end = None, self.before + first + T
        self.mask, self.masks = None, {}
        if 1 < T < self.end:
            self.mask = see_before(T, self.end - T, self.k.device)
        return torch.arange(first, first + T, device=self.k.device)


class MegabyteCache(Cache):
    """The cache of both levels.

    ids (B, length): the bytes. globl: a KVCache with an entry per patch. from_global (B, K, P, DL):
    what the local model gets from the global one, for each patch. local: the cache of the patch in
    progress; `at` says up to how many bytes of each row it goes, -1: it has to be computed anew.
    Rows that are equally long are computed together, others one by one.
    """

    buffers = (("ids", 0, 1), ("from_global", 0, 1), ("at", 0, None))
    parts = ("globl", "local")
    unit, rewinds, shortens = "bytes", False, True  # copy_row has `local` computed anew

    def __init__(self, config: GPTConfig, batch: int, length: int, dtype, device):
        super().__init__(batch, length)
        self.patch_size = config.patch_size
        outer, patches = config.decoder_configs()[0], self.entries("globl", length)
        shape = (batch, patches, config.patch_size, config.local_embd)
        self.ids = torch.zeros((batch, length), dtype=torch.int64, device=device)
        self.globl = KVCache(outer, batch, patches, dtype, device)
        self.from_global = torch.zeros(shape, dtype=dtype, device=device)
        self.local = LocalCache(config, batch, dtype, device)
        self.at = torch.zeros(batch, dtype=torch.int64)

    def entries(self, name: str, tokens: int, row: int | None = None) -> int:
        if name == "local":
            return self.local.length
        return tokens if name == "ids" else -(-tokens // self.patch_size)

    def copy_row(self, row: int, source: "MegabyteCache", source_row: int, length: int) -> None:
        super().copy_row(row, source, source_row, length)
        self.at[row] = -1


# ---- SpaceByte ----


class SpacebyteCache(Cache):
    """The cache of all blocks.

    ids (B, length): the bytes. patches (B, length + 1): how many patches begin within the first n
    bytes. before, behind: caches of the local blocks before and after the global ones; globl: of
    the global ones, with an entry per patch.
    """

    buffers = (("ids", 0, 1), ("patches", 0, 1))
    parts = ("before", "globl", "behind")
    unit, rewinds = "bytes", False

    def __init__(self, config: GPTConfig, batch: int, length: int, dtype, device):
        super().__init__(batch, length)
        outer, inner = config.decoder_configs()
        self.ids = torch.zeros((batch, length), dtype=torch.int64, device=device)
        self.patches = torch.zeros((batch, length + 1), dtype=torch.int64)
        self.before = KVCache(inner, batch, length, dtype, device)
        self.globl = KVCache(outer, batch, length, dtype, device)
        self.behind = KVCache(inner, batch, length, dtype, device)

    def entries(self, name: str, tokens: int, row: int | None = None) -> int:
        if name == "globl" and row is not None:
            return int(self.patches[row, tokens])
        return tokens + 1 if name == "patches" else tokens

    def place(self, idx: torch.Tensor) -> torch.Tensor:
        """Store the bytes idx (B, T). Returns the byte before them in each row, (B, 1), or -1."""
        T, last = idx.size(1), []
        for i, n in enumerate(self.lengths):
            self.ids[i, n : n + T] = idx[i]
            last.append(self.ids[i, n - 1 : n] if n else torch.full_like(idx[i, :1], -1))
        self.before.lengths, self.behind.lengths = [*self.lengths], [*self.lengths]
        self.globl.lengths = [int(self.patches[i, n]) for i, n in enumerate(self.lengths)]
        return torch.stack(last)

    def advance(self, chosen: torch.Tensor) -> None:
        """Count the stored bytes. chosen (B, T), on the CPU: which of them begin a patch."""
        T, counts = chosen.size(1), chosen.cumsum(1)
        for i, n in enumerate(self.lengths):
            self.patches[i, n + 1 : n + T + 1] = self.patches[i, n] + counts[i]
        self.lengths = [n + T for n in self.lengths]
