"""How kernels see [B,C,h,w] tensors: as B runs of C*h*w values in memory, in the order of one dense layout for all of them."""

from __future__ import annotations

import torch
from torch import Tensor


def layout(x: Tensor) -> torch.memory_format:
    """channels_last if x has that layout, else contiguous."""
    last = not x.is_contiguous() and x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


def dense(first: Tensor, *others: Tensor) -> list[Tensor]:
    """All in `first`'s layout, channels-last if it has that and else contiguous. Copies only what lies otherwise."""
    return [x.contiguous(memory_format=layout(first)) for x in (first, *others)]


def per_sample(factor: Tensor, samples: int) -> Tensor:
    """[B,1,1,1] or what expands to it -> float32 [B], contiguous."""
    return factor.expand(samples, 1, 1, 1).reshape(samples).float().contiguous()
