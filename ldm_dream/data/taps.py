"""Filters along the rows and columns of a picture, for a CPU: each pixel of the result is a sum of
a few weighted pixels of the source, its taps.

torch's own resizing takes one number at a time; here a whole row is multiplied and added.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ldm_dream.data.resize import mirrored_index

MISSING = 1e-5  # of a kernel whose sum is 1
BICUBIC = -0.75  # slope of torch's bicubic at one pixel from the middle


class Taps(NamedTuple):
    """Of one axis: out[i] = sum over t of weight[i,t] * source[index[i,t]], for each of R terms;
    index [n,T], weight [R,n,T].
    """

    index: np.ndarray
    weight: np.ndarray


def filtered(image: Tensor, rows: Taps, columns: Taps) -> Tensor:
    """[1,C,H,W] on the CPU -> [1,C,h,w], as many rows and columns as there are taps of each: the
    sum over the terms, each of which goes along both axes.
    """
    channels, height, width = image.shape[1:]
    terms = len(rows.weight)
    lines = image[0].transpose(0, 1).reshape(height, channels * width)
    along = _sums(lines, np.broadcast_to(rows.index, rows.weight.shape), rows.weight)
    turned = _laid_out(along.view(terms, -1, channels, width).permute(0, 2, 3, 1))

    # all terms of a pixel are taps of one sum
    plane, term = width * np.arange(channels), width * channels * np.arange(terms)
    index = columns.index[:, None] + term[:, None] + plane[:, None, None, None]
    weight = np.broadcast_to(columns.weight.swapaxes(0, 1), index.shape)
    flat = (channels, len(columns.index), -1)
    sums = _sums(turned.flatten(0, 2), index.reshape(flat), weight.reshape(flat))
    return _laid_out(sums.view(channels, -1, sums.shape[-1]).transpose(-1, -2))[None]


def _sums(table: Tensor, index: np.ndarray, weight: np.ndarray) -> Tensor:
    """table [N,L], index and weight [A,B,T] -> sums of T rows of the table [A*B,L]."""
    shape = (-1, index.shape[-1])
    return F.embedding_bag(
        torch.from_numpy(index.astype(np.int32).reshape(shape)),
        table,
        mode="sum",
        per_sample_weights=torch.from_numpy(weight.astype(np.float32).reshape(shape)),
    )


def _laid_out(image: Tensor) -> Tensor:
    """As `contiguous`; numpy takes a third of the time."""
    return torch.from_numpy(np.ascontiguousarray(image.numpy()))


@functools.lru_cache(maxsize=16)
def resize_taps(length: int, size: int, mode: str) -> Taps:
    """Of `length` pixels to `size`. area, bilinear, bicubic: as F.interpolate does, without
    antialiasing. matlab_bicubic: imresize of MATLAB. pillow_box, _bilinear, _bicubic, _lanczos:
    Pillow's.
    """
    if length == size:
        return Taps(np.arange(size)[:, None], np.ones((1, size, 1)))
    program, _, shape = mode.rpartition("_")
    if program:
        return _antialiased_taps(length, size, shape, mirrors=program == "matlab")
    return _area_taps(length, size) if mode == "area" else _spline_taps(length, size, mode)


def _antialiased_taps(length: int, size: int, shape: str, mirrors: bool) -> Taps:
    """The kernel is stretched by what the picture shrinks. mirrors: the picture goes on as its
    mirror image; else the kernel is cut off at the border. Sums are 1 either way.
    """
    kernel, reach = KERNELS[shape]
    stretch = max(length / size, 1.0)
    middle = (np.arange(size) + 0.5) * length / size - 0.5
    count = math.ceil(reach * stretch) * 2 + 1
    index = np.round(middle)[:, None].astype(np.int64) + np.arange(count) - count // 2
    weight = kernel((index - middle[:, None]) / stretch)
    if mirrors:
        index = mirrored_index(index, length)
    else:
        weight = np.where((index >= 0) & (index < length), weight, 0)
        index = index.clip(0, length - 1)
    return Taps(index, (weight / weight.sum(1, keepdims=True))[None])


def _keys(at: np.ndarray) -> np.ndarray:
    at = np.abs(at)
    return np.where(at < 2, _cubic(np.minimum(at, 2), slope=-0.5), 0)


def _lanczos(at: np.ndarray) -> np.ndarray:
    return np.where(np.abs(at) < 3, np.sinc(at) * np.sinc(at / 3), 0)


# kernel, and how far it reaches
KERNELS = {
    # Pillow's box holds its right end
    "box": (lambda at: ((at > -0.5) & (at <= 0.5)).astype(float), 0.5),
    "bilinear": (lambda at: np.maximum(1 - np.abs(at), 0), 1),
    "bicubic": (_keys, 2),
    "lanczos": (_lanczos, 3),
}


def dense(taps: Taps, length: int) -> np.ndarray:
    """Taps of one term as a matrix, float32 [n, length]."""
    matrix = np.zeros((len(taps.index), length), np.float32)
    np.add.at(matrix, (np.arange(len(matrix))[:, None], taps.index), taps.weight[0])
    return matrix


def _area_taps(length: int, size: int) -> Taps:
    first = np.arange(size) * length // size
    count = -(-np.arange(1, size + 1) * length // size) - first
    step = np.arange(count.max())
    index = np.minimum(first[:, None] + step, length - 1)
    return Taps(index, ((step < count[:, None]) / count[:, None])[None])


def _spline_taps(length: int, size: int, mode: str) -> Taps:
    at = (np.arange(size) + 0.5) * length / size - 0.5
    first = np.floor(at).astype(np.int64)
    part = (at - first)[:, None]
    if mode == "bilinear":
        steps, weight = np.arange(2), np.concatenate([1 - part, part], 1)
    else:
        steps = np.arange(-1, 3)
        weight = _cubic(np.abs(part - steps))
    return Taps((first[:, None] + steps).clip(0, length - 1), weight[None])


def _cubic(distance: np.ndarray, slope: float = BICUBIC) -> np.ndarray:
    """Keys 1981, distance 0..2."""
    near = ((slope + 2) * distance - (slope + 3)) * distance**2 + 1
    far = slope * (((distance - 5) * distance + 8) * distance - 4)
    return np.where(distance <= 1, near, far)


def blurred_first(taps: Taps, lines: np.ndarray, length: int) -> Taps:
    """Taps on the source of what `taps` (one term) takes from a row of `length` pixels, mirrored at
    its ends, that each of the R `lines` [R,K] has filtered. K is odd; lines are not turned round.
    """
    first = taps.index.min(1)
    step = taps.index - first[:, None]
    terms, size = lines.shape
    reach, count = size // 2, int(step.max()) + 1
    spread = np.zeros((len(first), count))
    for shift, share in zip(step.T, taps.weight[0].T):
        spread[np.arange(len(first)), shift] += share
    bands = np.zeros((terms, count, count + size - 1))
    for start in range(count):
        bands[:, start, start : start + size] = lines
    index = first[:, None] - reach + np.arange(bands.shape[-1])
    return Taps(mirrored_index(index, length), spread @ bands)


def separated(kernel: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A kernel [K,K] as a sum of R products of a column and a row, both [R,K]; what is missing
    weighs less than MISSING.
    """
    left, sizes, right = np.linalg.svd(kernel.astype(np.float64))
    columns, rest = (left * sizes).T, kernel.astype(np.float64)
    for terms, (column, row) in enumerate(zip(columns, right), 1):
        rest -= np.outer(column, row)
        if np.abs(rest).sum() < MISSING:
            return columns[:terms], right[:terms]
    return columns, right
