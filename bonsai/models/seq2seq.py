"""The Transformer of 2017 (Vaswani et al.): an encoder reads, a decoder writes.

An encoder-decoder has a source, so it does not keep the contract of bonsai/models/contract.py:

    model = Seq2Seq(Seq2SeqConfig(vocab_size=8000))
    logits, loss = model(source, target_in, target_out)   # (B, S), (B, T), (B, T) -> (B, T, V)
    ids = beam_search(model, source, beams=4)             # a list of ids per row

Rows are filled up with `pad`, which no position attends to and no loss counts; a target begins with
`bos` and ends with `eos`. Shapes in the comments: B rows, S source and T target positions,
C = n_embd channels, V = vocab_size, nh heads of size hs.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn as nn
from torch.nn import functional as F

from model import GPT, sinusoids


@dataclass
class Seq2SeqConfig:
    vocab_size: int = 8000
    n_layer: int = 3  # of the encoder, and as many of the decoder (the paper: 6)
    n_head: int = 8
    n_embd: int = 256  # channels (the paper: 512)
    hidden: int = 1024  # of the feed-forward layers (the paper: 2048)
    dropout: float = 0.1
    label_smoothing: float = 0.1
    norm_placement: str = "pre"  # 'pre' trains without care, 'post' is the paper's
    max_length: int = 256  # tokens of a source or a target
    pad: int = 0
    bos: int = 1
    eos: int = 2

    def __post_init__(self) -> None:
        """Raise ValueError, with the numbers, for choices that do not go together."""
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd={self.n_embd} is not divisible by n_head={self.n_head}")
        if self.norm_placement not in ("pre", "post"):
            raise ValueError(f"norm_placement={self.norm_placement!r} is not one of pre, post")
        if len({self.pad, self.bos, self.eos}) < 3 or max(self.pad, self.bos, self.eos) >= (
            self.vocab_size
        ):
            raise ValueError("pad, bos and eos must be three tokens of the vocabulary")


class Attention(nn.Module):
    """Multi-head attention of queries from x to keys and values from `memory` (section 3.2)."""

    def __init__(self, config: Seq2SeqConfig):
        super().__init__()
        self.nh, self.hs = config.n_head, config.n_embd // config.n_head
        self.q = nn.Linear(config.n_embd, config.n_embd, bias=False)
        self.kv = nn.Linear(config.n_embd, 2 * config.n_embd, bias=False)
        self.out = nn.Linear(config.n_embd, config.n_embd, bias=False)
        self.keep_weights = False  # for pictures: leave the weights in self.weights
        self.weights = None  # (B, nh, T, S)

    def heads(self, x: torch.Tensor) -> torch.Tensor:
        """(B, T, C) -> (B, nh, T, hs)"""
        return x.view(x.size(0), x.size(1), self.nh, self.hs).transpose(1, 2)

    def keys_values(self, memory: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, S, C) -> two of (B, nh, S, hs)"""
        k, v = self.kv(memory).chunk(2, dim=-1)
        return self.heads(k), self.heads(v)

    def forward(self, x: torch.Tensor, kv, mask: torch.Tensor | None = None) -> torch.Tensor:
        """x (B, T, C), kv from keys_values, mask (B, 1, 1 or T, S) of bool, True: seen."""
        q, (k, v) = self.heads(self.q(x)), kv
        if self.keep_weights:
            scores = q @ k.transpose(-2, -1) / math.sqrt(self.hs)
            if mask is not None:
                scores = scores.masked_fill(~mask, -math.inf)
            self.weights = scores.softmax(dim=-1).detach()
        y = F.scaled_dot_product_attention(q, k, v, mask)  # (B, nh, T, hs)
        return self.out(y.transpose(1, 2).flatten(2))


class Layer(nn.Module):
    """A layer of the encoder, or of the decoder: then with attention to the encoder's output."""

    def __init__(self, config: Seq2SeqConfig, decoder: bool):
        super().__init__()
        C = config.n_embd
        self.attention, self.norm_attention = Attention(config), nn.LayerNorm(C)
        self.cross = Attention(config) if decoder else None
        self.norm_cross = nn.LayerNorm(C) if decoder else None
        self.mlp = nn.Sequential(
            nn.Linear(C, config.hidden),
            nn.ReLU(),
            nn.Dropout(config.dropout),
            nn.Linear(config.hidden, C),
        )
        self.norm_mlp = nn.LayerNorm(C)
        self.drop = nn.Dropout(config.dropout)
        self.post = config.norm_placement == "post"

    def add(self, x, norm, part):
        """x with a residual part: the norm after the sum (the paper), or in front of the part."""
        return norm(x + self.drop(part(x))) if self.post else x + self.drop(part(norm(x)))

    def forward(self, x, mask, past=None, memory=None, memory_mask=None):
        """past: keys and values of the tokens before x, or None; returns x and all of them."""
        kept = None

        def attend_to_self(h):
            nonlocal kept
            kept = self.attention.keys_values(h)
            if past is not None:
                kept = tuple(torch.cat(pair, dim=2) for pair in zip(past, kept))
            return self.attention(h, kept, mask)

        x = self.add(x, self.norm_attention, attend_to_self)
        if self.cross is not None:
            x = self.add(x, self.norm_cross, lambda h: self.cross(h, memory, memory_mask))
        return self.add(x, self.norm_mlp, self.mlp), kept


class Seq2Seq(nn.Module):
    def __init__(self, config: Seq2SeqConfig):
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.n_embd)  # of source, target, head
        self.encoder = nn.ModuleList(Layer(config, False) for _ in range(config.n_layer))
        self.decoder = nn.ModuleList(Layer(config, True) for _ in range(config.n_layer))
        pre = config.norm_placement == "pre"
        self.norm_encoder = nn.LayerNorm(config.n_embd) if pre else nn.Identity()
        self.norm_decoder = nn.LayerNorm(config.n_embd) if pre else nn.Identity()
        self.drop = nn.Dropout(config.dropout)
        self.init_weights()

    def init_weights(self) -> None:
        """Matrices uniform after Glorot & Bengio 2010; the shared embedding N(0, 1/C)."""
        for p in self.parameters():
            if p.dim() > 1:
                nn.init.xavier_uniform_(p)
        nn.init.normal_(self.embedding.weight, std=self.config.n_embd**-0.5)

    def num_params(self) -> int:
        return sum(p.numel() for p in self.parameters())

    configure_optimizers = GPT.configure_optimizers  # AdamW, by the tensors' dimensions alone

    def embed(self, ids: torch.Tensor, start: int = 0) -> torch.Tensor:
        """ids (B, T) at positions start, start + 1, ... -> (B, T, C); section 3.4 and 3.5."""
        limit = self.config.max_length
        assert start + ids.size(1) <= limit, f"{start + ids.size(1)} tokens, at most {limit} fit"
        pos = torch.arange(start, start + ids.size(1), device=ids.device)
        x = self.embedding(ids) * math.sqrt(self.config.n_embd)
        return self.drop(x + sinusoids(pos, self.config.n_embd).type_as(x))

    def encode(self, source: torch.Tensor) -> tuple[list, torch.Tensor]:
        """source (B, S) -> its keys and values for each decoder layer, its mask (B, 1, 1, S)."""
        mask = (source != self.config.pad)[:, None, None, :]
        x = self.embed(source)
        for layer in self.encoder:
            x, _ = layer(x, mask)
        x = self.norm_encoder(x)
        return [layer.cross.keys_values(x) for layer in self.decoder], mask

    def decode(self, ids, memory, memory_mask, past=None) -> tuple[torch.Tensor, list]:
        """ids (B, T) after those of `past` -> logits (B, T, V), as GPT.head, and the new past."""
        T, start = ids.size(1), past[0][0].size(2) if past else 0
        mask = None  # one token sees all before it; padding stands after what counts
        if T > 1:
            mask = torch.ones(T, start + T, dtype=torch.bool, device=ids.device).tril(start)
        x, kept = self.embed(ids, start), []
        for i, layer in enumerate(self.decoder):
            x, kv = layer(x, mask, past[i] if past else None, memory[i], memory_mask)
            kept.append(kv)
        x = self.norm_decoder(x)
        logits = F.linear(x, self.embedding.weight)
        return logits if logits.dtype == torch.float64 else logits.float(), kept

    def forward(
        self, source: torch.Tensor, target_in: torch.Tensor, target_out: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """source (B, S), target_in (B, T) from bos on, target_out (B, T) one later, up to eos.

        Returns logits (B, T, V) and the mean cross-entropy in nats over the targets that are not
        padding: smoothed (Szegedy et al. 2016) while training, plain in eval mode.
        """
        logits, _ = self.decode(target_in, *self.encode(source))
        if target_out is None:
            return logits, None
        smoothing = self.config.label_smoothing if self.training else 0.0
        return logits, F.cross_entropy(
            logits.flatten(0, 1),
            target_out.flatten(),
            ignore_index=self.config.pad,
            label_smoothing=smoothing,
        )


def warmup_rate(step: int, n_embd: int, warmup: int = 4000, factor: float = 1.0) -> float:
    """The paper's learning rate (eq. 3): a linear warm-up, then one over the root of the step."""
    step += 1
    return factor * n_embd**-0.5 * min(step**-0.5, step * warmup**-1.5)


@torch.no_grad()
def beam_search(
    model: Seq2Seq, source: torch.Tensor, beams: int = 4, alpha: float = 0.6, extra: int = 50
) -> list[list[int]]:
    """The best target found for each row of source (B, S), without bos and eos.

    Each step keeps the `beams` likeliest beginnings of a row (1: greedy). Those that have ended are
    compared by log P / ((5 + length) / 6)^alpha, the length with eos (Wu et al. 2016, eq. 14). A
    target has at most source length + extra tokens (the paper: 50). Each step computes its token
    alone: keys and values of those before are cached.
    """
    c, was_training = model.config, model.training
    model.eval()
    B, device = len(source), source.device
    most = min(source.size(1) + extra, c.max_length - 1)
    memory, mask = model.encode(source)

    def spread(x: torch.Tensor) -> torch.Tensor:  # a row for each beam
        return x.repeat_interleave(beams, dim=0)

    def penalty(length: int) -> float:
        return ((5 + length) / 6) ** alpha

    memory, mask = [(spread(k), spread(v)) for k, v in memory], spread(mask)
    ids = torch.full((B * beams, 1), c.bos, device=device)
    scores = torch.full((B, beams), -math.inf, device=device)
    scores[:, 0] = 0  # the beams are still equal: count one
    ended: list[list[tuple[float, list[int]]]] = [[] for _ in range(B)]
    done = torch.zeros(B, dtype=torch.bool, device=device)
    past = None
    for length in range(1, most + 1):
        logits, past = model.decode(ids[:, -1:], memory, mask, past)
        logp = logits[:, -1].log_softmax(dim=-1)  # (B beams, V)
        logp[:, [c.pad, c.bos]] = -math.inf
        total = (scores.view(-1, 1) + logp).view(B, -1)  # (B, beams V)
        best, index = total.topk(2 * beams, dim=1)  # at most half of them end
        beam, token = index // c.vocab_size, index % c.vocab_size
        ends = token == c.eos
        for b, k in ends[:, :beams].nonzero().tolist():
            if not done[b] and best[b, k] > -math.inf:
                row = ids[b * beams + beam[b, k], 1:].tolist()
                ended[b].append((best[b, k].item() / penalty(length), row))
        # go on with the best that have not ended
        best = best.masked_fill(ends, -math.inf)
        scores, order = best.topk(beams, dim=1)
        beam, token = beam.gather(1, order), token.gather(1, order)
        rows = (torch.arange(B, device=device)[:, None] * beams + beam).flatten()
        ids = torch.cat((ids[rows], token.view(-1, 1)), dim=1)
        past = [(k[rows], v[rows]) for k, v in past]
        # a row is done when no beginning can beat what has ended, however long it gets
        for b in range(B):
            if len(ended[b]) >= beams or (
                ended[b] and scores[b, 0].item() / penalty(most) <= max(ended[b])[0]
            ):
                done[b] = True
        if done.all():
            break
    for b in range(B):
        if not ended[b]:  # none came to its end: the likeliest beginning
            ended[b].append((scores[b, 0].item() / penalty(length), ids[b * beams, 1:].tolist()))
    model.train(was_training)
    return [max(candidates)[1] for candidates in ended]
