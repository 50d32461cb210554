"""What the byte models are made of: the GPT's blocks over vectors, and the rest of the contract.

model.py's GPT goes from ids to logits. `Decoder` is only its middle, from vectors to vectors;
`ByteModel` is what all models made of such decoders have in common.
"""

import math
from dataclasses import fields

import torch
import torch.nn as nn
from torch.utils.checkpoint import checkpoint

from bonsai.models.cache import Cache
from bonsai.models.contract import LanguageModel
from model import GPT, GROUPS, Block, GPTConfig, Norm, rotation_at

# fields that are the GPT's alone
OF_GPT = ("value_embeddings", "residual_lambdas", "bigram_embeddings", "bfloat16_stream")


def decoder_config(config: GPTConfig, **sizes) -> GPTConfig:
    """The GPTConfig of one decoder of a model: the model's choices for blocks, and the decoder's
    own sizes.

    Tables of positions belong to the model, which embeds the bytes; inside a decoder only RoPE
    remains. Raises ValueError for what a decoder over vectors cannot do.
    """
    for name in OF_GPT:
        if getattr(config, name):
            raise ValueError(f"{name} is the GPT's alone: leave it out")
    shared = {f.name: getattr(config, f.name) for f in fields(GPTConfig)}
    shared["position"] = "rope" if config.position == "rope" else "none"
    return GPTConfig(**shared | sizes)


class Decoder(nn.Module):
    """Causal blocks and the final norm (unless other blocks follow): x (B, T, C) -> (B, T, C)."""

    def __init__(self, config: GPTConfig, final_norm: bool = True):
        super().__init__()
        self.config = config
        self.ln_e = Norm(config) if config.norm_embedding else nn.Identity()
        self.drop = nn.Dropout(config.dropout)
        self.h = nn.ModuleList(Block(config, i) for i in range(config.n_layer))
        final_norm = final_norm and config.norm_placement == "pre"
        self.ln_f = Norm(config) if final_norm else nn.Identity()
        self.register_buffer("rotation", None, persistent=False)  # as GPT.rotation

    def forward(self, x: torch.Tensor, cache=None) -> torch.Tensor:
        """With a cache, x are the vectors after those already in it."""
        T = x.size(1)
        pos = torch.arange(T, device=x.device) if cache is None else cache.place(T)
        rotation = rotation_at(self, pos, cache)
        x = self.drop(self.ln_e(x))
        for block in self.h:
            if self.config.activation_checkpointing and self.training:
                x = checkpoint(block, x, rotation, cache, use_reentrant=False)
            else:
                x = block(x, rotation, cache)
        if cache is not None:
            cache.advance(T)
        return self.ln_f(x)

    def forward_flops(self, T: int) -> float:
        """FLOPs per vector in a context of T: 2 per weight of a matrix, and the attention."""
        weights = sum(p.numel() for p in self.parameters() if p.dim() >= 2)
        return 2 * weights + self.config.attention_flops(T)


def is_table(name: str) -> bool:
    """Whether a parameter is looked up: embeddings, positions, pads."""
    return name.removesuffix(".weight").endswith(("wte", "wpe", "pad"))


class ByteModel(LanguageModel):
    """Sizes, parameter groups, optimizer and initial weights of a model made of decoders.

    A subclass has a `config` with block_size, n_layer wide layers over patches of patch_size bytes,
    and local_layer narrow layers over bytes; and a tied or untied `lm_head`. The names of its
    parameters say what they are: *wte and *wpe are tables, *pad stands where there is no byte yet.
    """

    generate = GPT.generate
    head = GPT.head
    head_loss, further = staticmethod(GPT.head_loss), None
    logits_and_loss = GPT.logits_and_loss
    num_params = get_num_params = GPT.num_params
    estimate_mfu = GPT.estimate_mfu

    def init_weights(self) -> None:
        """As GPT.init_weights; residual projections are scaled by the depth of their decoder."""
        c = self.config
        for name, p in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(p)
            elif p.dim() >= 2:
                std = 0.02
                if c.init == "fan_in":
                    std = 1.0 if is_table(name) else (3 * p.size(1)) ** -0.5
                nn.init.normal_(p, std=std)
        for decoder in (m for m in self.modules() if isinstance(m, Decoder)):
            for name, p in decoder.named_parameters():
                if name.endswith("c_proj.weight") and c.init == "gpt2":
                    nn.init.normal_(p, std=0.02 / math.sqrt(2 * decoder.config.n_layer))
        zeros = ("c_proj.weight", "lm_head.weight") if c.zero_init else ()
        for name, p in self.named_parameters():  # a tied head has the embedding's name here
            if name.endswith(zeros):
                nn.init.zeros_(p)

    def param_groups(self) -> dict[str, list[nn.Parameter]]:
        """The parameters by kind, for optimizers that treat them differently; each in one group."""
        groups = {name: [] for name in GROUPS}
        for name, p in self.named_parameters():
            if is_table(name):
                groups["embeddings"].append(p)
            elif name.startswith("lm_head"):
                groups["head"].append(p)
            else:
                groups["matrices" if p.dim() >= 2 else "scalars"].append(p)
        return groups

    def check_room(self, idx: torch.Tensor, cache: Cache | None) -> None:
        """That the bytes idx (B, T) and those in the cache fit the context."""
        total = idx.size(1) + (0 if cache is None else cache.used)
        limit = self.config.block_size if cache is None else cache.length
        assert total <= limit, f"{total} bytes do not fit a context of {limit}"

    def crop(self, block_size: int, table: str) -> None:
        """Shorten the context; with learned positions drop the later rows of their table."""
        assert block_size <= self.config.block_size
        self.config.block_size = block_size
        if self.config.position == "learned":
            wpe = getattr(self, table)
            wpe.weight = nn.Parameter(wpe.weight[:block_size].detach().clone())
            wpe.num_embeddings = block_size

    def serial_layers(self) -> float:
        """Layers that a generated byte waits for, on average: MEGABYTE's L_g / P + L_l."""
        return self.config.n_layer / self.config.patch_size + self.config.local_layer

    def channels_per_token(self) -> float:
        """Channels of the residual streams in all layers together, per byte."""
        c = self.config
        return c.n_layer * c.n_embd / c.patch_size + c.local_layer * c.local_embd
