"""The loss of the output head without all of its logits in fp32 in memory.

The logits of B x T tokens over a vocabulary of V are the largest tensor of a training step: 6.1 GiB
in fp32 for 32 x 1,024 x 50,304, and as much again each for their softmax and their gradient. Two
ways take less, and compute the gradient together with the loss, so that nothing is computed twice:

    kernel_head_loss    on CUDA: the logits are in 16 bits, and one kernel overwrites them with
                        their gradient (loss_kernel.py)
    chunked_head_loss   everywhere: one chunk of rows after another goes through head, softcap and
                        cross-entropy, and its logits are not kept (Liger Kernel, Hsu et al. 2024)
"""

import math

import torch
from torch import nn
from torch.nn import functional as F

from bonsai.models.loss_kernel import HALF, summed_loss
from model import dtype_of_products, head_loss

# The most logits in memory at once. On a GPU our kernel and compiled models have them in 16 bits:
# there it is fastest to have them all, as long as a 32-bit index reaches them (MOST_COMPILED).
MOST = {"cpu": 2**25, "cuda": 2**28}
MOST_COMPILED = 2**31 - 1


def most_logits(device_type: str, compiled: bool = False) -> int:
    """The most logits (elements, not bytes) that a training step has in memory at once."""
    return MOST_COMPILED if compiled else MOST.get(device_type, 2**26)


def kernel_head_loss(model: nn.Module, x: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """model.head_loss by a kernel if the products are in 16 bits, else in chunks.

    x (B, T, C), targets (B, T).
    """
    head, dtype = model.lm_head, dtype_of_products(x)
    if type(head) is not nn.Linear or head.bias is not None or dtype not in HALF:
        return chunked_head_loss(model, x, targets)
    if targets.numel() * head.weight.size(0) > MOST_COMPILED:
        return chunked_head_loss(model, x, targets)
    further = model.further if torch.is_grad_enabled() else None
    after = None if further is None else after_next(targets)
    x, weight, targets = x.flatten(0, 1), head.weight, targets.flatten()
    if dtype == torch.bfloat16:  # cast here, where a compiler can fuse it; bfloat16 cannot overflow
        x, weight = x.to(dtype), weight.to(dtype)
    cap = model.config.logit_softcap
    total, _ = summed_loss(x, weight, targets, after, further, cap, dtype, torch.is_grad_enabled())
    return mean(total, (targets >= 0).sum())


def mean(total: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    """The mean loss, from the sum of the losses of `count` targets. Without targets it is NaN and
    has no gradient, like that of F.cross_entropy."""
    return torch.where(count > 0, total / count.clamp(min=1), math.nan)


def after_next(targets: torch.Tensor) -> torch.Tensor:
    """The targets (B T,) of model.cross_entropy's second loss, from those (B, T) of the first."""
    return F.pad(targets[:, 1:], (0, 1), value=-1).flatten()


def chunked_head_loss(model: nn.Module, x: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """model.head_loss; in chunks if there are many logits. x (B, T, C), targets (B, T)."""
    head, kind = model.lm_head, x.device.type
    compiled = torch.compiler.is_compiling() and kind != "cpu"
    most = most_logits(kind, compiled)
    few = targets.numel() * head.weight.size(0) <= most if type(head) is nn.Linear else True
    if few or head.bias is not None:
        return head_loss(model, x, targets)
    rows, after = max(1, (MOST["cuda"] if compiled else most) // head.weight.size(0)), None
    if model.further is not None:
        after = after_next(targets)
    x, targets = x.flatten(0, 1), targets.flatten()
    if not torch.is_grad_enabled():
        total = torch.zeros((), device=x.device)
        for part, target in zip(x.split(rows), targets.split(rows)):
            logits = model.head(part)
            total += F.cross_entropy(logits, target, ignore_index=-1, reduction="sum")
        return mean(total, (targets >= 0).sum())
    cap, dtype = model.config.logit_softcap, dtype_of_products(x)
    return ChunkedHeadLoss.apply(x, head.weight, targets, after, model.further, cap, rows, dtype)


class ChunkedHeadLoss(torch.autograd.Function):
    """Mean cross-entropy of cap(x W^T); the forward pass already computes the gradients of x and W.

    x (N, C), weight (V, C), targets (N,). after (N,): targets of a second loss with weight
    `further`, which changes only the gradients; or None. cap: the softcap, or 0. rows: of a chunk.
    dtype: of the products. The gradients are those of the sum of losses; the backward pass divides
    them by the number of targets, because those of a mean would vanish in float16.
    """

    @staticmethod
    def forward(ctx, x, weight, targets, after, further, cap: float, rows: int, dtype: torch.dtype):
        h, w = x.to(dtype), weight.to(dtype)
        dx, dw = [], torch.zeros_like(weight, dtype=torch.float32)
        total = torch.zeros((), device=x.device)
        losses = [(targets, 1.0)] if after is None else [(targets, 1.0), (after, further)]
        for begin in range(0, len(h), rows):
            part = h[begin : begin + rows]
            logits = (part @ w.T).float()
            if cap:
                bounded = logits.div_(cap).tanh_()
                logits = cap * bounded
            norm = logits.logsumexp(-1, keepdim=True)
            parts = []  # of each loss: the rows' labels and weights, (rows, 1)
            for of, share in losses:
                target = of[begin : begin + rows, None]
                parts.append((target.clamp(min=0), (target >= 0).float() * share))
            (label, seen), *_ = parts
            total = total + (norm - logits.gather(1, label)).masked_fill(seen == 0, 0.0).sum()
            counted = sum(weights for _, weights in parts)
            grad = logits.sub_(norm).exp_().mul_(counted)  # softmax - one-hot, through the cap
            for label, weights in parts:
                grad.scatter_add_(1, label, -weights)
            if cap:
                grad.addcmul_(grad, bounded.square_(), value=-1)
            grad = grad.masked_fill_(counted == 0, 0.0).to(dtype)
            dx.append(grad @ w)
            if dtype == torch.float32:
                dw.addmm_(grad.T, part)
            else:
                dw += grad.T @ part
        ctx.save_for_backward(torch.cat(dx), dw, count := (targets >= 0).sum())
        ctx.dtypes = x.dtype, weight.dtype
        return mean(total, count)

    @staticmethod
    def backward(ctx, grad):
        if torch.is_grad_enabled():  # by create_graph=True; dx and dw would count as constants
            raise RuntimeError(
                "this loss has no second derivatives: call the model with return_logits=True"
            )
        dx, dw, count = ctx.saved_tensors
        scale = grad / count.clamp(min=1)
        return (dx * scale).to(ctx.dtypes[0]), (dw * scale).to(ctx.dtypes[1]), *[None] * 6
