"""Embedding tables whose gradients are accumulated in place.

For each micro-batch autograd makes a new gradient of a table, as a tensor of the table's size that
is 0 except for the rows that were looked up, and adds it to the sum so far. The fast GPT-2 has 464M
numbers in tables: for each micro-batch 1.9 GB of zeros are written, and 5.6 GB read and written to
add them. By calculation this takes 1.7 ms of the micro-batch's 59 ms on an H200. Here only the rows
are added to the sum. A compiled graph has to write them to memory for that, which takes 0.4 ms.
"""

import zlib
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from bonsai.models.edits import is_exactly
from model import GPT

# The compiler's caches identify an operator by its name only, so the name must change with its code
VERSION = f"{zlib.crc32(Path(__file__).read_bytes()):08x}"


# A custom operator, because the compiler does not cache graphs with an autograd.Function
@torch.library.custom_op(f"bonsai::look_up_{VERSION}", mutates_args=())
def look_up(weight: torch.Tensor, ids: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
    """Rows of weight (R, C) by ids (...) int64 -> (..., C). The backward pass adds the rows'
    gradients to total (R, C); autograd gets no gradient of the weight."""
    return F.embedding(ids, weight)


@look_up.register_fake
def _(weight, ids, total):
    return weight.new_empty(*ids.shape, weight.size(1))


def remember(ctx, inputs: tuple, output: torch.Tensor) -> None:
    _, ids, total = inputs
    ctx.save_for_backward(ids, total)


def add_rows(ctx, grad: torch.Tensor) -> tuple[None, None, None]:
    ids, total = ctx.saved_tensors
    total.index_add_(0, ids.flatten(), grad.flatten(0, -2).to(total.dtype))
    return None, None, None


look_up.register_autograd(add_rows, setup_context=remember)


class AccumulatingEmbedding(nn.Embedding):
    """An nn.Embedding that uses `look_up` while gradients are recorded. A copy of it does not."""

    total: torch.Tensor | None = None  # the sum of gradients, which is weight.grad during a step

    def __init__(self, embedding: nn.Embedding):
        """embedding: the one to replace, whose parameter is shared."""
        super().__init__(*embedding.weight.shape, _weight=embedding.weight.detach())
        self.weight = embedding.weight
        self.train(embedding.training)
        self.total = torch.zeros_like(self.weight, requires_grad=False)

    def __getstate__(self) -> dict:
        """Copies lack the sum, which is as large as the table: they are used for inference only."""
        return {name: value for name, value in vars(self).items() if name != "total"}

    def begin(self) -> None:
        """Begin a step: set the gradient to 0."""
        self.weight.grad = self.total.zero_()

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled() and self.total is not None:
            return look_up(self.weight, ids, self.total)
        return super().forward(ids)


def accumulate_in_place(model: nn.Module) -> list[AccumulatingEmbedding]:
    """Replace the embedding tables of GPTs that are only looked up, once in a forward pass; not an
    embedding that is also the head, whose gradient has another part. Returns the new tables; call
    `begin` of each when a step begins."""
    own = []
    for gpt in [m for m in model.modules() if isinstance(m, GPT)]:
        looked_up = {*gpt.param_groups()["tables"]}
        if not gpt.config.tie_head:
            looked_up.add(gpt.transformer.wte.weight)
        for parent in list(gpt.modules()):
            for name, child in parent.named_children():
                if is_plain(child) and child.weight in looked_up:
                    own.append(AccumulatingEmbedding(child))
                    setattr(parent, name, own[-1])
    return own


def is_plain(module: nn.Module) -> bool:
    """Whether a module is a table and nothing else."""
    if not is_exactly(module, nn.Embedding):
        return False
    return module.padding_idx is None and module.max_norm is None and not module.scale_grad_by_freq
