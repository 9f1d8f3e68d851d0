"""Every random choice of a blind degradation, before any pixel is touched.

A plan is numbers alone, drawn by numpy from the sample's seed; it can be sent to another process.
Only the noise of single pixels is not in there: it comes from `noise_seed`, on the device.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from ldm_dream.config.data import BlindConfig, FirstOrder
from ldm_dream.data.blur import (
    gaussian_kernel,
    plateau_kernel,
    sinc_kernel,
    trimmed,
)

# of resizing within an order; the last two without antialiasing, as published
MODES = ("area", "bilinear", "bicubic")
WIDE_BLUR = 13  # pixels; sinc blurs from this size on may have a lower cutoff
LOWEST_CUTOFF, LOWEST_CUTOFF_WIDE = math.pi / 3, math.pi / 5  # radians a pixel


@dataclass(frozen=True)
class Resize:
    """Behind a blur by `kernel`, float32 [K,K], if there is one. mode: of BlindConfig.final_resize."""

    size: tuple[int, int]  # height, width
    mode: str
    kernel: np.ndarray | None = None


@dataclass(frozen=True)
class Noise:
    """strength: standard deviation in grey levels, or the factor on the noise of photons."""

    kind: Literal["gaussian", "poisson"]
    strength: float
    gray: bool


@dataclass(frozen=True)
class Compress:
    kind: Literal["jpeg", "webp"]
    quality: int


@dataclass(frozen=True)
class Filter:
    kernel: np.ndarray  # float32 [K,K]


@dataclass(frozen=True)
class Sharpen:
    """Unsharp mask: what `kernel`, a Gaussian, takes away is added, times `amount`."""

    kernel: np.ndarray
    amount: float


Step = Resize | Noise | Compress | Filter | Sharpen


@dataclass(frozen=True)
class Plan:
    steps: tuple[Step, ...]  # in their order
    noise_seed: int


def plan_blind(
    cfg: BlindConfig, scale: int, size: tuple[int, int], seeds: Sequence[int | Sequence[int]]
) -> list[Plan]:
    """size: (H, W) of the HR pictures, multiples of `scale`. seeds: one a sample, whatever
    `numpy.random.default_rng` takes; a plan depends on its own alone.
    """
    return [_plan(cfg, scale, size, np.random.default_rng(seed)) for seed in seeds]


def _plan(cfg: BlindConfig, scale: int, size: tuple[int, int], random: np.random.Generator) -> Plan:
    lr_size = (size[0] // scale, size[1] // scale)
    if _happens(cfg.clean_prob, random):
        steps = [Resize(lr_size, _one_of(cfg.clean_resize, random))]
    else:
        steps = [*_draw_round(cfg.first, size, random), *_draw_compression(cfg.first, random)]
        if random.random() < cfg.second_order_prob:
            steps += _draw_round(cfg.second, lr_size, random)
        shrunk = [
            Resize(lr_size, _one_of(cfg.final_resize, random)),
            *_draw_final_sinc(cfg, random),
            *_draw_sharpening(cfg, random),
        ]
        last = _draw_compression(cfg.second, random)
        steps += [*shrunk, *last] if random.random() < 0.5 else [*last, *shrunk]
        if _happens(cfg.again_prob, random):
            steps += _draw_compression(cfg.second, random)
    return Plan(tuple(steps), int(random.integers(2**63)))


def _draw_round(cfg: FirstOrder, base: tuple[int, int], random: np.random.Generator) -> list[Step]:
    """Blur, resize, noise."""
    kernel = draw_kernel(cfg, random)
    return [replace(draw_resize(cfg, base, random), kernel=kernel), *_draw_noise(cfg, random)]


def draw_kernel(cfg: FirstOrder, random: np.random.Generator) -> np.ndarray | None:
    """A blur kernel of this order, as in `Resize`. K is at most the drawn size: a border that weighs
    nothing is left out.
    """
    if random.random() >= cfg.blur_prob:
        return None
    size = _draw_size(cfg.kernel_size, random)
    if random.random() < cfg.sinc_prob:
        lowest = LOWEST_CUTOFF if size < WIDE_BLUR else LOWEST_CUTOFF_WIDE
        return trimmed(sinc_kernel(size, random.uniform(lowest, math.pi)))
    shape, elongated = divmod(_draw_index(cfg.kernel_weights, random), 2)
    long = random.uniform(*cfg.sigma)
    sigma = long, random.uniform(*cfg.sigma) if elongated else long
    angle = random.uniform(-math.pi, math.pi)
    below, above = ((1, 1), cfg.beta_generalized, cfg.beta_plateau)[shape]
    beta = random.uniform(below, 1) if random.random() < 0.5 else random.uniform(1, above)
    make = plateau_kernel if shape == 2 else gaussian_kernel
    return trimmed(make(size, sigma, angle, beta))


def draw_resize(cfg: FirstOrder, base: tuple[int, int], random: np.random.Generator) -> Resize:
    """Up, down or not at all: to `base` times the drawn factor."""
    least, most = cfg.resize
    low, high = ((1, most), (least, 1), (1, 1))[_draw_index(cfg.resize_weights, random)]
    factor = random.uniform(low, high)
    height, width = (max(1, round(side * factor)) for side in base)
    return Resize((height, width), _one_of(MODES, random))


def _draw_noise(cfg: FirstOrder, random: np.random.Generator) -> list[Step]:
    if not _happens(cfg.noise_prob, random):
        return []
    gray = random.random() < cfg.gray_noise_prob
    if random.random() < cfg.gaussian_noise_prob:
        return [Noise("gaussian", random.uniform(*cfg.gaussian_sigma), gray)]
    return [Noise("poisson", random.uniform(*cfg.poisson_scale), gray)]


def _draw_final_sinc(cfg: BlindConfig, random: np.random.Generator) -> list[Step]:
    if random.random() >= cfg.final_sinc_prob:
        return []
    size = _draw_size(cfg.final_sinc_size, random)
    return [Filter(trimmed(sinc_kernel(size, random.uniform(LOWEST_CUTOFF, math.pi))))]


def _draw_sharpening(cfg: BlindConfig, random: np.random.Generator) -> list[Step]:
    if not _happens(cfg.sharpen_prob, random):
        return []
    amount, sigma = random.uniform(*cfg.sharpen_amount), random.uniform(*cfg.sharpen_sigma)
    kernel = gaussian_kernel(2 * math.ceil(3 * sigma) + 1, (sigma, sigma))
    return [Sharpen(kernel, amount)]


def _draw_compression(cfg: FirstOrder, random: np.random.Generator) -> list[Step]:
    quality = int(random.integers(cfg.jpeg_quality[0], cfg.jpeg_quality[1] + 1))
    if not _happens(cfg.jpeg_prob, random):
        return []
    return [Compress("webp" if _happens(cfg.webp_prob, random) else "jpeg", quality)]


def _happens(probability: float, random: np.random.Generator) -> bool:
    """0 and 1 draw nothing, so a knob that is off leaves all other draws as they are."""
    return probability == 1 or (probability > 0 and random.random() < probability)


def _draw_size(sizes: tuple[int, int], random: np.random.Generator) -> int:
    """An odd number between two odd ones, both included."""
    return int(random.integers(sizes[0] // 2, sizes[1] // 2 + 1)) * 2 + 1


def _one_of(names: Sequence[str], random: np.random.Generator) -> str:
    return names[int(random.integers(len(names)))]


def _draw_index(weights: tuple[float, ...], random: np.random.Generator) -> int:
    return int(np.searchsorted(_shares(weights), random.random(), side="right"))


@functools.lru_cache(maxsize=64)
def _shares(weights: tuple[float, ...]) -> np.ndarray:
    """Sums of the weights up to each but the last, as shares of all."""
    return np.cumsum(weights)[:-1] / sum(weights)
