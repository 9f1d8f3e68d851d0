"""Bicubic resizing equal to MATLAB's `imresize`, with which the SR literature makes its
low-resolution pictures.

Source: the documented behaviour of MATLAB's imresize (cubic of Keys 1981 with a = -1/2, symmetric
borders, the kernel widened by 1/scale when shrinking); verified against BasicSR's
matlab_functions.py. torch's and Pillow's bicubic differ at the borders.

Symbols: scale = output length / input length; u = centre of an output sample in input coordinates,
both counted from 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

Index = TypeVar("Index", np.ndarray, Tensor)  # integers
Cut = Callable[[slice, slice], Tensor]  # rows and columns of a picture -> that part of it


def imresize(img: Tensor, scale: float, antialias: bool = True) -> Tensor:
    """[..., H, W] floating -> [..., ceil(H * scale), ceil(W * scale)], any value range; the cubic
    overshoots, nothing is clipped.

    scale > 0; above 1 enlarges. antialias=False keeps the kernel 4 input samples wide when
    shrinking. Raises ValueError for another scale or an integer image.
    """
    if not (scale > 0 and math.isfinite(scale)):
        raise ValueError(
            f"imresize: scale={scale} is not allowed; give a number above 0, for example 0.25."
        )
    height, width = img.shape[-2:]
    img = _resize_rows(img, math.ceil(height * scale), scale, antialias)
    return _resize_rows(
        img.mT.contiguous(), math.ceil(width * scale), scale, antialias
    ).mT.contiguous()


def imresize_to(img: Tensor, height: int, width: int, antialias: bool = True) -> Tensor:
    """`imresize` to an exact size: [..., H, W] -> [..., height, width], with the scales height / H
    and width / W.
    """
    if height < 1 or width < 1:
        raise ValueError(
            f"imresize_to: the size {height}x{width} is not allowed; both sides must be at least 1."
        )
    img = _resize_rows(img, height, height / img.shape[-2], antialias)
    return _resize_rows(
        img.mT.contiguous(), width, width / img.shape[-1], antialias
    ).mT.contiguous()


def imresize_part(
    img: Cut, length: tuple[int, int], size: tuple[int, int], rows: slice, columns: slice
) -> Tensor:
    """Rows and columns of `imresize_to` of a picture, bit for bit, from what they depend on alone.

    img: its own rows and columns -> that part of it, [..., h, w] floating. length: its (H, W).
    size: (height, width) of the whole result. rows, columns: parts of that, with start and stop.
    """
    if length == size:
        return img(rows, columns)
    (high, down), (wide, across) = map(_taps_of_part, length, size, (rows, columns))
    part = _sum_of_taps(img(high, wide), *down)
    return _sum_of_taps(part.mT.contiguous(), *across).mT.contiguous()


def rows_needed(length: int, size: int, rows: slice) -> slice:
    """The input rows that `rows` of a result of `size` rows depend on; `length`: the input's."""
    return rows if length == size else _taps_of_part(length, size, rows)[0]


def size_of(img: Tensor) -> tuple[int, int]:
    """[..., H, W] -> (H, W)."""
    return img.shape[-2], img.shape[-1]


def upsample(lr: Tensor, size: tuple[int, int]) -> Tensor:
    """LR [B, 3, H, W] in [-1, 1] -> bicubic enlargement [B, 3, *size] in [-1, 1]: what the
    autoencoder encodes.
    """
    return imresize_to(lr, *size).clamp(-1, 1)


def degrade(hr: Tensor, scale: int) -> Tensor:
    """uint8 [..., H, W] -> uint8 LR [..., H / scale, W / scale], as MATLAB's imresize(hr, 1 /
    scale) makes it.

    Raises ValueError unless `hr` is uint8 and its sides are multiples of `scale`.
    """
    height, width = hr.shape[-2:]
    if hr.dtype != torch.uint8 or height % scale or width % scale or not height or not width:
        raise ValueError(
            f"degrade: got {hr.dtype} {height}x{width} for scale {scale}; it takes uint8 with sides in multiples of the scale."
        )
    return imresize_levels(hr, height // scale, width // scale)


def imresize_levels(img: Tensor, height: int, width: int) -> Tensor:
    """uint8 [..., H, W] -> uint8 [..., height, width], as MATLAB's imresize makes it from a uint8
    picture.

    MATLAB rounds (half up) to uint8 after the rows and again after the columns. Without that, 11 %
    of the pixels of the published Set5 and Set14 LR pictures come out one grey level off; with it
    none does, but for the two outermost pixels, where the older MATLAB of those sets repeated the
    border pixel.
    """
    if img.shape[-2:] == (height, width):
        return img
    rows = _to_levels(
        _resize_rows(img.float(), height, height / img.shape[-2], antialias=True)
    ).mT.contiguous()
    return (
        _to_levels(_resize_rows(rows, width, width / img.shape[-1], antialias=True))
        .mT.contiguous()
        .to(torch.uint8)
    )


def imresize_levels_part(
    img: Cut, length: tuple[int, int], size: tuple[int, int], rows: slice, columns: slice
) -> Tensor:
    """As `imresize_part`, of `imresize_levels` and uint8 pixels."""
    if length == size:
        return img(rows, columns)
    (high, down), (wide, across) = map(_taps_of_part, length, size, (rows, columns))
    part = _to_levels(_sum_of_taps(img(high, wide).contiguous().float(), *down)).mT.contiguous()
    return _to_levels(_sum_of_taps(part, *across)).mT.contiguous().to(torch.uint8)


def _to_levels(img: Tensor) -> Tensor:
    return torch.floor(img + 0.5).clamp(0, 255)


def _resize_rows(img: Tensor, size: int, scale: float, antialias: bool) -> Tensor:
    """[..., H, W] -> [..., size, W]: a sum over the taps of the kernel, so time and memory are
    linear in the output.
    """
    if not img.is_floating_point():
        raise ValueError(
            f"imresize: got {img.dtype}; it takes a floating image, convert with .float() first."
        )
    taps = _taps_on(img.device, img.dtype, img.shape[-2], size, scale, antialias)
    return _sum_of_taps(img, *taps)


@lru_cache(maxsize=8)  # a device waits for what is sent to it at each use
def _taps_on(
    device: torch.device, dtype: torch.dtype, length: int, size: int, scale: float, antialias: bool
) -> tuple[Tensor, Tensor]:
    index, weight = _taps(length, size, scale, antialias)
    return index.to(device), weight.to(device, dtype)


def _sum_of_taps(img: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    index, weight = index.to(img.device), weight.to(img.device, img.dtype)[..., None]
    out = img.index_select(-2, index[0]) * weight[0]
    for i, w in zip(index[1:], weight[1:]):
        out = torch.addcmul(out, img.index_select(-2, i), w)
    return out


def _taps_of_part(length: int, size: int, part: slice) -> tuple[slice, tuple[Tensor, Tensor]]:
    """-> the inputs that outputs `part` depend on, and the taps counted from the first of these."""
    index, weight = (x[:, part] for x in _taps(length, size, size / length, True))
    first, last = int(index.min()), int(index.max())
    return slice(first, last + 1), (index - first, weight)


@lru_cache(maxsize=64)  # parts of pictures ask again and again
def _taps(length: int, size: int, scale: float, antialias: bool) -> tuple[Tensor, Tensor]:
    """-> input index int64 [taps, size] and weight float64 [taps, size] of each output; weights sum
    to 1 over taps.
    """
    squeeze = min(scale, 1.0) if antialias else 1.0
    u = (torch.arange(size, dtype=torch.float64) + 0.5) / scale - 0.5
    support = 4 / squeeze
    first = torch.floor(u - support / 2)
    position = first + torch.arange(math.ceil(support) + 2, dtype=torch.float64)[:, None]
    weight = _cubic(squeeze * (u - position))
    weight = weight / weight.sum(0)
    used = weight.abs().amax(1) > 0
    index = mirrored_index(position.long(), length)
    return index[used], weight[used]


def mirrored_index(index: Index, length: int) -> Index:
    """Pixels of a row of `length` that goes on as its mirror image without end: .. 1 0 | 0 1 .. n-1
    | n-1 n-2 .., right for one that is narrower than a kernel too.
    """
    last = 2 * length - 1
    turned: Any = index % (last + 1)
    return (last - abs(2 * turned - last)) // 2


def _cubic(x: Tensor) -> Tensor:
    """Keys' cubic convolution kernel, a = -1/2 (IEEE TASSP 29(6), 1981, Eq. 15)."""
    x = x.abs()
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x <= 1, near, torch.where(x < 2, far, torch.zeros_like(x)))
