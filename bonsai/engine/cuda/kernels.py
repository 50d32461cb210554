"""The kernels of triton_kernels.py, where they can be had and give what plain torch gives."""

import functools
import sys
from types import ModuleType

import torch
from torch.nn import functional as F

from bonsai.engine.sampling import noise
from bonsai.system.hashing import splitmix_tensor


@functools.cache
def kernels() -> ModuleType | None:
    """The module; None, after one line that says why, where there is no Triton, or no compiler for
    it, or where a kernel computes something else. The first call compiles, for a second or so."""
    if not torch.cuda.is_available():
        return None
    try:
        from bonsai.engine.cuda import triton_kernels

        check(triton_kernels, torch.device("cuda", torch.cuda.current_device()))
        return triton_kernels
    except Exception as e:  # Triton has many ways to fail, and plain torch does the same
        reason = next(iter(str(e).strip().splitlines()), type(e).__name__)
        print(f"no Triton kernels, torch computes instead, slower: {reason}", file=sys.stderr)
        return None


def check(module: ModuleType, device: torch.device) -> None:
    """Raise RuntimeError where a kernel does not give what plain torch gives."""
    generator = torch.Generator().manual_seed(0)  # the global one is not touched
    half = torch.float16  # which all GPUs of today have
    if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        half = torch.bfloat16
    # few sizes, as each is compiled; those of attention are GPT-2's
    weight = torch.randint(-9, 10, (40, 300), generator=generator).to(device, torch.int8)
    scale = torch.rand(40, generator=generator).to(device)
    for rows, given in ((3, (weight.to(half), None)), (40, (weight, scale))):
        x = torch.randn(rows, 300, generator=generator).to(device, half)
        bias = 99 * x[0, :40]
        want = F.linear(x.float(), weight.float()) * (1 if given[1] is None else scale) + bias
        error = (module.product(x, *given, bias).float() - want).abs().max()
        if not error < 1e-2 * want.abs().max():
            raise RuntimeError(f"a product with weights in {given[0].dtype} is off by {error}")
    q = torch.randn(2, 4, 1, 64, generator=generator).to(device, half)
    k, v = torch.randn(2, 2, 4, 304, 64, generator=generator).to(device, half)
    places, ends = torch.arange(304, device=device), torch.tensor([7, 280], device=device)
    behind = ends[:, None, None, None] - places  # (B, 1, 1, S); a window of 200 ends at each
    seen = (behind >= 0) & (behind < 200)
    mask = torch.zeros(seen.shape, dtype=half, device=device).masked_fill(~seen, -torch.inf)
    exact = (x.float() for x in (q, k, v, mask))
    want = F.scaled_dot_product_attention(*exact, scale=0.2)
    error = (module.attend(q, k, v, mask, 0.2).float() - want).abs().max()
    if not error < 2e-2:
        raise RuntimeError(f"attention is off by {error:.1e}")
    numbers = torch.randint(-(2**62), 2**62, (16, 2), generator=generator).to(device)
    keys, steps = numbers.T  # (16,) each, strided
    logits = torch.randn(16, 200, generator=generator).to(device)
    ids = torch.randint(50304, logits.shape, generator=generator).to(device)
    best = logits + noise(splitmix_tensor(keys, steps)[:, None], ids)
    want = ids.gather(1, best.argmax(1, keepdim=True))[:, 0]
    if module.draw(logits, ids, keys, steps).tolist() != want.tolist():
        raise RuntimeError("a draw is not what it should be")
