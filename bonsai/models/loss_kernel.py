"""The loss of logits in 16 bits, which are overwritten with their gradient: by the kernel in
triton_loss.py if it runs here and agrees with plain torch, else by plain torch.

For 32 x 1,024 tokens and 50,304 ids such logits take 3.1 GiB. No second tensor of that size is
needed: the loss reads the logits once, and then their gradient takes their place.
"""

import sys
import zlib
from importlib.util import find_spec
from pathlib import Path

import torch
from torch.nn import functional as F

from bonsai.system.errors import one_line

HALF = (torch.bfloat16, torch.float16)  # the dtypes of logits that the kernel takes
PART = 2**26  # logits that plain torch has in fp32 at a time

# The gradient of W is a sum over all tokens and may exceed float16. So in float16 the activations
# from which it is computed are scaled down by this power of 2.
SMALLER = 2.0**-7

checked: set[tuple] = set()  # kinds of calls for which the kernel was compared with plain torch
refused: set[torch.device] = set()  # devices on which it cannot be run, or was wrong


def has_kernel(device: torch.device) -> bool:
    """Whether there is a kernel to try on this device; torch for Windows comes without triton."""
    return device.type == "cuda" and find_spec("triton") is not None


# ---- operators of torch. To torch.compile each is one call; an autograd.Function would be a graph
# within the graph, which not every torch can cut in two for DistributedDataParallel. ----

# torch keeps compiled graphs from run to run, and knows an operator by its name alone, not by its
# gradient. So the name contains a checksum of this file.
VERSION = f"{zlib.crc32(Path(__file__).read_bytes()):08x}"


@torch.library.custom_op(f"bonsai::summed_loss_{VERSION}", mutates_args=())
def summed_loss(
    x: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    after: torch.Tensor | None,
    further: torch.Tensor | None,
    cap: float,
    dtype: torch.dtype,
    gradient: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The sum of the cross-entropies of cap(x W^T) and, with `gradient`, its gradient with respect
    to the logits. The backward pass scales it; the gradient of a mean would vanish in float16.

    x (N, C) and weight (V, C) are multiplied in `dtype`; the rest as in `losses`. Returns the sum
    in fp32, and the gradient (N, V) in `dtype`, or (0,). Only the sum can be differentiated.
    """
    (N, _), V = x.shape, weight.size(0)
    # a CPU's matrix unit also multiplies, by 0, what lies between the rows: that must be no NaN
    make = x.new_zeros if x.device.type == "cpu" else x.new_empty
    logits = make(N, row_length(V), dtype=dtype)[:, :V]
    torch.mm(x.to(dtype), weight.to(dtype).T, out=logits)
    total = losses(logits, targets, after, further, cap, gradient).sum()
    return total, logits if gradient else logits.new_empty(0)


@summed_loss.register_fake
def _(x, weight, targets, after, further, cap, dtype, gradient):
    total, (N, _), V = x.new_empty((), dtype=torch.float32), x.shape, weight.size(0)
    if not gradient:
        return total, x.new_empty(0, dtype=dtype)
    return total, x.new_empty_strided((N, V), (row_length(V), 1), dtype=dtype)


def row_length(V: int) -> int:
    """Elements from one row of logits to the next: aligned rows are accessed 16 bytes at once."""
    return -(-V // 16) * 16


@torch.library.custom_op(f"bonsai::product_later_{VERSION}", mutates_args=())
def product_later(a: torch.Tensor, b: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """The product a b. Its unused argument `scale`, which only the backward pass has, keeps a
    compiler from moving it into the forward pass.

    The compiler would do that to keep less between the passes; then evaluations, too, would compute
    the gradients of x and W, which they do not need.
    """
    return a @ b


@product_later.register_fake
def _(a, b, scale):
    return a.new_empty(a.size(0), b.size(1))


def keep_for_backward(ctx, inputs, output):
    """Save both factors and the gradient of the logits."""
    x, weight, *_, dtype, _ = inputs
    ctx.save_for_backward(x, weight, output[1])
    ctx.dtype = dtype
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)  # zeros as large as the logits


def backward(ctx, scale, _):
    """The gradients of x and W, in their dtypes. scale: the gradient of the sum, () in fp32."""
    x, weight, grad = ctx.saved_tensors
    h, w, dx, dw = x.to(ctx.dtype), weight.to(ctx.dtype), None, None
    if ctx.needs_input_grad[0]:
        dx = (product_later(grad, w, scale).float() * scale).to(x.dtype)
    if ctx.needs_input_grad[1]:
        of_w = scale
        if ctx.dtype == torch.float16:
            h, of_w = h * SMALLER, scale / SMALLER
        dw = (product_later(grad.T, h, scale).float() * of_w).to(weight.dtype)
    return dx, dw, *[None] * 6


summed_loss.register_autograd(backward, setup_context=keep_for_backward)


# ---- the losses ----


def losses(
    logits: torch.Tensor,
    targets: torch.Tensor,
    after: torch.Tensor | None,
    further: torch.Tensor | None,
    cap: float,
    gradient: bool,
) -> torch.Tensor:
    """Cross-entropies (N,) in fp32 of cap(logits), (N, V), with targets (N,); 0 for targets of -1.

    gradient: overwrite the logits with the gradient of the sum of the losses; if `after` is given,
    also of a second loss with targets `after` (N,) and weight `further`, a tensor. cap: the
    softcap, or 0.

    The first call of each kind is compared with plain torch. If the kernel is wrong or cannot be
    run, one line says so, and plain torch computes from then on.
    """
    given, device = (logits, targets, after, further, cap, gradient), logits.device
    if not has_kernel(device) or logits.dtype not in HALF:
        return plain_losses(*given)
    key = (logits.size(1), logits.dtype, device, cap, after is None, gradient)
    if key not in checked and device not in refused:
        checked.add(key)
        if why := refusal(logits, cap, after is not None, gradient):
            refused.add(device)
            why = f"no fused loss on {device}, torch computes it instead, slower: {why}"
            print(one_line(why), file=sys.stderr, flush=True)
    if device in refused:
        return plain_losses(*given)
    from bonsai.models.triton_loss import launch

    return launch(*given)


def plain_losses(
    logits: torch.Tensor,
    targets: torch.Tensor,
    after: torch.Tensor | None,
    further: torch.Tensor | None,
    cap: float,
    gradient: bool,
) -> torch.Tensor:
    """`losses` by plain torch, for some rows at a time."""
    rows = max(1, PART // logits.size(1))
    labels = [(targets, 1.0)] if after is None else [(targets, 1.0), (after, further)]
    found = [logits.new_empty(0, dtype=torch.float32)]
    for begin in range(0, len(logits), rows):
        part = logits[begin : begin + rows]
        x = part.float()
        if cap:
            bounded = torch.tanh(x / cap)
            x = cap * bounded
        target = targets[begin : begin + rows]
        found.append(F.cross_entropy(x, target, ignore_index=-1, reduction="none"))
        if not gradient:
            continue
        grad = x.softmax(-1)
        shares = [(of[begin : begin + rows, None], share) for of, share in labels]
        counted = sum((of >= 0).float() * share for of, share in shares)
        grad *= counted
        for of, share in shares:
            grad.scatter_add_(1, of.clamp(min=0), -(of >= 0).float() * share)
        if cap:
            grad *= 1 - bounded.square()
        part.copy_(grad.masked_fill_(counted == 0, 0.0))
    return torch.cat(found)


def refusal(like: torch.Tensor, cap: float, second: bool, gradient: bool) -> str:
    """Why the kernel is not to be used for logits like these; '': it may be.

    Random rows are computed both ways. They come from a generator of their own, so that the run
    draws the same random numbers as without this check.
    """
    device, V = like.device, like.size(1)
    try:
        from bonsai.models.triton_loss import launch

        noise = torch.Generator(device).manual_seed(0)
        scale = min(3.0, cap / 5) if cap else 3.0  # a cap bends them, and leaves their order
        logits = scale * torch.randn(5, row_length(V), generator=noise, device=device)
        targets, after = torch.randint(V, (2, 5), generator=noise, device=device)
        targets[1] = targets[2] = after[2] = after[3] = -1
        given = (targets, None, None)
        if second:
            given = (targets, after, torch.full((), 0.5, device=device))
        ours = logits.to(like.dtype)[:, :V]
        plain = ours.float()
        losses = launch(ours, *given, cap, gradient)
        right = plain_losses(plain, *given, cap, gradient)
        same = torch.allclose(losses, right, rtol=1e-3, atol=5e-3)
        if gradient:  # of a row its entries are at most 1.5
            same = same and torch.allclose(ours.float(), plain, rtol=0.02, atol=1e-3 / V**0.5)
    except Exception as e:  # of triton, of the driver, of the device's limits
        return f"{type(e).__name__} {e}"
    return "" if same else "a loss was not what torch computes"
