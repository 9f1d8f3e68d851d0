"""Blind degradation: how a picture of unknown history lost its quality, drawn at random
(Real-ESRGAN, arXiv 2107.10833).

    hr -> blur -> resize -> noise -> JPEG -> [blur -> resize -> noise] -> resize to H/scale, sinc;
    JPEG (or first JPEG) -> lr

The ranges stand in `BlindConfig`. Every random choice of a sample comes from its own seed and is
drawn before any pixel is touched (`blind_plan.py`); samples go one by one, since behind the first
resize each has a size of its own. So a sample is the same alone, in any batch and in a resumed run.

On a GPU nothing waits: the numbers of a batch go to the device in one copy, and nothing comes back.
There the choices are the same, but noise comes from the device's generator and JPEG is computed in
torch (`jpeg_loss.py`), so the pixels are others.

Symbols: image float32 in grey levels, 0..255, but for what goes in and comes out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ldm_dream.config.data import BlindConfig
from ldm_dream.data.blind_plan import Noise, Plan, Resize, Round, plan_blind
from ldm_dream.data.blur import blur
from ldm_dream.data.jpeg_loss import by_libjpeg, by_torch, quality_tables
from ldm_dream.data.noise import gaussian_noise, poisson_noise
from ldm_dream.data.taps import Taps, blurred_first, filtered, mirrored_index, resize_taps


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
    return degrade_as_planned(hr, plan_blind(cfg, scale, (height, width), seeds))


@torch.no_grad()
def degrade_as_planned(hr: Tensor, plans: Sequence[Plan]) -> Tensor:
    """As `degrade_blind`, with the choices of `plan_blind`, which was given the size of hr."""
    jpeg = _by_libjpeg if hr.device.type == "cpu" else _by_torch
    return _degrade(hr, plans, _carried(plans, hr.device), jpeg)


class Carried(NamedTuple):
    """The arrays of a plan on the device; None for no blur. jpeg: of `quality_tables`."""

    first: Tensor | None
    first_jpeg: Tensor
    second: Tensor | None
    sinc: Tensor | None
    last_jpeg: Tensor


# (image, quality, its tables on the device) -> image
Jpeg = Callable[[Tensor, int, Tensor], Tensor]


def _by_libjpeg(image: Tensor, quality: int, _tables: Tensor) -> Tensor:
    return by_libjpeg(image, quality)


def _by_torch(image: Tensor, _quality: int, tables: Tensor) -> Tensor:
    return by_torch(image, tables)


def _carried(plans: Sequence[Plan], device: torch.device) -> list[Carried]:
    """All in one copy, which a GPU does not wait for."""
    rows = [_arrays(plan) for plan in plans]
    every = [array for row in rows for array in row if array is not None]
    flat = torch.from_numpy(np.concatenate([array.ravel() for array in every]))
    if device.type == "cuda":
        flat = flat.pin_memory().to(device, non_blocking=True)
    parts = iter(flat.to(device).split([array.size for array in every]))
    return [
        Carried(*(array if array is None else next(parts).view(array.shape) for array in row))
        for row in rows
    ]


def _arrays(plan: Plan) -> tuple[np.ndarray | None, ...]:
    """In the order of `Carried`."""
    return (
        plan.first.kernel,
        quality_tables(plan.first_quality),
        plan.second and plan.second.kernel,
        plan.sinc,
        quality_tables(plan.last_quality),
    )


def _degrade(hr: Tensor, plans: Sequence[Plan], carried: Sequence[Carried], jpeg: Jpeg) -> Tensor:
    with torch.autocast(hr.device.type, enabled=False):  # training's bf16 is not meant for its data
        samples = zip(hr.split(1), plans, carried)
        return torch.cat([_degrade_one(*sample, jpeg) for sample in samples])


def _degrade_one(hr: Tensor, plan: Plan, carried: Carried, jpeg: Jpeg) -> Tensor:
    """[1,3,H,W] in [0, 1] -> [1,3,H/scale,W/scale] likewise."""
    generator = torch.Generator(hr.device).manual_seed(plan.noise_seed)
    image = _round(hr.float() * 255, plan.first, carried.first, generator)
    image = jpeg(image, plan.first_quality, carried.first_jpeg)
    if plan.second:
        image = _round(image, plan.second, carried.second, generator)
    if not plan.jpeg_last:
        image = jpeg(image, plan.last_quality, carried.last_jpeg)
    image = resize(image, plan.resize)
    if carried.sinc is not None:
        image = blur(image, carried.sinc)
    if plan.jpeg_last:
        image = jpeg(image, plan.last_quality, carried.last_jpeg)
    return image.round().clamp_(0, 255) / 255


def _round(image: Tensor, plan: Round, kernel: Tensor | None, generator: torch.Generator) -> Tensor:
    return _with_noise(_blurred_and_resized(image, kernel, plan.resize), plan.noise, generator)


def _blurred_and_resized(image: Tensor, kernel: Tensor | None, plan: Resize) -> Tensor:
    if kernel is None:
        return resize(image, plan)
    if kernel.dim() == 2:
        return resize(blur(image, kernel), plan)
    if image.device.type != "cpu":
        return resize(blur(image, torch.outer(kernel, kernel)), plan)
    rows, columns = (
        blurred_first(taps, kernel.numpy(), length)
        for taps, length in zip(_resize_taps(image, plan), image.shape[-2:])
    )
    return filtered(image, rows, columns)


def resize(image: Tensor, plan: Resize) -> Tensor:
    """[1,C,H,W] -> [1,C,*plan.size]. The same size is the same image, whatever the mode."""
    if image.shape[-2:] == plan.size:
        return image
    if image.device.type != "cpu":
        return F.interpolate(image, size=plan.size, mode=plan.mode)
    return filtered(image, *_resize_taps(image, plan))


def _resize_taps(image: Tensor, plan: Resize) -> tuple[Taps, Taps]:
    """Of rows and columns."""
    (height, width), (rows, columns) = image.shape[-2:], plan.size
    return resize_taps(height, rows, plan.mode), resize_taps(width, columns, plan.mode)


def _with_noise(image: Tensor, plan: Noise, generator: torch.Generator) -> Tensor:
    add = gaussian_noise if plan.kind == "gaussian" else poisson_noise
    return add(image, plan.strength, plan.gray, generator)


def to_levels(image: Tensor) -> Tensor:
    """[0, 1], clipped -> uint8, rounded."""
    return (image * 255).round().clamp(0, 255).to(torch.uint8)


def mirrored(start: int, stop: int, length: int) -> Tensor:
    """Pixels start..stop-1 of a row of `length` that goes on as its mirror image without end: .. 1
    0 | 0 1 .. n-1 | n-1 n-2 ..
    """
    return torch.from_numpy(mirrored_index(np.arange(start, stop), length))
