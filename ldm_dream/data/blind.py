"""Blind degradation: how a picture of unknown history lost its quality, drawn at random
(Real-ESRGAN, arXiv 2107.10833).

    hr -> blur -> resize -> noise -> JPEG -> [blur -> resize -> noise] -> resize to H/scale, sinc,
    sharpen; JPEG (or first JPEG) -> [JPEG] -> lr

and a share of the samples is shrunk alone.

The ranges stand in `BlindConfig`. Every random choice of a sample comes from its own seed and is
drawn before any pixel is touched (`blind_plan.py`); samples go one by one, since behind the first
resize each has a size of its own. So a sample is the same alone, in any batch and in a resumed run.

On a GPU nothing waits: the numbers of a batch go to the device in one copy, and nothing comes back.
There the choices are the same, but noise comes from the device's generator and JPEG is computed in
torch (`jpeg_loss.py`), so the pixels are others.

Symbols: image float32 in grey levels, 0..255, but for what goes in and comes out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from ldm_dream.config.data import BlindConfig
from ldm_dream.data.blind_plan import Plan, Resize, plan_blind
from ldm_dream.data.blind_ways import ON_CPU, ON_DEVICE, Ways, arrays_of
from ldm_dream.data.resize import mirrored_index


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
    if hr.device.type == "cuda":
        return _degrade(hr, plans, _carried(hr, plans, on_cpu=False), ON_DEVICE)
    host = hr.cpu()  # other devices have no float64, which JPEG in torch wants
    return _degrade(host, plans, _carried(host, plans, on_cpu=True), ON_CPU).to(hr.device)


Carried = list[list[Tensor]]  # of each step of a plan, what `arrays_of` it is, on the device


def _carried(hr: Tensor, plans: Sequence[Plan], on_cpu: bool) -> list[Carried]:
    """All in one copy, which a GPU does not wait for."""
    needed = [list(_arrays(plan, (hr.shape[-2], hr.shape[-1]), on_cpu)) for plan in plans]
    every = [array for plan in needed for step in plan for array in step]
    if not every:
        return [[[] for _ in plan] for plan in needed]
    flat = torch.from_numpy(np.concatenate([array.ravel() for array in every]))
    if hr.device.type == "cuda":
        flat = flat.pin_memory().to(hr.device, non_blocking=True)
    pieces = zip(flat.split([array.size for array in every]), every)
    placed = (piece.view(array.shape) for piece, array in pieces)
    return [[[next(placed) for _ in step] for step in plan] for plan in needed]


def _arrays(plan: Plan, size: tuple[int, int], on_cpu: bool) -> Iterator[list[np.ndarray]]:
    for step in plan.steps:
        yield arrays_of(step, size, on_cpu)
        size = step.size if isinstance(step, Resize) else size


def _degrade(hr: Tensor, plans: Sequence[Plan], carried: Sequence[Carried], ways: Ways) -> Tensor:
    with torch.autocast(hr.device.type, enabled=False):  # training's bf16 is not meant for its data
        samples = zip(hr.split(1), plans, carried)
        return torch.cat([_degrade_one(*sample, ways) for sample in samples])


def _degrade_one(hr: Tensor, plan: Plan, carried: Carried, ways: Ways) -> Tensor:
    """[1,3,H,W] in [0, 1] -> [1,3,H/scale,W/scale] likewise."""
    random = torch.Generator(hr.device).manual_seed(plan.noise_seed)
    image = hr.float() * 255
    for step, arrays in zip(plan.steps, carried):
        image = ways.done(image, step, arrays, random)
    return image.round().clamp_(0, 255) / 255


def to_levels(image: Tensor) -> Tensor:
    """[0, 1], clipped -> uint8, rounded."""
    return (image * 255).round().clamp(0, 255).to(torch.uint8)


def mirrored(start: int, stop: int, length: int) -> Tensor:
    """Pixels start..stop-1 of a row of `length` that goes on as its mirror image without end: .. 1
    0 | 0 1 .. n-1 | n-1 n-2 ..
    """
    return torch.from_numpy(mirrored_index(np.arange(start, stop), length))
