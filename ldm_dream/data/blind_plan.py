"""Every random choice of a blind degradation, before any pixel is touched.

A plan is numbers alone, drawn by numpy from the sample's seed; it can be sent to another process.
Only the noise of single pixels is not in there: it comes from `noise_seed`, on the device.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ldm_dream.config.data import BlindConfig, FirstOrder
from ldm_dream.data.blur import (
    gaussian_kernel,
    gaussian_line,
    plateau_kernel,
    sinc_kernel,
    trimmed,
)

Mode = Literal["area", "bilinear", "bicubic"]
# of resizing; the last two without antialiasing, as published
MODES: tuple[Mode, ...] = (
    "area",
    "bilinear",
    "bicubic",
)
LARGE = 13  # pixels; sinc blurs from this size on may have a lower cutoff
LOWEST_CUTOFF, LOWEST_CUTOFF_LARGE = math.pi / 3, math.pi / 5  # radians a pixel


@dataclass(frozen=True)
class Resize:
    size: tuple[int, int]  # height, width
    mode: Mode


@dataclass(frozen=True)
class Noise:
    """strength: standard deviation in grey levels, or the factor on the noise of photons."""

    kind: Literal["gaussian", "poisson"]
    strength: float
    gray: bool


@dataclass(frozen=True)
class Round:
    """Blur, resize, noise. kernel float32 [K,K]; [K], whose outer product with itself is meant; or
    None for no blur.
    """

    kernel: np.ndarray | None
    resize: Resize
    noise: Noise


@dataclass(frozen=True)
class Plan:
    """first, JPEG of first_quality, second (or None for none); then resize and sinc, with JPEG of
    last_quality behind both (jpeg_last) or before both.
    """

    first: Round
    first_quality: int
    second: Round | None
    resize: Resize
    sinc: np.ndarray | None
    last_quality: int
    jpeg_last: bool
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
    return Plan(
        first=_draw_round(cfg.first, size, random),
        first_quality=_draw_quality(cfg.first, random),
        second=(
            _draw_round(cfg.second, lr_size, random)
            if random.random() < cfg.second_order_prob
            else None
        ),
        resize=Resize(lr_size, _draw_mode(random)),
        sinc=_draw_final_sinc(cfg, random),
        last_quality=_draw_quality(cfg.second, random),
        jpeg_last=random.random() < 0.5,
        noise_seed=int(random.integers(2**63)),
    )


def _draw_round(cfg: FirstOrder, base: tuple[int, int], random: np.random.Generator) -> Round:
    return Round(draw_kernel(cfg, random), draw_resize(cfg, base, random), _draw_noise(cfg, random))


def draw_kernel(cfg: FirstOrder, random: np.random.Generator) -> np.ndarray | None:
    """A blur kernel of this order, as in `Round`. K is at most the drawn size: a border that weighs
    nothing is left out.
    """
    if random.random() >= cfg.blur_prob:
        return None
    size = _draw_size(cfg.kernel_size, random)
    if random.random() < cfg.sinc_prob:
        lowest = LOWEST_CUTOFF if size < LARGE else LOWEST_CUTOFF_LARGE
        return trimmed(sinc_kernel(size, random.uniform(lowest, math.pi)))
    shape, elongated = divmod(_draw_index(cfg.kernel_weights, random), 2)
    long = random.uniform(*cfg.sigma)
    if shape == elongated == 0:
        return trimmed(gaussian_line(size, long))
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
    return Resize((height, width), _draw_mode(random))


def _draw_noise(cfg: FirstOrder, random: np.random.Generator) -> Noise:
    gray = random.random() < cfg.gray_noise_prob
    if random.random() < cfg.gaussian_noise_prob:
        return Noise("gaussian", random.uniform(*cfg.gaussian_sigma), gray)
    return Noise("poisson", random.uniform(*cfg.poisson_scale), gray)


def _draw_final_sinc(cfg: BlindConfig, random: np.random.Generator) -> np.ndarray | None:
    if random.random() >= cfg.final_sinc_prob:
        return None
    size = _draw_size(cfg.final_sinc_size, random)
    return trimmed(sinc_kernel(size, random.uniform(LOWEST_CUTOFF, math.pi)))


def _draw_size(sizes: tuple[int, int], random: np.random.Generator) -> int:
    """An odd number between two odd ones, both included."""
    return int(random.integers(sizes[0] // 2, sizes[1] // 2 + 1)) * 2 + 1


def _draw_mode(random: np.random.Generator) -> Mode:
    return MODES[random.integers(len(MODES))]


def _draw_quality(cfg: FirstOrder, random: np.random.Generator) -> int:
    return int(random.integers(cfg.jpeg_quality[0], cfg.jpeg_quality[1] + 1))


def _draw_index(weights: tuple[float, ...], random: np.random.Generator) -> int:
    return int(np.searchsorted(_shares(weights), random.random(), side="right"))


@functools.lru_cache(maxsize=64)
def _shares(weights: tuple[float, ...]) -> np.ndarray:
    """Sums of the weights up to each but the last, as shares of all."""
    return np.cumsum(weights)[:-1] / sum(weights)
