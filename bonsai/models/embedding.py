"""Embedding tables whose gradients are added up where they lie.

Autograd makes the gradient of a table anew for each micro-batch, as a tensor of the table's size
that is 0 but for the rows that were looked up, and then adds it to the sum of those before. A step
of the fast GPT-2 has 464M numbers in tables: for each micro-batch 1.9 GB of zeros are written and
5.6 GB read and written to add them, 1.7 ms of its 59 on an H200 by calculation. Here the rows alone
are added to the sum; to write them out before they are used costs 0.4 ms of that.
"""

import zlib
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from model import GPT

# a compiler's caches know an operator by its name alone, not by its backward pass
VERSION = f"{zlib.crc32(Path(__file__).read_bytes()):08x}"


# an operator of torch, not an autograd.Function: a graph with one of those is in no cache
@torch.library.custom_op(f"bonsai::look_up_{VERSION}", mutates_args=())
def look_up(weight: torch.Tensor, ids: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
    """Rows of weight (R, C) by ids (...) int64: (..., C). Backward adds their gradient to total
    (R, C), and hands autograd none for the weight."""
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
    """An nn.Embedding that is `look_up` while gradients are recorded; a copy of it is plain."""

    total: torch.Tensor | None = None  # the sum, which is weight.grad during a step

    def __init__(self, embedding: nn.Embedding):
        """embedding: whose parameter it has, the same object."""
        super().__init__(*embedding.weight.shape, _weight=embedding.weight.detach())
        self.weight = embedding.weight
        self.train(embedding.training)
        self.total = torch.zeros_like(self.weight, requires_grad=False)

    def __getstate__(self) -> dict:
        """Without the sum, which is as large as the table: copies are to write texts with."""
        return {name: value for name, value in vars(self).items() if name != "total"}

    def begin(self) -> None:
        """Begin a step: its gradient is 0."""
        self.weight.grad = self.total.zero_()

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled() and self.total is not None:
            return look_up(self.weight, ids, self.total)
        return super().forward(ids)


def accumulate_in_place(model: nn.Module) -> list[AccumulatingEmbedding]:
    """Put such tables in the place of a GPT's that are looked up alone, once in a forward: not of
    an embedding that is also the head, whose gradient is a product. Returns them: each wants to be
    told that a step begins."""
    own = []
    for gpt in [m for m in model.modules() if isinstance(m, GPT)]:
        looked_up = {*gpt.param_groups()["tables"]}
        if not gpt.config.tie_head:
            looked_up.add(gpt.transformer.wte.weight)
        for parent in list(gpt.modules()):
            for name, child in parent.named_children():
                if type(child) is nn.Embedding and child.weight in looked_up:
                    own.append(AccumulatingEmbedding(child))
                    setattr(parent, name, own[-1])
    return own
