"""Blind degradation: how a picture of unknown history lost its quality, drawn at random
(Real-ESRGAN, arXiv 2107.10833).

    hr -> blur -> resize -> noise -> JPEG -> [blur -> resize -> noise] -> resize to H/scale, sinc;
    JPEG (or first JPEG) -> lr

The ranges stand in `BlindConfig`. Every random choice of a sample comes from its own seed, drawn by
numpy on the CPU: a sample is the same alone, in any batch and in a resumed run; on another device
its choices are the same, but arithmetic rounds otherwise. The first blur is one grouped convolution
for the batch; behind the first resize each sample has a size of its own, so from there they go one
by one. JPEG is libjpeg's through Pillow, on the CPU for pictures of any device: torchvision
deprecated its codecs, and nvJPEG rounds otherwise.

Symbols: image float32 in [0, 1]; r distance from the kernel's middle in pixels; beta shape
exponent; 1 level = 1/255.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.functional import rgb_to_grayscale

from ldm_dream.config.data import BlindConfig, FirstOrder

MODES = (
    "area",
    "bilinear",
    "bicubic",
)  # of resizing; the last two without antialiasing, as published
LARGE = 13  # pixels; sinc blurs from this size on may have a lower cutoff
LOWEST_CUTOFF, LOWEST_CUTOFF_LARGE = math.pi / 3, math.pi / 5  # radians a pixel


@torch.no_grad()
def degrade_blind(
    hr: Tensor, scale: int, cfg: BlindConfig, seeds: Sequence[int | Sequence[int]]
) -> Tensor:
    """hr [B,3,H,W] in [0, 1] -> lr [B,3,H/scale,W/scale] in [0, 1], on the 256 levels of an 8-bit
    picture.

    seeds: one a sample, whatever `numpy.random.default_rng` takes. Raises ValueError unless H and W
    are multiples of `scale`.
    """
    height, width = hr.shape[-2:]
    if height % scale or width % scale or len(seeds) != len(hr) or not hr.is_floating_point():
        raise ValueError(
            f"degrade_blind: got {hr.dtype} {tuple(hr.shape)} with {len(seeds)} seeds for scale {scale}; it takes a floating "
            "batch with sides in multiples of the scale and one seed a sample."
        )
    size = (height // scale, width // scale)
    randoms = [np.random.default_rng(seed) for seed in seeds]
    with torch.autocast(hr.device.type, enabled=False):  # training's bf16 is not meant for its data
        blurred = blur(hr, torch.stack([draw_kernel(cfg.first, random) for random in randoms]))
        return torch.cat(
            [
                _after_first_blur(image, size, cfg, random)
                for image, random in zip(blurred.split(1), randoms)
            ]
        )


def _after_first_blur(
    image: Tensor, size: tuple[int, int], cfg: BlindConfig, random: np.random.Generator
) -> Tensor:
    """[1,3,H,W], blurred -> lr [1,3,*size]."""
    image = _resize_by_chance(image, image.shape[-2:], cfg.first, random)
    image = _add_noise(image, cfg.first, random)
    image = jpeg(image, _draw_quality(cfg.first, random))
    if random.random() < cfg.second_order_prob:
        image = blur(image, draw_kernel(cfg.second, random)[None])
        image = _resize_by_chance(image, size, cfg.second, random)
        image = _add_noise(image, cfg.second, random)
    sinc = _draw_final_sinc(cfg, random)[None]
    quality, mode = _draw_quality(cfg.second, random), str(random.choice(MODES))
    if random.random() < 0.5:
        return jpeg(blur(resize(image, size, mode), sinc), quality)
    return to_levels(blur(resize(jpeg(image, quality), size, mode), sinc)).float() / 255


# ------------------------------------------------------------------------------------------ kernels


def gaussian_kernel(
    size: int, sigma: tuple[float, float], angle: float = 0.0, beta: float = 1.0
) -> Tensor:
    """exp(-d^beta / 2) with d = (u / sigma[0])^2 + (v / sigma[1])^2 -> float32 [size,size] with sum
    1.

    u, v: pixels along the axes of the kernel, u turned by `angle` (radians) from x (right) towards
    y (down). beta 1 is the Gaussian; below it the tails are heavier, above it the top is flatter.
    """
    return _normalised(torch.exp(-(_squared_distance(size, sigma, angle) ** beta) / 2))


def plateau_kernel(
    size: int, sigma: tuple[float, float], angle: float = 0.0, beta: float = 1.0
) -> Tensor:
    """1 / (1 + d^beta), with d, sigma and angle as for `gaussian_kernel` -> float32 [size,size]
    with sum 1.
    """
    return _normalised(1 / (1 + _squared_distance(size, sigma, angle) ** beta))


def sinc_kernel(size: int, cutoff: float) -> Tensor:
    """Ideal circular low-pass cutoff * J1(cutoff * r) / (2 pi r), cut off at `size` -> float32
    [size,size] with sum 1.

    cutoff in radians a pixel, pi = nothing is lost along the axes. It rings as over-sharpened and
    JPEG pictures do (Eq. 6).
    """
    y, x = _grid(size)
    r = torch.hypot(x, y)
    r[size // 2, size // 2] = 1  # any number but 0: the limit replaces it
    kernel = cutoff * torch.special.bessel_j1(cutoff * r) / (2 * math.pi * r)
    kernel[size // 2, size // 2] = cutoff**2 / (4 * math.pi)
    return _normalised(kernel)


def identity_kernel(size: int) -> Tensor:
    """float32 [size,size]: 1 in the middle, else 0."""
    kernel = torch.zeros(size, size)
    kernel[size // 2, size // 2] = 1
    return kernel


def draw_kernel(cfg: FirstOrder, random: np.random.Generator) -> Tensor:
    """A blur kernel of this order, with zeros around it up to the largest size K -> [K,K]. Not to
    blur is the identity kernel.
    """
    largest = cfg.kernel_size[1]
    if random.random() >= cfg.blur_prob:
        return identity_kernel(largest)
    size = _draw_size(cfg.kernel_size, random)
    if random.random() < cfg.sinc_prob:
        lowest = LOWEST_CUTOFF if size < LARGE else LOWEST_CUTOFF_LARGE
        kernel = sinc_kernel(size, random.uniform(lowest, math.pi))
    else:
        shape, elongated = divmod(_draw_index(cfg.kernel_weights, random), 2)
        long = random.uniform(*cfg.sigma)
        sigma = long, random.uniform(*cfg.sigma) if elongated else long
        angle = random.uniform(-math.pi, math.pi)
        below, above = ((1, 1), cfg.beta_generalized, cfg.beta_plateau)[shape]
        beta = random.uniform(below, 1) if random.random() < 0.5 else random.uniform(1, above)
        kernel = (plateau_kernel if shape == 2 else gaussian_kernel)(size, sigma, angle, beta)
    return F.pad(kernel, [(largest - size) // 2] * 4)


def _draw_final_sinc(cfg: BlindConfig, random: np.random.Generator) -> Tensor:
    size = _draw_size(cfg.final_sinc_size, random)
    if random.random() >= cfg.final_sinc_prob:
        return identity_kernel(size)
    return sinc_kernel(size, random.uniform(LOWEST_CUTOFF, math.pi))


def _draw_size(sizes: tuple[int, int], random: np.random.Generator) -> int:
    return int(random.choice(np.arange(sizes[0], sizes[1] + 1, 2)))


def _grid(size: int) -> tuple[Tensor, Tensor]:
    """y, x float64 [size,size]: pixels from the middle."""
    line = torch.arange(size, dtype=torch.float64) - size // 2
    y, x = torch.meshgrid(line, line, indexing="ij")
    return y, x


def _squared_distance(size: int, sigma: tuple[float, float], angle: float) -> Tensor:
    y, x = _grid(size)
    u = x * math.cos(angle) + y * math.sin(angle)
    v = y * math.cos(angle) - x * math.sin(angle)
    return (u / sigma[0]) ** 2 + (v / sigma[1]) ** 2


def _normalised(kernel: Tensor) -> Tensor:
    return (kernel / kernel.sum()).float()


# ----------------------------------------------------------------------- what kernels and others do


def blur(images: Tensor, kernels: Tensor) -> Tensor:
    """images [B,C,H,W], each with its own kernel of kernels [B,K,K], K odd -> [B,C,H,W]. Borders
    are mirrored.
    """
    channels, height, width = images.shape[1:]
    reach = kernels.shape[-1] // 2
    rows, columns = (
        mirrored(-reach, side + reach, side).to(images.device) for side in (height, width)
    )
    padded = images.index_select(-2, rows).index_select(-1, columns)
    weight = kernels.to(images).repeat_interleave(channels, 0)[:, None]
    return F.conv2d(padded.flatten(0, 1)[None], weight, groups=len(weight)).view_as(images)


def mirrored(start: int, stop: int, length: int) -> Tensor:
    """Pixels start..stop-1 of a row of `length` that goes on as its mirror image without end: .. 1
    0 | 0 1 .. n-1 | n-1 n-2 ..
    """
    index = torch.arange(start, stop) % (2 * length)
    return torch.minimum(index, 2 * length - 1 - index)


def resize(image: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    """[B,C,H,W] -> [B,C,*size] by one of MODES."""
    return F.interpolate(image, size=size, mode=mode)


def _resize_by_chance(
    image: Tensor, base: Sequence[int], cfg: FirstOrder, random: np.random.Generator
) -> Tensor:
    """Up, down or not at all: to `base` times the drawn factor."""
    least, most = cfg.resize
    low, high = ((1, most), (least, 1), (1, 1))[_draw_index(cfg.resize_weights, random)]
    factor = random.uniform(low, high)
    height, width = (max(1, round(side * factor)) for side in base)
    return resize(image, (height, width), str(random.choice(MODES)))


def gaussian_noise(image: Tensor, sigma: float, gray: bool, random: np.random.Generator) -> Tensor:
    """image + sigma * n, n ~ N(0, 1), clipped to [0, 1]. gray: n is the same in all channels. sigma
    on the scale of the image.
    """
    batch, channels, height, width = image.shape
    noise = random.standard_normal(
        (batch, 1 if gray else channels, height, width), dtype=np.float32
    )
    return (image + sigma * torch.from_numpy(noise).to(image.device)).clamp(0, 1)


def poisson_noise(image: Tensor, scale: float, gray: bool, random: np.random.Generator) -> Tensor:
    """image [1,3,H,W] + scale * (Poisson(peak * x) / peak - x), clipped to [0, 1]; x: image on 8
    bits, gray: its luminance.

    peak (photons of white): the least power of 2 not below the number of levels in x, as in
    scikit-image's random_noise.
    """
    levels = to_levels(rgb_to_grayscale(image) if gray else image).cpu()
    peak = 2 ** math.ceil(
        math.log2(torch.bincount(levels.flatten(), minlength=256).count_nonzero())
    )
    x = levels.numpy() / 255.0
    noise = torch.from_numpy((random.poisson(peak * x) / peak - x).astype(np.float32))
    return (image + scale * noise.to(image.device)).clamp(0, 1)


def _add_noise(image: Tensor, cfg: FirstOrder, random: np.random.Generator) -> Tensor:
    gray = random.random() < cfg.gray_noise_prob
    if random.random() < cfg.gaussian_noise_prob:
        return gaussian_noise(image, random.uniform(*cfg.gaussian_sigma) / 255, gray, random)
    return poisson_noise(image, random.uniform(*cfg.poisson_scale), gray, random)


def jpeg(image: Tensor, quality: int) -> Tensor:
    """[1,3,H,W] -> the same, compressed as JPEG (baseline, 4:2:0) of `quality` 1..100 and decoded;
    on the 256 levels.
    """
    pixels = to_levels(image)[0].permute(1, 2, 0).cpu().numpy()
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, "jpeg", quality=quality)
    decoded = torch.from_numpy(np.array(PIL.Image.open(file)))
    return decoded.permute(2, 0, 1)[None].contiguous().to(image.device).float() / 255


def _draw_quality(cfg: FirstOrder, random: np.random.Generator) -> int:
    return int(random.integers(cfg.jpeg_quality[0], cfg.jpeg_quality[1] + 1))


def _draw_index(weights: tuple[float, ...], random: np.random.Generator) -> int:
    return int(random.choice(len(weights), p=np.divide(weights, sum(weights))))


def to_levels(image: Tensor) -> Tensor:
    """[0, 1], clipped -> uint8, rounded."""
    return (image * 255).round().clamp(0, 255).to(torch.uint8)
