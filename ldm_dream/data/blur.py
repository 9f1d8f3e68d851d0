"""Kernels of blur, and blur with a kernel.

Symbols: r distance from the kernel's middle in pixels; beta shape exponent. Kernels are float32
[K,K], K odd, with sum 1, and their own point reflection.
"""

from __future__ import annotations

import functools
import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

# What a border of a kernel may weigh together and be left out: 0.001 grey levels of 255
NEGLIGIBLE = 3e-6
# A CPU is faster with taps up to this size, with a Fourier transform above (AVX2, 396 pixels)
MOST_TAPS = 13
# Rows of a picture that are filtered as channels beside each other: vectors are full of them
STRIPS = 8


# ------------------------------------------------------------------------------------------ kernels


def gaussian_kernel(
    size: int, sigma: tuple[float, float], angle: float = 0.0, beta: float = 1.0
) -> np.ndarray:
    """exp(-d^beta / 2) with d = (u / sigma[0])^2 + (v / sigma[1])^2 -> [size,size].

    u, v: pixels along the axes of the kernel, u turned by `angle` (radians) from x (right) towards
    y (down). beta 1 is the Gaussian; below it the tails are heavier, above it the top is flatter.
    """
    return _normalised(np.exp(-(_squared_distance(size, sigma, angle) ** beta) / 2))


def gaussian_line(size: int, sigma: float) -> np.ndarray:
    """[size]: the outer product with itself is `gaussian_kernel` of (sigma, sigma)."""
    line = np.arange(size, dtype=np.float64) - size // 2
    return _normalised(np.exp(-((line / sigma) ** 2) / 2))


def plateau_kernel(
    size: int, sigma: tuple[float, float], angle: float = 0.0, beta: float = 1.0
) -> np.ndarray:
    """1 / (1 + d^beta), with d, sigma and angle as for `gaussian_kernel` -> [size,size]."""
    return _normalised(1 / (1 + _squared_distance(size, sigma, angle) ** beta))


def sinc_kernel(size: int, cutoff: float) -> np.ndarray:
    """Ideal circular low-pass cutoff * J1(cutoff * r) / (2 pi r), cut off at `size` ->
    [size,size].

    cutoff in radians a pixel, pi = nothing is lost along the axes. It rings as over-sharpened and
    JPEG pictures do (Real-ESRGAN, Eq. 6).
    """
    radii, place = _radii(size)
    wave = torch.special.bessel_j1(torch.from_numpy(cutoff * radii)).numpy()
    # radii[0] is 0: the limit stands there
    values = np.append(cutoff**2 / (4 * math.pi), cutoff * wave[1:] / (2 * math.pi * radii[1:]))
    return _normalised(values[place])


def trimmed(kernel: np.ndarray) -> np.ndarray:
    """[K,K] or [K] without the outermost rings that weigh less than NEGLIGIBLE together, which
    leaves at least the middle.
    """
    weight = np.abs(kernel)
    total, size = weight.sum(dtype=np.float64), len(kernel)
    insides = [(slice(ring, size - ring),) * kernel.ndim for ring in range(1, size // 2 + 1)]
    small = [inside for inside in insides if total - weight[inside].sum() < NEGLIGIBLE]
    return _normalised(kernel[small[-1]]) if small else kernel


@functools.lru_cache(maxsize=256)
def _grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    """y [size,1], x [1,size], float64: pixels from the middle."""
    line = np.arange(size, dtype=np.float64) - size // 2
    return line[:, None], line[None]


@functools.lru_cache(maxsize=256)
def _radii(size: int) -> tuple[np.ndarray, np.ndarray]:
    """All distances from the middle, from 0 on, each once, and which of them each pixel has
    [size,size].
    """
    y, x = _grid(size)
    squares, place = np.unique(x * x + y * y, return_inverse=True)
    return np.sqrt(squares), place.reshape(size, size)


def _squared_distance(size: int, sigma: tuple[float, float], angle: float) -> np.ndarray:
    y, x = _grid(size)
    u = x * math.cos(angle) + y * math.sin(angle)
    v = y * math.cos(angle) - x * math.sin(angle)
    return (u / sigma[0]) ** 2 + (v / sigma[1]) ** 2


def _normalised(kernel: np.ndarray) -> np.ndarray:
    return (kernel / kernel.sum(dtype=np.float64)).astype(np.float32)


# --------------------------------------------------------------------------------------------- blur


def blur(image: Tensor, kernel: Tensor, most_taps: int) -> Tensor:
    """image [1,C,H,W], kernel [K,K] -> [1,C,H,W]. Borders are mirrored.

    By taps up to a size of most_taps, by Fourier transform above: the same within 1e-5 of white.
    """
    padded = padded_by_mirrors(image, len(kernel) // 2)
    return (_by_taps if len(kernel) <= most_taps else _by_fourier)(padded, kernel)


def padded_by_mirrors(image: Tensor, reach: int) -> Tensor:
    """[...,H,W] -> [...,H+2*reach,W+2*reach]: a mirror stands at each border, so that it goes on
    without end.
    """
    for dim in (-2, -1):
        left = reach
        while left:
            edge = min(left, image.shape[dim])
            first = image.narrow(dim, 0, edge).flip(dim)
            last = image.narrow(dim, image.shape[dim] - edge, edge).flip(dim)
            image, left = torch.cat([first, image, last], dim), left - edge
    return image


def _by_taps(padded: Tensor, kernel: Tensor) -> Tensor:
    """[1,C,H+K-1,W+K-1] -> [1,C,H,W]: the picture is cut into strips of rows, which are filtered
    as channels.
    """
    size, channels = len(kernel), padded.shape[1]
    height = padded.shape[-2] - size + 1
    rows = -(-height // STRIPS)
    whole = F.pad(padded, (0, 0, 0, rows * STRIPS - height))
    strips = whole.unfold(-2, rows + size - 1, rows).transpose(-1, -2).flatten(1, 2)
    weight = kernel.expand(channels * STRIPS, 1, size, size)
    found = F.conv2d(strips, weight, groups=len(weight))
    return found.view(1, channels, rows * STRIPS, -1)[:, :, :height]


def _by_fourier(padded: Tensor, kernel: Tensor) -> Tensor:
    """[1,C,H+K-1,W+K-1] -> [1,C,H,W]."""
    reach = kernel.shape[-1] - 1
    rows, columns = (_good_length(side) for side in padded.shape[-2:])
    gain = torch.fft.fft(torch.fft.rfft(kernel, columns), rows, dim=-2)
    spectrum = torch.fft.rfft2(padded, s=(rows, columns)).mul_(gain)
    found = torch.fft.irfft2(spectrum, s=(rows, columns))
    return found[..., reach : padded.shape[-2], reach : padded.shape[-1]]


@functools.lru_cache(maxsize=4096)
def _good_length(least: int) -> int:
    """The next even number with no prime factor above 7."""
    length = least + least % 2
    while True:
        rest = length
        for prime in (2, 3, 5, 7):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return length
        length += 2
