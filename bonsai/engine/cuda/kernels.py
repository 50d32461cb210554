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
    for rows, K in ((3, 96), (3, 3000), (40, 96)):  # the blocks that there are
        x = torch.randn(rows, K, generator=generator).half().to(device)
        weight = torch.randint(-9, 10, (40, K), generator=generator).to(device, torch.int8)
        scale, bias = torch.rand(40, generator=generator).to(device), 99 * x[0, :40]
        for given in ((weight, scale), (weight.half(), None)):
            want = F.linear(x.float(), weight.float()) * (1 if given[1] is None else scale) + bias
            error = (module.product(x, *given, bias).float() - want).abs().max()
            if not error < 1e-2 * want.abs().max():
                raise RuntimeError(f"a product with weights in {given[0].dtype} is off by {error}")
    q = torch.randn(2, 4, 1, 48, generator=generator).half().to(device)
    k, v = torch.randn(2, 2, 2, 300, 48, generator=generator).half().to(device)
    places, ends = torch.arange(300, device=device), torch.tensor([7, 280], device=device)
    behind = ends[:, None, None, None] - places  # (B, 1, 1, S); a window of 200 ends at each
    seen = (behind >= 0) & (behind < 200)
    mask = torch.zeros(seen.shape, device=device).masked_fill(~seen, -torch.inf).half()
    want = F.scaled_dot_product_attention(q, k, v, mask, scale=0.2, enable_gqa=True)
    error = (module.attend(q, k, v, mask, 0.2) - want).abs().max()
    if not error < 1e-2:
        raise RuntimeError(f"attention is off by {error:.1e}")
    numbers = torch.randint(-(2**62), 2**62, (16, 2), generator=generator).to(device)
    keys, steps = numbers.T  # (16,) each, strided
    for m in module.SIZES:
        logits = torch.randn(16, m - 56, generator=generator).to(device)
        ids = torch.randint(50304, logits.shape, generator=generator).to(device)
        best = logits + noise(splitmix_tensor(keys, steps)[:, None], ids)
        want = ids.gather(1, best.argmax(1, keepdim=True))[:, 0]
        if module.draw(logits, ids, keys, steps).tolist() != want.tolist():
            raise RuntimeError("a draw is not what it should be")
