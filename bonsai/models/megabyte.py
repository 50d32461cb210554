"""MEGABYTE: a global model over patches of bytes, a local one inside each (Yu et al. 2023).

The equations of arXiv 2305.07185 with the blocks of model.py. The bytes so far are cut into patches
of P; the embeddings of a patch, side by side, are one vector of the *global* model, a decoder over
patches. Each of its outputs is cut into P parts again, which tell the *local* model, a decoder over
the P bytes of one patch, what came before. Long contexts are cheap, as attention goes over T/P
positions, and a new byte waits only for the local layers and, on average, a P-th of the global.

Shapes in the comments: B rows, T bytes, P = patch_size, K = ceil(T / P) patches, D = n_embd
channels of the global model, DG = D / P of them per byte, DL = local_embd.

With byte t of the context at idx[t], the logits at t predict byte t + 1, and patch k predicts the
bytes kP + 1 ... kP + P. So nothing is computed in vain, and if one id, such as the end of text,
stands in front of a row's data, the data are cut at multiples of P. In front of the first patch the
paper has a patch of trainable padding; here its last place also holds byte 0.
"""

from dataclasses import dataclass

import torch
import torch.nn as nn
from torch.nn import functional as F

from bonsai.models.byte_caches import MegabyteCache, PatchBefore
from bonsai.models.decoder import ByteModel, Decoder, decoder_config
from model import GPTConfig, cross_entropy, sinusoids

FILTERS = (3, 5, 7)  # bytes that the filters of the convolutional patch encoder see
MAX_ROWS = 32768  # rows of the local model at a time: CUDA's attention kernels take up to 65,535


@dataclass
class MegabyteConfig(GPTConfig):
    """The GPT's fields describe the global model; its choices for blocks hold for the local one."""

    block_size: int = 512  # context length, in bytes [>= 1]
    vocab_size: int = 257  # the bytes, and the end of a text [>= 1]
    n_layer: int = 4  # layers of the global model [>= 1]
    n_head: int = 4  # [>= 1]
    n_embd: int = 256  # channels of a patch: patch_size times those of a byte [>= 1]
    # MEGABYTE
    patch_size: int = 4  # bytes per patch; divides n_embd [>= 1]
    local_layer: int = 2  # layers of the local model, inside a patch [>= 1]
    local_head: int = 2  # [>= 1]
    local_embd: int = 128  # channels of the local model [>= 1]
    cross_patch: int = 0  # last bytes of the previous patch that the local model sees [>= 0]
    conv_encoder: bool = False  # causal convolutions over the bytes before they become patches

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("patch_size", "local_layer", "local_head", "local_embd"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.n_embd % self.patch_size:
            raise ValueError(
                f"n_embd={self.n_embd} is not divisible by patch_size={self.patch_size}: each byte "
                "of a patch has its share of the channels"
            )
        if not 0 <= self.cross_patch <= self.patch_size:
            raise ValueError(
                f"cross_patch={self.cross_patch} is not between 0 and patch_size={self.patch_size}"
            )
        self.decoder_configs()  # checks heads and widths

    def decoder_configs(self) -> tuple[GPTConfig, GPTConfig]:
        """The configs of the global and of the local model."""
        local = dict(n_layer=self.local_layer, n_head=self.local_head, n_embd=self.local_embd)
        try:
            inner = decoder_config(self, **local, n_kv_head=0, head_size=0, attention_window=0)
        except ValueError as e:
            raise ValueError(f"local model: {e}") from None
        return decoder_config(self), inner


class CausalConv(nn.Module):
    """x (B, T, C) plus the ReLU of a filter over each position and the width - 1 ones before it."""

    def __init__(self, channels: int, width: int, bias: bool):
        super().__init__()
        self.width = width
        self.weight = nn.Parameter(torch.empty(channels, width * channels))  # a matrix, for Muon
        self.bias = nn.Parameter(torch.empty(channels)) if bias else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.weight.unflatten(1, (x.size(2), self.width))  # (C, C, width)
        before = F.pad(x.transpose(1, 2), (self.width - 1, 0))  # (B, C, width - 1 + T)
        return x + F.relu(F.conv1d(before, weight, self.bias)).transpose(1, 2)


class Megabyte(ByteModel):
    cache_type = MegabyteCache

    def __init__(self, config: MegabyteConfig):
        super().__init__()
        self.config = config
        outer, inner = config.decoder_configs()
        width = config.n_embd // config.patch_size  # DG
        self.global_wte = nn.Embedding(config.vocab_size, width)
        if config.position == "learned":
            self.global_wpe = nn.Embedding(config.block_size, width)
        self.global_pad = nn.Parameter(torch.empty(config.patch_size, width))
        filters = FILTERS if config.conv_encoder else ()
        self.convs = nn.Sequential(*(CausalConv(width, n, config.bias) for n in filters))
        self.globl = Decoder(outer)
        self.bridge = nn.Linear(width, config.local_embd, bias=False)  # w_GL
        self.local_wte = nn.Embedding(config.vocab_size, config.local_embd)
        self.local_pad = nn.Parameter(torch.empty(1, config.local_embd))
        self.local = Decoder(inner)
        self.lm_head = nn.Linear(config.local_embd, config.vocab_size, bias=False)
        if config.tie_head:
            self.local_wte.weight = self.lm_head.weight
        self.strided = False  # evaluate by strided inference, see `strided_logits`
        self.init_weights()

    def forward(
        self,
        idx: torch.Tensor,
        targets: torch.Tensor | None = None,
        cache: MegabyteCache | None = None,
        return_logits: bool = True,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """idx (B, T) int64 -> logits (B, T, V) and mean cross-entropy in nats over targets (B, T).

        As GPT.forward: targets of -1 are ignored; without targets the logits are those of the last
        position, (B, 1, V); with a cache, idx are the bytes after those already in it; with
        return_logits=False the logits are None. T need not be a multiple of the patch size.
        """
        self.check_room(idx, cache)
        last = targets is None
        if self.strided and not self.training and not last and cache is None:
            logits = self.strided_logits(idx)
            return logits if return_logits else None, cross_entropy(logits, targets)
        x = self.hidden(idx, last) if cache is None else self.step(idx, cache, last)
        return self.logits_and_loss(x, targets, return_logits)

    def hidden(self, idx: torch.Tensor, last: bool = False) -> torch.Tensor:
        """idx (B, T) -> what the head reads, (B, T, DL); last: the last position's, (B, 1, DL)."""
        c, (B, T) = self.config, idx.shape
        K = -(-T // c.patch_size)
        from_global = self.to_local(self.globl(self.patches(idx)))  # (B, K, P, DL)
        first = max(0, K - 1 - self.reach) if last else 0
        x = from_global[:, first:] + self.local_inputs(idx, first)  # (B, k, P, DL)
        parts = x.split(max(1, MAX_ROWS // x.size(1)))  # neighbours stay together
        x = torch.cat([self.inside(part) for part in parts])
        x = x.view(B, -1, c.local_embd)[:, : T - first * c.patch_size]
        return x[:, -1:] if last else x

    def inside(self, x: torch.Tensor) -> torch.Tensor:
        """The local model on k patches in a row: x (B, k, P, DL) -> (B k, P, DL)."""
        c = self.config
        before = PatchBefore(c, x.size(1), x.device) if c.cross_patch else None
        return self.local(x.flatten(0, 1), before)

    @property
    def reach(self) -> int:
        """How many patches before the last one its local layers see: each layer adds one."""
        return self.config.local_layer if self.config.cross_patch else 0

    def embed(self, idx: torch.Tensor, start: int = 0) -> torch.Tensor:
        """Bytes (B, T) at positions start, start + 1, ... -> (B, T, DG)."""
        h = self.global_wte(idx)
        if self.config.position in ("learned", "sinusoidal"):
            pos = torch.arange(start, start + idx.size(1), device=idx.device)
            table = self.config.position == "learned"
            h = h + (self.global_wpe(pos) if table else sinusoids(pos, h.size(-1)).type_as(h))
        return self.convs(h)

    def patches(self, idx: torch.Tensor) -> torch.Tensor:
        """idx (B, T) -> the global model's input (B, K, D): patch k ends with byte kP."""
        P = self.config.patch_size
        K = -(-idx.size(1) // P)
        h = self.embed(idx[:, : (K - 1) * P + 1])  # (B, (K - 1) P + 1, DG)
        h = F.pad(h, (0, 0, P - 1, 0)) + F.pad(self.global_pad, (0, 0, 0, (K - 1) * P))
        return h.view(-1, K, self.config.n_embd)

    def to_local(self, h: torch.Tensor) -> torch.Tensor:
        """The global model's output (B, K, D) -> the local model's part of it, (B, K, P, DL)."""
        return self.bridge(h.unflatten(2, (self.config.patch_size, -1)))

    def local_inputs(self, idx: torch.Tensor, first: int = 0) -> torch.Tensor:
        """idx (B, T) -> (B, k, P, DL) for the patches from `first` on.

        Place 0 has the pad, because the local model knows from the global one what came before.
        Place p has byte kP + p. Places after a ragged end hold id 0 and are cut off later.
        """
        P, (B, T) = self.config.patch_size, idx.shape
        ids = F.pad(idx[:, first * P :], (0, -T % P)).view(B, -1, P)
        pad = self.local_pad.expand(B, ids.size(1), 1, -1)
        return torch.cat((pad, self.local_wte(ids[:, :, 1:])), dim=2)

    def strided_logits(self, idx: torch.Tensor) -> torch.Tensor:
        """idx (B, T) -> logits (B, T, V): the better halves of two passes (paper, section 6.2).

        The first bytes of a patch are predicted best. A second pass begins half a patch later, so
        that the second halves of the first pass's patches are first halves there. Costs twice.
        """
        P, T = self.config.patch_size, idx.size(1)
        logits = self.head(self.hidden(idx))
        half = P // 2
        if not half or T <= P:
            return logits
        shifted = self.head(self.hidden(idx[:, P - half :]))  # its patches begin at P - half
        t = torch.arange(T - P, device=idx.device) + P  # not patch 0: there pass 2 knows less
        late = (t % P >= P - half)[None, :, None]
        return torch.cat((logits[:, :P], torch.where(late, shifted[:, half:], logits[:, P:])), 1)

    # ---- with a cache ----

    def step(self, idx: torch.Tensor, cache: MegabyteCache, last: bool = True) -> torch.Tensor:
        """The bytes idx (B, T) after those in the cache -> (B, T, DL); last: (B, 1, DL).

        The global model reads all patches that these bytes complete at once. The local model goes
        patch by patch; if only the last place is wanted, through the last patch alone.
        """
        T, P, begin = idx.size(1), self.config.patch_size, cache.lengths[0]
        if cache.lengths.count(begin) < len(cache.lengths):
            rows = range(len(cache.lengths))
            x = [self.step(idx[i : i + 1], cache.view(i, i + 1), last) for i in rows]
            cache.lengths = [n + T for n in cache.lengths]
            return torch.cat(x)
        end = begin + T
        cache.ids[:, begin:end] = idx
        k, K = -(-begin // P), -(-end // P)  # patches begun before, and now
        if k < K:
            cache.globl.lengths = [k] * len(idx)
            cache.from_global[:, k:K] = self.to_local(
                self.globl(self.next_patches(cache.ids, k, K), cache.globl)
            )
        at = begin
        if (cache.at != begin).any():  # the local cache stands elsewhere
            at = max(0, begin // P - self.reach) * P
            cache.local.lengths = [0] * len(idx)
        else:
            cache.local.lengths = [begin - (k - 1) * P if begin else 0] * len(idx)
        if last:
            at = max(at, (K - 1 - self.reach) * P)
        hidden = []
        while at < end:
            k, place = divmod(at, P)
            if place == 0:
                cache.local.begin_patch(first=k == 0)
            stop = min(end, (k + 1) * P)
            x = self.local_wte(cache.ids[:, at:stop])  # (B, stop - at, DL)
            if place == 0:
                x = torch.cat((self.local_pad.expand(len(idx), 1, -1).type_as(x), x[:, 1:]), dim=1)
            from_global = cache.from_global[:, k, place : place + stop - at].type_as(x)
            hidden.append(self.local(x + from_global, cache.local))
            at = stop
        cache.lengths, cache.at[:] = [end] * len(idx), end
        return hidden[-1][:, -1:] if last else torch.cat(hidden, dim=1)[:, -T:]

    def next_patches(self, ids: torch.Tensor, k: int, K: int) -> torch.Tensor:
        """The global model's inputs at positions k ... K - 1: (B, K - k, D)."""
        P = self.config.patch_size
        if k == 0:
            return self.patches(ids[:, : (K - 1) * P + 1])
        a = (k - 1) * P + 1
        before = min(a, sum(FILTERS) - len(FILTERS) if self.config.conv_encoder else 0)
        h = self.embed(ids[:, a - before : (K - 1) * P + 1], a - before)[:, before:]
        return h.reshape(len(ids), -1, self.config.n_embd)

    # ---- sizes and costs ----

    def flops_per_token(self, T: int | None = None) -> float:
        """Training FLOPs per byte at context T: 3 x forward, counted as in GPT.flops_per_token."""
        c = self.config
        T = T or c.block_size
        K = -(-T // c.patch_size)
        convs = sum(2 * p.numel() for p in self.convs.parameters() if p.dim() >= 2)
        byte = self.local.forward_flops(c.patch_size + c.cross_patch)
        byte += 2 * self.bridge.weight.numel() + 2 * self.lm_head.weight.numel()
        return 3 * (K * self.globl.forward_flops(K) + K * c.patch_size * byte + T * convs) / T

    @property
    def context_step(self) -> int:
        """A full context moves on by multiples of this many bytes, so that patches stay whole."""
        return self.config.patch_size

    def crop_block_size(self, block_size: int) -> None:
        """Shorten the context: drop the later positions."""
        self.crop(block_size, "global_wpe")
