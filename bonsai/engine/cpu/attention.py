"""Attention of one-token steps on a CPU, for several rows at once."""

from ctypes import c_float, c_int, c_int64, c_void_p

import torch

from bonsai.engine.cpu.native import functions
from bonsai.models.kernels import cpu_attend

CHANNELS = range(16, 129, 16)  # sizes of a head for which attention.cpp has loops


def attend(q, k, v, mask, window: int, scale: float, dropout: float):
    """model.attention, computed by attention.cpp for one query (T = 1) in each of several rows.

    q (B, nh, T, hs), k and v (B, nkv, S, hs) as in caches, mask (B or 1, 1, T, S) bool -> like q.
    Each row reads only the keys that it sees; torch's kernel reads as many as the longest row has.
    """
    (B, nh, T, hs), (nkv, S) = q.shape, k.shape[1:3]
    if (
        T == 1 < B
        and hs in CHANNELS
        and dropout == 0
        and q.stride(1) == hs
        and k.stride() == v.stride()
        and q.stride(3) == k.stride(3) == 1
        and (mask is None or (mask.dtype, mask.stride(-1)) == (torch.bool, 1))
        and (kernel := kernels().get(q.dtype))
    ):
        y = torch.empty((B, nh, 1, hs), dtype=q.dtype)
        seen, seen_stride = None, 0
        if mask is not None:
            seen, seen_stride = mask.data_ptr(), mask.expand(B, 1, 1, S).stride(0)
        kernel(
            q.data_ptr(), k.data_ptr(), v.data_ptr(), seen, y.data_ptr(),
            B, nh, nkv, S, hs, q.stride(0), *k.stride()[:3], seen_stride,
            scale, torch.get_num_threads(),
        )  # fmt: skip
        return y
    return cpu_attend(q, k, v, mask, window, scale, dropout)


def kernels() -> dict:
    """The functions of attention.cpp by dtype; empty if it cannot be built."""
    return functions("attention", "attention", *[c_void_p] * 5, *[c_int64] * 10, c_float, c_int)
