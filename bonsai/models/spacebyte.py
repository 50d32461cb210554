"""SpaceByte: patches that begin where words do (Slagle 2024, arXiv 2404.14408).

A byte-level decoder of narrow *local* blocks, half of them before and half after the wide *global*
ones. The global blocks see only some positions: bytes that look like the space in front of a word.
So they predict the first byte of a word, the hardest one, and what they know reaches the other
bytes through the later local blocks. With boundary='fixed' they see every patch_size-th position
instead: the paper's control, which shows what the choice of positions is worth.

Shapes in the comments: B rows, T bytes, K patches (of the row with the most), D = n_embd channels
of the global blocks, DL = local_embd.

At the chosen positions the stream is widened by zeros for the global blocks and narrowed again
after them, without projections. The first position of a context is always chosen.
"""

from dataclasses import dataclass

import torch
import torch.nn as nn
from torch.nn import functional as F

from bonsai.models.byte_caches import SpacebyteCache
from bonsai.models.cache import KVCache
from bonsai.models.decoder import ByteModel, Decoder, decoder_config
from model import GPTConfig, sinusoids

BOUNDARIES = ("space", "fixed")
# A compiled model has room for a multiple of this many patches per row, because for each new size a
# GPU's attention may have to be prepared again (cuDNN's does), and more memory is kept.
SLOTS = 64


@dataclass
class SpacebyteConfig(GPTConfig):
    """The GPT's fields describe the global blocks; its choices also hold for the local ones."""

    block_size: int = 512  # context length, in bytes [>= 1]
    vocab_size: int = 257  # the bytes, and the end of a text [>= 1]
    n_layer: int = 4  # global layers [>= 1]
    n_head: int = 4  # [>= 1]
    n_embd: int = 256  # channels of the global blocks [>= 1]
    # SpaceByte
    boundary: str = "space"  # where patches begin [space | fixed]
    patch_size: int = 6  # bytes per patch; with 'space' the mean to expect, for FLOPs only [>= 1]
    local_layer: int = 4  # local layers, half of them before the global ones [>= 2]
    local_head: int = 2  # [>= 1]
    local_embd: int = 128  # channels of the local blocks [>= 1]
    local_window: int = 128  # bytes that the local blocks attend to; 0: all [>= 0]

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.boundary not in BOUNDARIES:
            known = ", ".join(BOUNDARIES)
            raise ValueError(f"boundary={self.boundary!r} is not one of {known}")
        for name, least in (("patch_size", 1), ("local_layer", 2), ("local_window", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)} must be at least {least}")
        if self.local_layer % 2:
            raise ValueError(
                f"local_layer={self.local_layer} is odd: half of the local layers come before the "
                "global ones, half after"
            )
        if self.local_embd > self.n_embd:
            raise ValueError(f"local_embd={self.local_embd} is above n_embd={self.n_embd}")
        self.decoder_configs()

    def decoder_configs(self) -> tuple[GPTConfig, GPTConfig]:
        """The configs of the global blocks, and of each half of the local ones."""
        sizes = dict(n_head=self.local_head, n_embd=self.local_embd, n_kv_head=0, head_size=0)
        sizes |= dict(n_layer=self.local_layer // 2)
        sizes |= dict(attention_window=self.local_window, window_pattern="L")
        try:
            return decoder_config(self), decoder_config(self, **sizes)
        except ValueError as e:
            raise ValueError(f"local model: {e}") from None


def space_like(idx: torch.Tensor) -> torch.Tensor:
    """Whether ids are space-like: neither letter, digit, nor inside a UTF-8 character.

    The first byte of a multi-byte character is space-like, the further ones are not; ids above the
    bytes, such as the end of a text, are.

    >>> space_like(torch.tensor(list("a. é".encode()))).tolist()
    [False, True, True, True, False]
    """
    inside = (idx >= ord("0")) & (idx <= ord("9"))
    inside |= (idx >= ord("A")) & (idx <= ord("Z"))
    inside |= (idx >= ord("a")) & (idx <= ord("z"))
    return ~(inside | (idx >= 0x80) & (idx < 0xC0))


class Spacebyte(ByteModel):
    cache_type = SpacebyteCache

    def __init__(self, config: SpacebyteConfig):
        super().__init__()
        self.config = config
        outer, inner = config.decoder_configs()
        self.wte = nn.Embedding(config.vocab_size, config.local_embd)
        if config.position == "learned":
            self.wpe = nn.Embedding(config.block_size, config.local_embd)
        self.before = Decoder(inner, final_norm=False)
        self.globl = Decoder(outer, final_norm=False)
        self.behind = Decoder(inner)
        self.lm_head = nn.Linear(config.local_embd, config.vocab_size, bias=False)
        if config.tie_head:
            self.wte.weight = self.lm_head.weight
        self.init_weights()

    def forward(
        self,
        idx: torch.Tensor,
        targets: torch.Tensor | None = None,
        cache: SpacebyteCache | None = None,
        return_logits: bool = True,
        slots: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """idx (B, T) int64 -> logits (B, T, V) and mean cross-entropy in nats over targets (B, T).

        As GPT.forward: targets of -1 are ignored; without targets the logits are those of the last
        position, (B, 1, V); with a cache, idx are the bytes after those already in it; with
        return_logits=False the logits are None. slots: see `counted`; without them the patches are
        counted here, which waits for a GPU and cuts a compiled model into several graphs.
        """
        self.check_room(idx, cache)
        pos = torch.arange(idx.size(1), device=idx.device).expand(idx.shape)
        if cache is not None:
            pos = pos + torch.tensor(cache.lengths, device=idx.device)[:, None]
        chosen = self.boundaries(idx, pos, cache and cache.place(idx))  # (B, T)
        x = self.wte(idx)  # (B, T, DL)
        if self.config.position == "learned":
            x = x + self.wpe(pos)
        elif self.config.position == "sinusoidal":
            x = x + sinusoids(pos, self.config.local_embd).type_as(x)
        x = self.before(x, cache and cache.before)
        x = self.globally(x, chosen, cache and cache.globl, slots)
        x = self.behind(x, cache and cache.behind)
        if cache is not None:
            cache.advance(chosen.cpu())
        return self.logits_and_loss(x, targets, return_logits)

    def counted(self, idx: torch.Tensor, device: torch.device) -> dict[str, torch.Tensor]:
        """The argument `slots` for a forward pass on idx (B, T) without a cache; counted where idx
        is, on the host.

        slots (K,) int64 on the device: the numbers 0 ... K - 1 of patches, where no row has more
        than K. To a compiler K is a symbol, so that one graph serves all texts.
        """
        pos = torch.arange(idx.size(1), device=idx.device).expand(idx.shape)
        most = int(self.boundaries(idx, pos).sum(dim=1).max())
        slots = torch.arange(min(idx.size(1), -(-most // SLOTS) * SLOTS), device=device)
        torch._dynamo.maybe_mark_dynamic(slots, 0)
        return {"slots": slots}

    def boundaries(
        self, idx: torch.Tensor, pos: torch.Tensor, last: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Positions with global blocks, (B, T): a space-like byte after one that is not.

        idx (B, T) and their positions pos (B, T); last (B, 1): the bytes in front of them, -1 for
        none. Depends on no later byte.
        """
        last = torch.full_like(idx[:, :1], -1) if last is None else last
        if self.config.boundary == "fixed":
            return pos % self.config.patch_size == 0
        space = space_like(torch.cat((last, idx), dim=1))  # (B, 1 + T)
        text_ends = idx > 255  # each of them counts, even in a row
        return space[:, 1:] & ~space[:, :-1] | text_ends | (pos == 0)

    def globally(
        self,
        x: torch.Tensor,
        chosen: torch.Tensor,
        cache: KVCache | None,
        slots: torch.Tensor | None,
    ) -> torch.Tensor:
        """x (B, T, DL) with the global blocks applied at the positions `chosen` (B, T)."""
        if slots is None:
            slots = torch.arange(int(chosen.sum(dim=1).max()), device=x.device)
        K = slots.size(0)
        if K == 0:
            return x
        begun = chosen.cumsum(dim=1)  # (B, T), patches up to each position
        counts = begun[:, -1:]  # (B, 1)
        # each row's chosen positions in order; then others, which come out as they went in
        t = torch.arange(x.size(1), device=x.device).expand(chosen.shape)
        place = torch.where(chosen, begun - 1, counts + t - begun)  # (B, T)
        order = torch.empty_like(place).scatter(1, place, t)[:, :K, None]  # (B, K, 1)
        where = order.expand(-1, -1, x.size(2))
        y = x.gather(1, where)  # (B, K, DL)
        wide = F.pad(y, (self.config.n_embd - x.size(2), 0))  # (B, K, D)
        lengths = cache.lengths if cache is not None else []
        wide = self.globl(wide, cache)[:, :, -x.size(2) :]
        if cache is not None:  # what a row has beyond its own patches is not there
            cache.lengths = [n + c for n, c in zip(lengths, counts.flatten().tolist())]
        real = slots < counts  # (B, K)
        y = torch.where(real[:, :, None], wide, y.type_as(wide))
        return x.type_as(y).scatter(1, where, y)

    # ---- sizes and costs ----

    @property
    def context_step(self) -> int:
        """A full context moves on by multiples of this many bytes, so that patches stay whole."""
        return self.config.patch_size if self.config.boundary == "fixed" else 1

    def flops_per_token(self, T: int | None = None) -> float:
        """Training FLOPs per byte at context T: 3 x forward, with patches of patch_size bytes."""
        c = self.config
        T = T or c.block_size
        K = -(-T // c.patch_size)
        forward = self.before.forward_flops(T) + self.behind.forward_flops(T)
        forward += 2 * self.lm_head.weight.numel() + K / T * self.globl.forward_flops(K)
        return 3 * forward

    def crop_block_size(self, block_size: int) -> None:
        """Shorten the context: drop the later positions."""
        self.crop(block_size, "wpe")
