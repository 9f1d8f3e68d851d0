"""How a blind degradation is computed: on the CPU in the fastest way, and on a device that nothing
waits for, where no number comes back to Python.

Both are the same but for rounding and for JPEG's last levels (`jpeg_loss.py`). ON_DEVICE runs on a
CPU too, for tests.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from ldm_dream.data.blind_plan import Resize
from ldm_dream.data.blur import MOST_TAPS, blur
from ldm_dream.data.jpeg_loss import by_libjpeg, by_torch
from ldm_dream.data.noise import Seen, seen_by_count, seen_by_fill
from ldm_dream.data.taps import blurred_first, filtered, resize_taps, separated


class Ways(NamedTuple):
    """Images are float32 [1,3,H,W] in grey levels.

    blur: (image, kernel). resize: (image, kernel of the blur before it or None, plan). jpeg:
    (image, quality, tables of the quality).
    """

    blur: Callable[[Tensor, Tensor], Tensor]
    resize: Callable[[Tensor, Tensor | None, Resize], Tensor]
    seen: Seen
    jpeg: Callable[[Tensor, int, Tensor], Tensor]


def _blur_on_cpu(image: Tensor, kernel: Tensor) -> Tensor:
    return blur(image, kernel, MOST_TAPS)


def _resize_on_cpu(image: Tensor, kernel: Tensor | None, plan: Resize) -> Tensor:
    sides = (image.shape[-2], image.shape[-1])
    rows, columns = (resize_taps(*pair, plan.mode) for pair in zip(sides, plan.size))
    if kernel is None:
        return image if sides == plan.size else filtered(image, rows, columns)
    lines = separated(kernel.numpy())
    if not _pays(len(lines[0]), len(kernel), sides, plan.size):
        return _resize_on_cpu(_blur_on_cpu(image, kernel), None, plan)
    both = (blurred_first(*each) for each in zip((rows, columns), lines, sides))
    return filtered(image, *both)


def _pays(terms: int, kernel: int, old: tuple[int, int], new: tuple[int, int]) -> bool:
    """Whether blur and resizing in one, along rows and columns, cost less than the blur alone, in
    multiplications of a row. To turn a picture costs as much as 13 (measured on AVX2).
    """
    along = terms * new[0] * (old[1] * (kernel + 13) + new[1] * kernel)
    return along < old[0] * old[1] * min(0.85 * kernel**2, 190)


def _jpeg_on_cpu(image: Tensor, quality: int, _tables: Tensor) -> Tensor:
    return by_libjpeg(image, quality)


def _blur_on_device(image: Tensor, kernel: Tensor) -> Tensor:
    """Always by Fourier transform: a GPU's convolutions may round to TF32, as the process has set."""
    return blur(image, kernel, most_taps=0)


def _resize_on_device(image: Tensor, kernel: Tensor | None, plan: Resize) -> Tensor:
    image = image if kernel is None else _blur_on_device(image, kernel)
    return F.interpolate(image, size=plan.size, mode=plan.mode)


def _jpeg_on_device(image: Tensor, _quality: int, tables: Tensor) -> Tensor:
    return by_torch(image, tables)


ON_CPU = Ways(_blur_on_cpu, _resize_on_cpu, seen_by_count, _jpeg_on_cpu)
ON_DEVICE = Ways(_blur_on_device, _resize_on_device, seen_by_fill, _jpeg_on_device)
