"""Steps of a few tokens on a CPU: one call computes all blocks of a GPT, see block.cpp."""

from ctypes import POINTER, Structure, c_float, c_int, c_int32, c_int64, c_void_p

import torch
from torch import nn

from bonsai.engine.cpu.attention import CHANNELS
from bonsai.engine.cpu.native import build, functions
from bonsai.models.cache import KVCache
from bonsai.models.edits import can_join
from model import Block

MOST = 64  # tokens of a step; with more, attention is faster if all queries are computed together


class Matrix(Structure):
    _fields_ = [(n, c_void_p) for n in ("weight", "scale", "bias")]
    _fields_ += [("n", c_int64), ("k", c_int64)]


class Norm(Structure):
    _fields_ = [("gain", c_void_p), ("bias", c_void_p)]


class Settings(Structure):
    _fields_ = [(n, Matrix) for n in ("qkv", "out", "up", "down")]
    _fields_ += [("first", Norm), ("second", Norm), ("gate", c_void_p), ("gate_inputs", c_int64)]
    _fields_ += [(n, c_int64) for n in ("heads", "kv_heads", "channels", "window")]
    _fields_ += [("scale", c_float), ("head_eps", c_float)]
    _fields_ += [(n, c_int32) for n in ("rms", "head_norm", "activation")]


class Blocks(nn.Module):
    """Consecutive blocks. Steps of a few tokens are computed by block.cpp, others block by block.

    blocks: with prepared linear layers, which have `direct`, the tensors that block.cpp reads, and
    `few`, the largest input (in numbers) for which the product for few rows is fastest.
    dtype: of activations and cache.
    """

    def __init__(self, blocks: list[Block], dtype: torch.dtype):
        super().__init__()
        self.blocks, self.dtype, self.layer = nn.ModuleList(blocks), dtype, blocks[0].attn.layer
        self.kept: list[torch.Tensor] = []  # keeps alive the tensors that `settings` points to
        self.settings = (Settings * len(blocks))(*map(self.describe, blocks))
        self.rows = min(MOST, *(m.few // m.direct()[0].size(1) for b in blocks for m in linears(b)))
        self.run = kernels()[dtype]

    def describe(self, block: Block) -> Settings:
        a, mlp = block.attn, block.mlp
        eps = torch.finfo(self.dtype).eps if a.rms else 1e-5  # torch's defaults, as in model.py
        gate, gate_inputs = None, 0
        if a.gate is not None:
            gate, gate_inputs = self.numbers(a.gate.weight), a.gate.weight.size(1)
        return Settings(
            *map(self.matrix, linears(block)), self.norm(block.ln_1), self.norm(block.ln_2),
            gate, gate_inputs, a.nh, a.nkv, a.hs, a.window,
            a.scale, eps, block.ln_1.rms, a.qk_norm, activation_number(mlp.activation),
        )  # fmt: skip

    def numbers(self, x: torch.Tensor | None) -> int | None:
        """The address of a float32 copy of x, or of x if it is float32; None for None."""
        if x is None:
            return None
        self.kept.append(x.detach().float().contiguous())
        return self.kept[-1].data_ptr()

    def norm(self, norm: nn.Module) -> Norm:
        return Norm(self.numbers(norm.weight), self.numbers(norm.bias))

    def matrix(self, linear: nn.Module) -> Matrix:
        weight, scale = linear.direct()
        n, k = weight.shape
        return Matrix(weight.data_ptr(), self.numbers(scale), self.numbers(linear.bias), n, k)

    def forward(self, x, rotation=None, cache: KVCache | None = None, values=None):
        B, T, _ = x.shape
        if not (
            isinstance(cache, KVCache)
            and 0 < B * T <= self.rows
            and cache.pos is None
            and x.dtype == cache.k.dtype == self.dtype
        ):
            for block in self.blocks:
                x = block(x, rotation, cache, values)
            return x
        x, y = x.contiguous(), torch.empty_like(x)
        own = None if values is None else values.contiguous()
        lengths = [cache.end - T] * B if cache.at is None else cache.lengths
        layer, text, head, key, _ = cache.k.stride()
        first = layer * self.layer * x.element_size()
        angles, turn = (None, None), 0
        if rotation is not None:  # (T, hs), or (B, 1, T, hs) if the texts have different positions
            angles, turn = [r.data_ptr() for r in rotation], rotation[0].stride(0)
        self.run(
            self.settings, len(self.blocks),
            x.data_ptr(), None if own is None else own.data_ptr(), y.data_ptr(), B, T,
            cache.k.data_ptr() + first, cache.v.data_ptr() + first, (c_int64 * B)(*lengths),
            layer, text, head, key, *angles, turn if cache.at is not None else 0,
            torch.get_num_threads(),
        )  # fmt: skip
        return y


def join(model: nn.Module, dtype: torch.dtype) -> None:
    """Replace the lists of blocks in a model by Blocks, if block.cpp can compute them. The model's
    linear layers are prepared."""
    for owner in list(model.modules()):
        blocks = getattr(owner, "h", None)
        if not isinstance(blocks, nn.ModuleList) or not all(computes(b, dtype) for b in blocks):
            continue
        if can_join(model, owner):
            c = model.config
            # One call computes all blocks only if nothing happens between them and all have the
            # same arguments
            together = not (c.residual_lambdas or c.value_embeddings)
            groups = [list(blocks)] if together else [[b] for b in blocks]
            owner.h = nn.ModuleList(Blocks(group, dtype) for group in groups)


def computes(block: nn.Module, dtype: torch.dtype) -> bool:
    """Whether block.cpp can compute this block."""
    if not isinstance(block, Block) or block.post:
        return False
    direct = all(hasattr(m, "direct") and m.direct() for m in linears(block))
    if not direct or block.attn.hs not in CHANNELS or dtype not in kernels():
        return False
    return activation_number(block.mlp.activation) >= 0


def linears(block: Block) -> list[nn.Module]:
    return [block.attn.c_attn, block.attn.c_proj, block.mlp.c_fc, block.mlp.c_proj]


def activation_number(name: str) -> int:
    """block.cpp's number for an activation of model.py; -1 if it cannot compute it."""
    return build("block").block_activation(name.encode())


def kernels() -> dict:
    """The functions of block.cpp by dtype; empty if it cannot be built."""
    sizes, pointers = [c_int64, c_int64], [c_void_p, c_void_p]
    arguments = [POINTER(Settings), c_int, c_void_p, *pointers, *sizes]
    arguments += [*pointers, POINTER(c_int64)]
    arguments += [*sizes, *sizes, *pointers, c_int64, c_int]
    return functions("block", "block", *arguments)
