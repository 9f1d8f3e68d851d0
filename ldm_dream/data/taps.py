"""Filters along the rows and columns of a picture, for a CPU: each pixel of the result is a sum of
a few weighted pixels of the source, its taps.

torch's own resizing takes one number at a time; here a whole row is multiplied and added.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

BICUBIC = -0.75  # slope of torch's bicubic at one pixel from the middle


class Taps(NamedTuple):
    """Of one axis: out[i] = sum over t of weight[i,t] * source[index[i,t]]; both [n,T]."""

    index: np.ndarray
    weight: np.ndarray


def filtered(image: Tensor, rows: Taps, columns: Taps) -> Tensor:
    """[1,C,H,W] on the CPU -> [1,C,h,w] with as many rows and columns as there are taps of each."""
    along_columns = _rows_summed(_rows_summed(image[0], rows).transpose(-1, -2), columns)
    return along_columns.transpose(-1, -2).contiguous()[None]


def _rows_summed(planes: Tensor, taps: Taps) -> Tensor:
    """[C,H,W] -> [C,n,W]."""
    channels, height, width = planes.shape
    starts = height * np.arange(channels)[:, None, None]
    index = torch.from_numpy((taps.index + starts).astype(np.int32)).flatten(0, 1)
    weight = torch.from_numpy(taps.weight.astype(np.float32)).repeat(channels, 1)
    table = planes.reshape(-1, width)
    sums = F.embedding_bag(index, table, mode="sum", per_sample_weights=weight)
    return sums.view(channels, -1, width)


def resize_taps(length: int, size: int, mode: str) -> Taps:
    """F.interpolate of `length` pixels to `size` by mode area, bilinear or bicubic, without
    antialiasing.
    """
    if length == size:
        return Taps(np.arange(size)[:, None], np.ones((size, 1)))
    return _area_taps(length, size) if mode == "area" else _spline_taps(length, size, mode)


def _area_taps(length: int, size: int) -> Taps:
    first = np.arange(size) * length // size
    count = -(-np.arange(1, size + 1) * length // size) - first
    step = np.arange(count.max())
    index = np.minimum(first[:, None] + step, length - 1)
    return Taps(index, (step < count[:, None]) / count[:, None])


def _spline_taps(length: int, size: int, mode: str) -> Taps:
    at = (np.arange(size) + 0.5) * length / size - 0.5
    first = np.floor(at).astype(np.int64)
    part = (at - first)[:, None]
    if mode == "bilinear":
        steps, weight = np.arange(2), np.concatenate([1 - part, part], 1)
    else:
        steps = np.arange(-1, 3)
        weight = _cubic(np.abs(part - steps))
    return Taps((first[:, None] + steps).clip(0, length - 1), weight)


def _cubic(distance: np.ndarray) -> np.ndarray:
    """Keys 1981, distance 0..2."""
    near = ((BICUBIC + 2) * distance - (BICUBIC + 3)) * distance**2 + 1
    far = BICUBIC * (((distance - 5) * distance + 8) * distance - 4)
    return np.where(distance <= 1, near, far)


def blurred_first(taps: Taps, kernel: np.ndarray, length: int) -> Taps:
    """Taps on the source of what `taps` takes from a row of `length` pixels that a symmetric kernel
    [K], K odd, has blurred, with mirrored borders.
    """
    first = taps.index.min(1)
    step = taps.index - first[:, None]
    size, reach = len(kernel), len(kernel) // 2
    weight = np.zeros((len(first), int(step.max()) + size))
    cells = np.arange(len(first))[:, None]
    for shift, share in zip(step.T, taps.weight.T):
        weight[cells, shift[:, None] + np.arange(size)] += share[:, None] * kernel
    index = first[:, None] - reach + np.arange(weight.shape[1])
    return Taps(mirrored_index(index, length), weight)


def mirrored_index(index: np.ndarray, length: int) -> np.ndarray:
    """Pixels of a row of `length` that goes on as its mirror image without end: .. 1 0 | 0 1 .. n-1
    | n-1 n-2 ..
    """
    turned = index % (2 * length)
    return np.minimum(turned, 2 * length - 1 - turned)
