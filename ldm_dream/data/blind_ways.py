"""How the steps of a blind degradation are computed: on the CPU in the fastest way, and on a device
that nothing waits for, where no number comes back to Python.

Both are the same but for rounding and for JPEG's last levels (`jpeg_loss.py`). ON_DEVICE runs on a
CPU too, for tests. WebP is on the CPU alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ldm_dream.data.blind_plan import Compress, Filter, Noise, Resize, Sharpen, Step
from ldm_dream.data.blur import MOST_TAPS, blur
from ldm_dream.data.jpeg_loss import by_libjpeg, by_libwebp, by_torch, quality_tables
from ldm_dream.data.noise import Seen, gaussian_noise, poisson_noise, seen_by_count, seen_by_fill
from ldm_dream.data.taps import blurred_first, dense, filtered, resize_taps, separated

Arrays = Sequence[Tensor]  # those that a step needs on the device, `arrays_of`
Size = tuple[int, int]


class Ways(NamedTuple):
    """Images are float32 [1,3,H,W] in grey levels.

    blur: (image, kernel). resize: (image, plan, its arrays). compress: likewise.
    """

    blur: Callable[[Tensor, Tensor], Tensor]
    resize: Callable[[Tensor, Resize, Arrays], Tensor]
    seen: Seen
    compress: Callable[[Tensor, Compress, Arrays], Tensor]

    def done(self, image: Tensor, step: Step, arrays: Arrays, random: torch.Generator) -> Tensor:
        """One step."""
        match step:
            case Resize():
                return self.resize(image, step, arrays)
            case Noise("gaussian"):
                return gaussian_noise(image, step.strength, step.gray, random)
            case Noise():
                return poisson_noise(image, step.strength, step.gray, random, self.seen)
            case Compress():
                return self.compress(image, step, arrays)
            case Filter():
                return self.blur(image, arrays[0])
            case Sharpen():
                added = image - self.blur(image, arrays[0])
                return (image + step.amount * added).clamp_(0, 255)


def arrays_of(step: Step, size: Size, on_cpu: bool) -> list[np.ndarray]:
    """What a step on a picture of `size` needs beside numbers, float32. On the CPU, tables and
    matrices are made where they are used.
    """
    match step:
        case Filter() | Sharpen():
            return [step.kernel]
        case Resize():
            kernel = [] if step.kernel is None else [step.kernel]
            is_plain = on_cpu or step.mode in PLAIN
            sides = () if is_plain else zip(size, step.size)
            return [*kernel, *(dense(resize_taps(*pair, step.mode), pair[0]) for pair in sides)]
        case Compress():
            return [] if on_cpu else [quality_tables(step.quality)]
        case Noise():
            return []


PLAIN = ("area", "bilinear", "bicubic")  # what torch does by itself


def _blur_on_cpu(image: Tensor, kernel: Tensor) -> Tensor:
    return blur(image, kernel, MOST_TAPS)


def _resize_on_cpu(image: Tensor, plan: Resize, arrays: Arrays) -> Tensor:
    sides = (image.shape[-2], image.shape[-1])
    rows, columns = (resize_taps(*pair, plan.mode) for pair in zip(sides, plan.size))
    if plan.kernel is None:
        return image if sides == plan.size else filtered(image, rows, columns)
    lines = separated(plan.kernel)
    if not _pays(len(lines[0]), len(plan.kernel), sides, plan.size):
        blurred = _blur_on_cpu(image, arrays[0])
        return blurred if sides == plan.size else filtered(blurred, rows, columns)
    both = (blurred_first(*each) for each in zip((rows, columns), lines, sides))
    return filtered(image, *both)


def _pays(terms: int, kernel: int, old: Size, new: Size) -> bool:
    """Whether blur and resizing in one, along rows and columns, cost less than the blur alone, in
    multiplications of a row. To turn a picture costs as much as 13 (measured on AVX2).
    """
    along = terms * new[0] * (old[1] * (kernel + 13) + new[1] * kernel)
    return along < old[0] * old[1] * min(0.85 * kernel**2, 190)


def _compress_on_cpu(image: Tensor, plan: Compress, _arrays: Arrays) -> Tensor:
    return (by_libwebp if plan.kind == "webp" else by_libjpeg)(image, plan.quality)


def _blur_on_device(image: Tensor, kernel: Tensor) -> Tensor:
    """Always by Fourier transform: a GPU's convolutions may round to TF32, as the process has set."""
    return blur(image, kernel, most_taps=0)


def _resize_on_device(image: Tensor, plan: Resize, arrays: Arrays) -> Tensor:
    image = image if plan.kernel is None else _blur_on_device(image, arrays[0])
    if plan.mode in PLAIN:
        return F.interpolate(image, size=plan.size, mode=plan.mode)
    rows, columns = arrays[-2:]
    # not as a product of matrices, which may round to TF32 too
    tall = (rows[:, None, :, None] * image[0, None]).sum(-2).transpose(0, 1)
    return (tall[:, :, None, :] * columns).sum(-1)[None]


def _compress_on_device(image: Tensor, plan: Compress, arrays: Arrays) -> Tensor:
    if plan.kind == "webp":
        raise ValueError("WebP is computed on the CPU alone (data.degrade_on: workers)")
    return by_torch(image, arrays[0])


ON_CPU = Ways(_blur_on_cpu, _resize_on_cpu, seen_by_count, _compress_on_cpu)
ON_DEVICE = Ways(_blur_on_device, _resize_on_device, seen_by_fill, _compress_on_device)
