"""Colours under full transparency: nobody sees them, but a network would mix them into the rim.

PNGs hold anything there, mostly black, white or what was erased. They are replaced by the colours
of the visible pixels around, coarse to fine (the push-pull of Gortler et al., The Lumigraph, 1996).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ldm_dream.upscaling.pictures import Pixels

HIDDEN = 0.5 / 255  # alpha below it is 0 in 8 bits


def filled(pixels: Pixels) -> Pixels:
    """`pixels`, which have alpha, with hidden colours replaced. They are as they were where nothing
    is hidden, and where nothing is seen.
    """
    hidden = pixels.bands[..., pixels.colours] < HIDDEN * pixels.levels
    if not hidden.any() or hidden.all():
        return pixels
    everywhere = slice(None)
    rgb = pixels.cut(slice(0, pixels.colours), everywhere, everywhere)
    seen = torch.from_numpy(~hidden)[:, None].float()
    colours = _from_around(rgb.mul_(seen), seen).permute(0, 2, 3, 1).numpy() * pixels.levels
    bands = pixels.bands.copy()
    whole = np.issubdtype(bands.dtype, np.integer)
    np.copyto(
        bands[..., : pixels.colours],
        colours.round() if whole else colours,
        where=hidden[..., None],
        casting="unsafe",
    )
    return replace(pixels, bands=bands)


def _from_around(rgb: Tensor, seen: Tensor) -> Tensor:
    """rgb [B, C, H, W], 0 where not seen; seen [B, 1, H, W], 1 or 0 -> rgb with the rest filled."""
    nearest, near = _mean_of_seen(rgb, seen, lambda x: F.avg_pool2d(x, 3, 1, 1))
    rgb, seen = torch.where(seen > 0, rgb, nearest), near
    if seen.all():
        return rgb
    halves = _mean_of_seen(rgb, seen, lambda x: F.avg_pool2d(x, 2, ceil_mode=True))
    around = F.interpolate(_from_around(*halves), size=rgb.shape[-2:], mode="bilinear")
    return torch.where(seen > 0, rgb, around)


def _mean_of_seen(
    rgb: Tensor, seen: Tensor, mean: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """Of each neighbourhood that `mean` takes: the mean of what is seen of it, and if any is."""
    share = mean(seen)
    return mean(rgb) / share.clamp_min(0.05), (share > 0).float()
