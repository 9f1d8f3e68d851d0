"""How a blind degradation is computed: on the CPU in the fastest way, and on a device that nothing
waits for, where no number comes back to Python.

Both are the same but for rounding and for JPEG's last levels (`jpeg_loss.py`). ON_DEVICE runs on a
CPU too, for tests.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm_dream.data.blind_plan import Resize
from ldm_dream.data.blur import MOST_TAPS, blur
from ldm_dream.data.jpeg_loss import by_libjpeg, by_torch
from ldm_dream.data.noise import Seen, seen_by_count, seen_by_fill
from ldm_dream.data.taps import Taps, blurred_first, filtered, resize_taps


class Ways(NamedTuple):
    """Images are float32 [1,3,H,W] in grey levels.

    blur: (image, kernel [K,K] or [K]). resize: (image, kernel of the blur before or None, plan).
    jpeg: (image, quality, tables of the quality).
    """

    blur: Callable[[Tensor, Tensor], Tensor]
    resize: Callable[[Tensor, Tensor | None, Resize], Tensor]
    seen: Seen
    jpeg: Callable[[Tensor, int, Tensor], Tensor]


def _blur_on_cpu(image: Tensor, kernel: Tensor) -> Tensor:
    return blur(image, kernel, MOST_TAPS)


def _resize_on_cpu(image: Tensor, kernel: Tensor | None, plan: Resize) -> Tensor:
    if kernel is not None and kernel.dim() == 2:
        image, kernel = _blur_on_cpu(image, kernel), None
    sides = tuple(image.shape[-2:])
    if kernel is None and sides == plan.size:
        return image
    rows, columns = (
        _taps(length, size, kernel, plan.mode) for length, size in zip(sides, plan.size)
    )
    return filtered(image, rows, columns)


def _taps(length: int, size: int, kernel: Tensor | None, mode: str) -> Taps:
    taps = resize_taps(length, size, mode)
    return taps if kernel is None else blurred_first(taps, kernel.numpy(), length)


def _jpeg_on_cpu(image: Tensor, quality: int, _tables: Tensor) -> Tensor:
    return by_libjpeg(image, quality)


def _blur_on_device(image: Tensor, kernel: Tensor) -> Tensor:
    """Always by Fourier transform: a GPU's convolutions may round to TF32, as the process has set."""
    return blur(image, torch.outer(kernel, kernel) if kernel.dim() == 1 else kernel, most_taps=0)


def _resize_on_device(image: Tensor, kernel: Tensor | None, plan: Resize) -> Tensor:
    image = image if kernel is None else _blur_on_device(image, kernel)
    return F.interpolate(image, size=plan.size, mode=plan.mode)


def _jpeg_on_device(image: Tensor, _quality: int, tables: Tensor) -> Tensor:
    return by_torch(image, tables)


ON_CPU = Ways(_blur_on_cpu, _resize_on_cpu, seen_by_count, _jpeg_on_cpu)
ON_DEVICE = Ways(_blur_on_device, _resize_on_device, seen_by_fill, _jpeg_on_device)
