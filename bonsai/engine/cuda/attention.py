"""Attention of captured one-token steps on a GPU."""

from collections.abc import Callable

import torch

from bonsai.engine.cuda.kernels import kernels


def attend_one_query(otherwise: Callable) -> Callable:
    """As model.attention: one query with a mask that is added to the scores, as captured steps have
    it, by a kernel that reads the keys which the mask lets through; all else by `otherwise`."""

    def attend(q, k, v, mask, window: int, scale: float, dropout: float) -> torch.Tensor:
        if (
            q.size(2) == 1
            and q.is_cuda
            and dropout == 0
            and mask is not None
            and mask.is_floating_point()
            and k.stride() == v.stride()
            and q.stride(3) == k.stride(3) == mask.stride(3) == 1
            and (found := kernels())
        ):
            return found.attend(q, k, v, mask, scale)
        return otherwise(q, k, v, mask, window, scale, dropout)

    return attend
