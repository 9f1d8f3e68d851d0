"""How kernels see [B,C,h,w] tensors: as B runs of C*h*w values in memory, in the order of one dense
layout for all of them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ._triton import jit, tl


def layout(x: Tensor) -> torch.memory_format:
    """channels_last if x has that layout, else contiguous."""
    last = (
        not x.is_contiguous()
        and x.dim() == 4
        and x.is_contiguous(memory_format=torch.channels_last)
    )
    return torch.channels_last if last else torch.contiguous_format


def dense(first: Tensor, *others: Tensor) -> list[Tensor]:
    """All in `first`'s layout, channels-last if it has that and else contiguous. Copies only what
    lies otherwise.
    """
    formats = {4: layout(first)}
    return [
        x.contiguous(memory_format=formats.get(x.dim(), torch.contiguous_format))
        for x in (first, *others)
    ]


def grid(x: Tensor, block: int) -> tuple[tuple[int], int, int]:
    """-> programs, values a sample, programs a sample. x is not empty."""
    size = x.numel() // len(x)
    blocks = -(-size // block)
    return (len(x) * blocks,), size, blocks


def per_sample(factor: Tensor, samples: int) -> Tensor:
    """[B,1,1,1], [B] or one number for all -> float32 [B], contiguous."""
    return factor.reshape(-1).expand(samples).float().contiguous()


@jit
def block_of(size, blocks, BLOCK: tl.constexpr):
    """This program's part of a grid of B * blocks: sample, first value in it (both int64), lanes,
    addresses (int64) and mask.
    """
    sample = (tl.program_id(0) // blocks).to(tl.int64)
    start = (tl.program_id(0) % blocks).to(tl.int64) * BLOCK
    lanes = tl.arange(0, BLOCK)
    inside = start + lanes
    return sample, start, lanes, sample * size + inside, inside < size
