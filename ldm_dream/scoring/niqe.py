"""NIQE: how far a picture's statistics are from those of good photos (Mittal, Soundararajan and
Bovik, IEEE SPL 2013). It needs no original; 0 is best, and larger is worse.

Luma is centred and scaled by its local mean and deviation (Eq. 1). Each block of 96x96 pixels, and
of 48x48 at half the size, gives 18 numbers: the shape and spread of an asymmetric generalised
Gaussian (Eq. 4-8) fitted to its values and to the products of neighbours in four directions. The
score is the distance of their mean m and covariance C from those of undistorted photos (Eq. 10):
    d = sqrt((m0 - m)^T ((C0 + C) / 2)^-1 (m0 - m))
m0, C0 and the 7x7 window are those of the authors' release, in the file that BasicSR distributes
(Apache-2.0). As in their code blocks do not overlap, and luma is rounded. BasicSR's function gives
the same values but for its float32. A picture of few blocks has an uncertain score.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ldm_dream.data.resize import imresize
from ldm_dream.scoring.metrics import MetricError, luma

PRISTINE = Path(__file__).with_name("niqe_pris_params.npz")
BLOCK = 96  # pixels
_SHIFTS = ((0, 1), (1, 0), (1, 1), (1, -1))  # of the neighbours, rows and columns
_ROUNDING = 1e-9  # of luma in float64
_SHAPES = torch.arange(200, 10_001, dtype=torch.float64) / 1000  # that a fit may have


def niqe(pixels: np.ndarray, crop_border: int = 0) -> float:
    """uint8 RGB [H, W, 3] -> NIQE in float64; `crop_border` pixels are left out on each side.

    Raises MetricError where fewer than two blocks have texture.
    """
    height, width = (side - 2 * crop_border for side in pixels.shape[:2])
    rows, columns = max(height, 0) // BLOCK, max(width, 0) // BLOCK
    if rows * columns < 2:
        raise MetricError(
            f"niqe: {height}x{width} pixels remain; it needs at least {BLOCK}x{2 * BLOCK}."
        )
    cut = pixels[crop_border:, crop_border:][: rows * BLOCK, : columns * BLOCK]
    plane = torch.from_numpy(np.rint(luma(cut)))
    features = torch.cat(
        [_features(plane, BLOCK), _features(imresize(plane / 255, 0.5) * 255, BLOCK // 2)], 1
    )
    whole = features[features.isfinite().all(1)]
    if len(whole) < 2:
        raise MetricError(
            f"niqe: {len(whole)} of {len(features)} blocks have texture; it needs at least 2."
        )
    mean, covariance, _ = _pristine()
    apart = mean - features.nanmean(0)
    between = torch.linalg.pinv((covariance + whole.T.cov()) / 2, hermitian=True)
    return float((apart @ between @ apart).sqrt())


@lru_cache(maxsize=1)
def _pristine() -> tuple[Tensor, Tensor, Tensor]:
    """Mean [36] and covariance [36, 36] of undistorted photos, and the window [7, 7]."""
    with np.load(PRISTINE) as file:
        names = ("mu_pris_param", "cov_pris_param", "gaussian_window")
        mean, covariance, window = (torch.from_numpy(file[name]) for name in names)
    return mean[0], covariance, window


def _features(plane: Tensor, side: int) -> Tensor:
    """Luma [rows * side, columns * side] -> 18 numbers of each block [rows * columns, 18]; not
    all finite where it has no texture.
    """
    blocks = _normalised(plane).unfold(0, side, side).unfold(1, side, side).flatten(0, 1)
    shape, left, right = _fit(blocks)
    features = [shape, (left + right) / 2]
    for shift in _SHIFTS:
        shape, left, right = _fit(blocks * blocks.roll(shift, (1, 2)))
        mean = (right - left) * _gamma_ratio(2 / shape, 1 / shape)
        features += [shape, mean, left, right]
    return torch.stack(features, 1)


def _normalised(plane: Tensor) -> Tensor:
    """Luma [H, W] less its local mean, over its local deviation plus 1."""
    window = _pristine()[2][None, None]

    def smooth(x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x[None, None], (3, 3, 3, 3), mode="replicate"), window)[0, 0]

    mean = smooth(plane)
    deviation = (smooth(plane.square()) - mean.square()).abs().sqrt()
    values = (plane - mean) / (deviation + 1)
    # where luma is flat only rounding is left, whose sign would count
    return torch.where(values.abs() < _ROUNDING, 0, values)


def _fit(blocks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """[N, h, w] -> shape, left scale and right scale [N] of the asymmetric generalised Gaussian of
    each block, by its moments (Lasmar, Stitou and Berthoumieu 2009).
    """
    values = blocks.flatten(1)
    squares = values.square()
    left, right = (
        ((squares * side).sum(1) / side.sum(1)).sqrt() for side in (values < 0, values > 0)
    )
    ratio = left / right
    peaked = values.abs().mean(1).square() / squares.mean(1)
    peaked = peaked * (ratio**3 + 1) * (ratio + 1) / (ratio.square() + 1).square()
    curve = _gamma_ratio(2 / _SHAPES, 1 / _SHAPES) * _gamma_ratio(2 / _SHAPES, 3 / _SHAPES)
    # it grows with the shape: the nearest is between the middles of its steps; without texture it
    # is the first, as in the authors' code
    nearest = torch.searchsorted((curve[1:] + curve[:-1]) / 2, peaked.nan_to_num(0))
    shape = _SHAPES[nearest]
    scale = _gamma_ratio(1 / shape, 3 / shape).sqrt()
    return shape, left * scale, right * scale


def _gamma_ratio(a: Tensor, b: Tensor) -> Tensor:
    """Gamma(a) / Gamma(b)."""
    return (torch.lgamma(a) - torch.lgamma(b)).exp()
