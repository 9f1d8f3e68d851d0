"""Noise of a camera: Gaussian, and that of counted photons.

Images are float32 in grey levels, 0..255. Every number comes from the torch.Generator that is
given, which lives on the image's device; nothing is sent to or from that device but the tables of
photons, once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

Seen = Callable[[Tensor], Tensor]

LEVELS = 256
# Photons of white are a power of 2, up to 2^8
PEAKS = 9
# Counts beside each other that one row of the tables holds: 8 standard deviations each way
COUNTS = 256
# A random number of 32 bits, -2^31 to 2^31 - 1, has a column in its top 8 bits
COLUMN_BITS = 24


def gaussian_noise(image: Tensor, sigma: float, gray: bool, generator: torch.Generator) -> Tensor:
    """image [1,3,H,W] + sigma * n, n ~ N(0, 1), clipped. sigma in grey levels; gray: n is the same
    in all channels.
    """
    channels = 1 if gray else image.shape[1]
    noise = torch.randn(
        (len(image), channels, *image.shape[-2:]), generator=generator, device=image.device
    )
    return torch.add(image, noise, alpha=sigma).clamp_(0, 255)


def poisson_noise(
    image: Tensor, scale: float, gray: bool, generator: torch.Generator, seen: Seen
) -> Tensor:
    """image [1,3,H,W] + scale * (255 * Poisson(peak * x / 255) / peak - x), clipped; x: image on
    whole levels, gray: its luminance.

    peak (photons of white): the least power of 2 not below the number of levels in x, as in
    scikit-image's random_noise. seen: one of the two ways below to count them.
    """
    levels = (_luminance(image) if gray else image).round().clamp_(0, 255).to(torch.int32)
    thresholds, values = _tables(image.device)
    random = _random_bits(levels, generator)
    row = _log2_peak(seen(levels.flatten())) * LEVELS + levels
    cell = row.mul_(COUNTS).add_(random >> COLUMN_BITS).add_(COUNTS // 2).flatten()
    other = random.flatten() >= thresholds.index_select(0, cell)
    noise = values.index_select(0, cell.mul_(2).add_(other)).view_as(levels)
    return noise.mul_(scale).add(image).clamp_(0, 255)


def _random_bits(like: Tensor, generator: torch.Generator) -> Tensor:
    """32 random bits for each element, int32; they are drawn by 64."""
    pairs = torch.empty(-(-like.numel() // 2), dtype=torch.int64, device=like.device)
    pairs.random_(-(2**63), None, generator=generator)
    return pairs.view(torch.int32)[: like.numel()].view_as(like)


def _luminance(image: Tensor) -> Tensor:
    red, green, blue = image.split(1, dim=1)
    return 0.2989 * red + 0.587 * green + 0.114 * blue


def _log2_peak(seen: Tensor) -> Tensor:
    """0..8, int64 [] on the device."""
    return (seen.sum() > 2 ** torch.arange(PEAKS - 1, device=seen.device)).sum()


def seen_by_fill(levels: Tensor) -> Tensor:
    """int32 [N] -> 1 for each level that there is, else 0: int64 [256]. A GPU does not wait."""
    seen = torch.zeros(LEVELS, dtype=torch.int64, device=levels.device)
    return seen.index_fill_(0, levels.long(), 1)


def seen_by_count(levels: Tensor) -> Tensor:
    """The same, faster on a CPU."""
    return torch.bincount(levels, minlength=LEVELS).clamp_(max=1)


@functools.lru_cache(maxsize=16)
def _tables(device: torch.device) -> tuple[Tensor, Tensor]:
    """`_photons` on a device, flat."""
    thresholds, values = _photons()
    return torch.from_numpy(thresholds).to(device), torch.from_numpy(values).to(device)


@functools.lru_cache(maxsize=1)
def _photons() -> tuple[np.ndarray, np.ndarray]:
    """Alias tables (Vose 1991) of Poisson noise for each peak and level -> thresholds int32 and the
    two values of each cell float32, in grey levels, both flat.

    A random number of 32 bits chooses a column, and there the first value below its threshold, the
    second from it on. The probability of each count is right within 2^-31.
    """
    peak, level = (2.0 ** np.arange(PEAKS))[:, None], np.arange(LEVELS)
    mean = (peak * level / 255).reshape(-1, 1)
    first = np.maximum(0, np.floor(mean) - COUNTS // 2).astype(np.int64)
    count = first + np.arange(COUNTS)
    log_factorial = np.append(0, np.cumsum(np.log(np.arange(1, 2 * LEVELS))))
    with np.errstate(divide="ignore", invalid="ignore"):
        chance = np.exp(np.where(count > 0, count * np.log(mean), 0) - mean - log_factorial[count])
    share, other = _alias(chance / chance.sum(1, keepdims=True))
    threshold = np.arange(COUNTS) - COUNTS // 2 + share
    cells = np.minimum(np.round(threshold * 2.0**COLUMN_BITS), 2**31 - 1)
    pairs = np.stack([count, np.take_along_axis(count, other, 1)], -1).reshape(PEAKS, LEVELS, -1)
    values = 255 * pairs / peak[..., None] - level[:, None]
    return cells.astype(np.int32).ravel(), values.astype(np.float32).ravel()


def _alias(chance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """chance [R,N], each row with sum 1 -> (share [R,N] of a column that is its own, the number of
    the item [R,N] that has the rest).

    Each step settles one column of each row: the next poor one, whose rest the rich one at hand
    pays, or else that rich one, which has become poor, at the cost of the next rich one.
    """
    rows, items = np.arange(len(chance)), chance.shape[1]
    weight = chance * items
    order = np.argsort(weight >= 1, axis=1, kind="stable")  # the poor first
    poor = (weight < 1).sum(1)
    share, other = np.ones_like(weight), np.tile(np.arange(items), (len(chance), 1))
    next_poor, rich = np.zeros_like(poor), poor.copy()
    left = weight[rows, order[rows, rich]]
    for _ in range(items - 1):
        following = np.minimum(rich + 1, items - 1)
        pays = (next_poor < poor) & ((left >= 1) | (rich == following))
        settled = order[rows, np.where(pays, next_poor, rich)]
        payer = order[rows, np.where(pays, rich, following)]
        own = np.where(pays, weight[rows, settled], left)
        share[rows, settled], other[rows, settled] = np.clip(own, 0, 1), payer
        left = np.where(pays, left, weight[rows, payer]) - (1 - own)
        next_poor, rich = next_poor + pays, np.where(pays, rich, following)
    return share, other
