"""Standard normal noise that is a function of where it stands, made where it is used and never
stored.

    words = Philox-4x32-10(counter = (column, row, channel, draw), key = seed)        Salmon et al., SC 2011
    n     = sqrt(-2 ln u) cos(2 pi v),   u = (word0 >> 9 + 1/2) 2^-23,   v = (word1 >> 8) 2^-24      Box-Muller

Row and column are global: a tile that says where it begins has its part of the whole picture's
field, bit for bit. Ops take a key (int64 [B,4] from `noise_key`) wherever they take eps. u and v
are exact in float32; |n| <= 5.77. `reference.normal` has the same words, and the same n up to the
rounding of log, sqrt and cos. A call of Philox makes one value: about 100 integer operations.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ._triton import jit, tl


def noise_key(
    seed: Tensor, draw: int | Tensor = 0, row: int | Tensor = 0, column: int | Tensor = 0
) -> Tensor:
    """seed: int64 [B], all 64 bits count. draw: number of the field (a sampler's step). row,
    column: place of the tensor's first pixel in the whole. All below 2^32, one for all or int64
    [B]. -> int64 [B,4] on seed's device.
    """
    return torch.stack([seed, *(torch.zeros_like(seed) + x for x in (draw, row, column))], 1)


def is_key(eps: Tensor) -> bool:
    return eps.dtype == torch.int64


def inner_sizes(like: Tensor) -> tuple[int, int, bool]:
    """Of a dense [B,C,h,w]: lengths of the two inner axes in the order of memory, and whether
    channels are the innermost.
    """
    _, c, h, w = like.shape
    return (h, w, False) if like.is_contiguous() else (w, c, True)


@jit
def sine_of_turns(x):
    """sin(2 pi x) for |x| <= 1/4, off by at most 2e-7. tl.cos and tl.sin spill: they are ready for
    arguments of any size.
    """
    y = x * x  # coefficients: Chebyshev interpolation of sin(2 pi x) / x in x^2
    return x * (
        6.283185280154403
        + y
        * (
            -41.34168061334532
            + y * (81.60247636883796 + y * (-76.5811726421402 + y * 39.75982706857711))
        )
    )


@jit
def normal_block(key, sample, start, lanes, d1, d2, LAST: tl.constexpr):
    """The values at start + lanes of one sample's memory; d1, d2, LAST as from `inner_sizes`.
    float32.
    """
    i2 = (start % d2).to(tl.int32) + lanes
    i1 = ((start // d2) % d1).to(tl.int32) + i2 // d2
    i0 = (start // d2 // d1).to(tl.int32) + i1 // d1
    i1, i2 = i1 % d1, i2 % d2
    channel, row, column = (i2, i0, i1) if LAST else (i0, i1, i2)
    seed, draw = tl.load(key + 4 * sample), tl.load(key + 4 * sample + 1)
    row += tl.load(key + 4 * sample + 2)
    column += tl.load(key + 4 * sample + 3)
    word0, word1, _, _ = tl.philox(
        seed, column.to(tl.uint32), row.to(tl.uint32), channel.to(tl.uint32), draw.to(tl.uint32)
    )
    u = ((word0 >> 9).to(tl.float32) + 0.5) * (1.0 / 2**23)
    v = (word1 >> 8).to(tl.float32) * (1.0 / 2**24)
    radius = tl.sqrt(tl.maximum(-2 * tl.log(u), 0))  # a fast log of almost 1 may come out above 0
    return radius * sine_of_turns(tl.abs(v - 0.5) - 0.25)


@jit
def eps_block(eps, sample, start, lanes, at, mask, d1, d2, LAST: tl.constexpr):
    """eps of a block, loaded or, where `eps` is a key, made. float32."""
    if eps.dtype.element_ty == tl.int64:
        value = normal_block(eps, sample, start, lanes, d1, d2, LAST)
    else:
        value = tl.load(eps + at, mask).to(tl.float32)
    return value
