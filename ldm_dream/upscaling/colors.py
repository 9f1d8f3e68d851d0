"""Colour fixes: give the result the colours of the picture it was made from.

Diffusion models drift in the mean and the low frequencies. Idea of the wavelet fix: StableSR (arXiv
2305.07015), which keeps the detail of the result and takes the coarse band from the LR picture.

Symbols: sr = the result, base = the enlarged LR picture; both [B, 3, H, W] in [-1, 1].
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

WAVELET_LEVELS = 5  # the coarse band holds what is wider than about 2 ** 5 HR pixels


def keep(sr: Tensor, base: Tensor) -> Tensor:
    """No fix."""
    return sr


def wavelet(sr: Tensor, base: Tensor) -> Tensor:
    """high(sr) + low(base) = sr + low(base - sr), since the a-trous low pass is linear."""
    low = base - sr
    for level in range(WAVELET_LEVELS):
        low = _smooth_rows(_smooth_rows(low, 2**level).mT, 2**level).mT
    return sr + low


def adain(sr: Tensor, base: Tensor) -> Tensor:
    """Mean and standard deviation of every channel over the picture become those of `base` (arXiv
    1703.06868, Eq. 8).
    """
    mean, std = sr.mean((2, 3), keepdim=True), sr.std((2, 3), correction=0, keepdim=True)
    base_mean, base_std = (
        base.mean((2, 3), keepdim=True),
        base.std((2, 3), correction=0, keepdim=True),
    )
    return (sr - mean) * (
        base_std / std.clamp_min(1e-4)
    ) + base_mean  # a flat picture has no contrast to scale


COLOR_FIXES = {"none": keep, "wavelet": wavelet, "adain": adain}


def _smooth_rows(x: Tensor, step: int) -> Tensor:
    """Taps 1/4, 1/2, 1/4 at distance `step` along height; the border row goes on outside."""
    height = x.shape[-2]
    padded = F.pad(x, (0, 0, step, step), mode="replicate")
    return 0.25 * padded[..., :height, :] + 0.5 * x + 0.25 * padded[..., 2 * step :, :]
