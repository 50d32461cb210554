"""The loss of a head without its logits in memory: some rows at a time.

The logits of B x T tokens over a vocabulary of V are the largest tensor of a training step: 6.1 GiB
in fp32 at 32 x 1,024 x 50,304, and their softmax and gradient as much each. Here a chunk of rows
goes through head, softcap and cross-entropy, and its gradients are made at once: nothing of it is
kept for the backward pass, and nothing is computed twice (Liger Kernel, Hsu et al. 2024).
"""

import torch
from torch import nn
from torch.nn import functional as F

from model import head_loss

# How many logits are there at once. On a GPU a compiler fuses all but the products into one kernel
# and keeps them in 16 bits: whole is fastest there as long as an index of 32 bits reaches them all.
MOST = {"cpu": 2**25, "cuda": 2**28}
MOST_COMPILED = 2**31 - 1


def most_logits(device_type: str, compiled: bool = False) -> int:
    """Logits (elements, not bytes) that a training step has in memory at most."""
    return MOST_COMPILED if compiled else MOST.get(device_type, 2**26)


def chunked_head_loss(model: nn.Module, x: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """model.head_loss, in chunks where the logits are many. x (B, T, C), targets (B, T)."""
    head, kind = model.lm_head, x.device.type
    compiled = torch.compiler.is_compiling() and kind != "cpu"
    most = most_logits(kind, compiled)
    few = targets.numel() * head.weight.size(0) <= most if type(head) is nn.Linear else True
    if few or head.bias is not None:
        return head_loss(model, x, targets)
    rows, after = max(1, (MOST["cuda"] if compiled else most) // head.weight.size(0)), None
    if model.further is not None:  # the token after next, see model.cross_entropy
        after = F.pad(targets[:, 1:], (0, 1), value=-1).flatten()
    x, targets = x.flatten(0, 1), targets.clone().flatten()  # as in model.py
    if not torch.is_grad_enabled():
        total = torch.zeros((), device=x.device)
        for part, target in zip(x.split(rows), targets.split(rows)):
            logits = model.head(part)
            total += F.cross_entropy(logits, target, ignore_index=-1, reduction="sum")
        return total / (targets >= 0).sum()
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
    cap = model.config.logit_softcap
    return ChunkedHeadLoss.apply(x, head.weight, targets, after, model.further, cap, rows, dtype)


class ChunkedHeadLoss(torch.autograd.Function):
    """Mean cross-entropy of cap(x W^T), whose forward makes the gradients of x and W.

    x (N, C), weight (V, C), targets (N,); after (N,), the targets of a second loss that adds to the
    gradients alone, by the weight further, or None; cap: 0 or the softcap, rows of a chunk, dtype
    of the products. Gradients are those of the sum until the backward pass divides by the number of
    targets: with 1 / N in them those of float16 would vanish.
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
        return total / count

    @staticmethod
    def backward(ctx, grad):
        dx, dw, count = ctx.saved_tensors
        scale = grad / count
        return (dx * scale).to(ctx.dtypes[0]), (dw * scale).to(ctx.dtypes[1]), *[None] * 6
