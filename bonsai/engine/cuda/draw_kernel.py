"""The draw of the next tokens as a kernel in Triton, for what takes plain torch many small ones."""

import torch
import triton
import triton.language as tl

from bonsai.system.hashing import GAMMA

SIZES = (256, 1024)  # tokens among which one program draws: few sizes, as each is compiled


@triton.jit
def mixed(z):
    """splitmix but for its last step, as in bonsai/system/hashing.py."""
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9
    return (z ^ (z >> 27)) * 0x94D049BB133111EB


@triton.jit(do_not_specialize=["m"])
def draw_kernel(
    logits, ids, keys, steps, drawn, values, m, row_stride,
    IDS: tl.constexpr, BLOCK: tl.constexpr, GAMMA: tl.constexpr,
):  # fmt: skip
    """The best of BLOCK tokens of a row by logit + noise, the first of the best, and its value."""
    row, place = tl.program_id(0), tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)
    key = tl.load(keys + row * row_stride).to(tl.uint64)
    z = mixed(key + (tl.load(steps + row * row_stride).to(tl.uint64) + 1) * GAMMA)
    key = z ^ (z >> 31)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(logits + row * m + at, mask=at < m, other=float("-inf"))
    token = at.to(tl.int64)
    if IDS:
        token = tl.load(ids + row * m + at, mask=at < m, other=0)
    bits = mixed(key + token.to(tl.uint64) * GAMMA) >> 40
    u = bits.to(tl.int32).to(tl.float32) * (1 / 2**24) + (1 / 2**25)
    # in fp64, as 1 - u loses most of a small u, and Triton's fp32 logarithm what is near log 1
    exponential = -tl.log(1.0 - u.to(tl.float64))
    x -= tl.log(exponential.to(tl.float32))
    best = tl.program_id(1) * BLOCK + tl.argmax(x, axis=0)
    tl.store(drawn + place, tl.sum(tl.where(at == best, token, 0), axis=0))
    tl.store(values + place, tl.max(x, axis=0))


def draw(logits, ids, keys, steps):
    """Logits (n, m) of tokens ids (n, m), None: 0 ... m - 1; keys and steps (n,) of the rows ->
    tokens (n,) drawn as by sampling.py: argmax of logits + noise(step_key(key, step), id)."""
    n, m = logits.shape
    logits, size = logits.contiguous(), SIZES[0] if m <= SIZES[0] else SIZES[1]
    drawn = torch.empty((n, triton.cdiv(m, size)), dtype=torch.int64, device=logits.device)
    values = torch.empty_like(drawn, dtype=torch.float32)
    with torch.cuda.device_of(logits):
        draw_kernel[drawn.shape](
            *(logits, drawn if ids is None else ids, keys, steps, drawn, values, m, keys.stride(0)),
            IDS=ids is not None, BLOCK=size, GAMMA=GAMMA,
        )  # fmt: skip
    if drawn.size(1) > 1:
        drawn = drawn.gather(1, values.argmax(1, keepdim=True))
    return drawn[:, 0]
