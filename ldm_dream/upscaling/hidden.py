"""Colours under full transparency: nobody sees them, but a network would mix them into the rim.

PNGs hold anything there, mostly black, white or what was erased. They are replaced by the colours
of the visible pixels around, coarse to fine (the push-pull of Gortler et al., The Lumigraph, 1996).
Held are the picture once more, in its own depth, and floats of one strip of rows: from every strip a
coarse picture is pulled, which is filled as a whole, and every strip is pushed from its part of it.
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
LEVELS = 5  # halvings, to the coarse picture
CELL = 2**LEVELS  # pixels of one side of its pixels
MARGIN = 2 * CELL  # rows around a strip that its colours depend on
STRIP = 2**20  # pixels of a strip, about


def filled(pixels: Pixels) -> Pixels:
    """`pixels`, which have alpha, with hidden colours replaced. They are as they were where nothing
    is hidden, and where nothing is seen.
    """
    alpha = pixels.bands[..., pixels.colours]
    least = HIDDEN * pixels.levels
    if alpha.min() >= least or alpha.max() < least:
        return pixels
    strips = _strips(*pixels.size)
    coarse = [torch.cat(part, -2) for part in zip(*(_coarse(pixels, rows) for rows in strips))]
    around = _from_around(coarse[0], coarse[1])
    bands = pixels.bands.copy()
    for rows in strips:
        _fill(bands[:, rows], pixels, rows, around)
    return replace(pixels, bands=bands)


def _strips(height: int, width: int) -> list[slice]:
    """All rows; every strip begins with a pixel of the coarse picture."""
    step = CELL * max(1, STRIP // (CELL * width))
    return [slice(top, min(top + step, height)) for top in range(0, height, step)]


def _fill(bands: np.ndarray, pixels: Pixels, rows: slice, around: Tensor) -> None:
    """bands: `rows` of the result, which hold the given colours. around: the coarse picture."""
    hidden = bands[..., pixels.colours] < HIDDEN * pixels.levels
    if not hidden.any():
        return
    top, bottom = max(0, rows.start - MARGIN), min(pixels.size[0], rows.stop + MARGIN)
    part = around[..., top // CELL : -(-bottom // CELL), :]
    made = _from_around(*_seen(pixels, slice(top, bottom)), LEVELS, part)
    made = made[..., rows.start - top : rows.stop - top, :]
    colours = made.permute(0, 2, 3, 1).numpy() * pixels.levels
    np.copyto(
        bands[..., : pixels.colours],
        colours.round() if np.issubdtype(bands.dtype, np.integer) else colours,
        where=hidden[..., None],
        casting="unsafe",
    )


def _seen(pixels: Pixels, rows: slice) -> tuple[Tensor, Tensor]:
    """-> rgb [B, C, h, W], 0 where not seen, and what is seen [B, 1, h, W], 1 or 0."""
    shown = pixels.bands[:, rows, :, pixels.colours] >= HIDDEN * pixels.levels
    seen = torch.from_numpy(shown)[:, None].float()
    return pixels.cut(slice(0, pixels.colours), rows, slice(None)).mul_(seen), seen


def _coarse(pixels: Pixels, rows: slice) -> tuple[Tensor, Tensor]:
    """The same of those rows, CELL times smaller."""
    rgb, seen = _seen(pixels, rows)
    for _ in range(LEVELS):
        rgb, seen = _half(*_wider(rgb, seen))
    return rgb, seen


def _from_around(
    rgb: Tensor, seen: Tensor, levels: int | None = None, around: Tensor | None = None
) -> Tensor:
    """As of `_seen` -> rgb with the rest filled. around: what is around after so many halvings; None:
    there are as many as it takes.
    """
    if around is not None and levels == 0:
        return around
    rgb, seen = _wider(rgb, seen)
    if seen.all():
        return rgb
    left = None if levels is None else levels - 1
    fill = _from_around(*_half(rgb, seen), left, around)
    return torch.where(seen > 0, rgb, F.interpolate(fill, size=rgb.shape[-2:], mode="bilinear"))


def _wider(rgb: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """With the neighbours of what is seen."""
    nearest, near = _mean_of_seen(rgb, seen, lambda x: F.avg_pool2d(x, 3, 1, 1))
    return torch.where(seen > 0, rgb, nearest), near


def _half(rgb: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    return _mean_of_seen(rgb, seen, lambda x: F.avg_pool2d(x, 2, ceil_mode=True))


def _mean_of_seen(
    rgb: Tensor, seen: Tensor, mean: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """Of each neighbourhood that `mean` takes: the mean of what is seen of it, and if any is."""
    share = mean(seen)
    return mean(rgb) / share.clamp_min(0.05), (share > 0).float()
