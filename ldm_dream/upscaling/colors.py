"""Colour fixes: they give the result the colours of the picture it was made from, since diffusion
models drift in the mean and the low frequencies.

What is coarse is worked out in blocks of BLOCK x BLOCK pixels, from the first pixel of the picture
on; where the picture ends in a block, the rest is its mirror image. So a part of a picture is fixed
as in the whole if it begins with a block and `around` it what it depends on is there.

Symbols: sr = the result, base = the enlarged LR picture; both [B, 3, H, W] in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ldm_dream.data.resize import mirrored_index

Fix = Callable[[Tensor, Tensor], Tensor]  # sr, base -> sr
Pairs = Callable[[], Iterable[tuple[Tensor, Tensor]]]  # -> sr and base of all parts of a picture
Both = Callable[[Tensor, Tensor], Tensor]

BLOCK = 4  # HR pixels a side, a power of two; one LR pixel of a x4 model
COARSE = 8  # blocks, a power of two: the coarse band holds what is wider than about that
CHROMA_RADIUS = 2  # blocks: as far as bicubic looks
COLUMNS = 2048  # HR pixels of the width that are fixed at a time
LUMA = (0.299, 0.587, 0.114)  # of red, green, blue (ITU-R BT.601)


def around(part: slice, length: int) -> slice:
    """The rows, or columns, of all `length` that those of `part` depend on when they are fixed: of the
    COARSE blocks on each side one is for the interpolation.
    """
    first = part.start // BLOCK - COARSE
    last = -(-part.stop // BLOCK) + COARSE
    return slice(max(0, first * BLOCK), min(length, last * BLOCK))


def in_columns(fix: Fix, sr: Tensor, base: Tensor) -> Tensor:
    """fix(sr, base), with what it holds on the way for a part of the width alone."""
    width, made = sr.shape[-1], []
    for left in range(0, width, COLUMNS):
        right = min(left + COLUMNS, width)
        part = around(slice(left, right), width)
        fixed = fix(sr[..., part], base[..., part])
        made.append(fixed[..., left - part.start : right - part.start])
    return torch.cat(made, -1)


def keep(sr: Tensor, base: Tensor) -> Tensor:
    """No fix."""
    return sr


def wavelet(sr: Tensor, base: Tensor) -> Tensor:
    """high(sr) + low(base) = sr + low(base - sr), since the low pass is linear.

    Idea: StableSR (arXiv 2305.07015), which keeps the detail of the result and takes the coarse
    band from the LR picture by five levels of an a-trous transform. Its taps are, along each axis,
    those of two running means over 32 pixels. Here the means of blocks stand for their pixels, and
    the result is interpolated.
    """
    means = _over_blocks(torch.add, base - sr) / BLOCK**2
    return no_new_colors(sr + _of_pixels(_coarse(means), "bilinear", sr), base)


def measured_adain(pairs: Pairs) -> Fix:
    """Mean and standard deviation of every channel over the picture become those of `base` (arXiv
    1703.06868, Eq. 8). They are measured first, part by part.
    """
    measures = Moments(), Moments()
    for pair in pairs():
        for moments, part in zip(measures, pair):
            moments.add(part)
    (mean, std), (base_mean, base_std) = (moments.mean_and_std() for moments in measures)
    contrast = base_std / std.clamp_min(1e-4)  # a flat picture has none to scale

    def adain(sr: Tensor, base: Tensor) -> Tensor:
        return no_new_colors((sr - mean) * contrast + base_mean, base)

    return adain


COLOR_FIXES: dict[str, Callable[[Pairs], Fix]] = {
    "none": lambda pairs: keep,
    "wavelet": lambda pairs: wavelet,
    "adain": measured_adain,
}


def no_new_colors(sr: Tensor, base: Tensor) -> Tensor:
    """Brightness of `sr`; of its chroma (each channel less the brightness) what the neighbourhood
    in `base` allows, so that grey stays grey.

    The lowest and highest chroma of `base` in the blocks up to CHROMA_RADIUS away, and once their
    distance beyond: nothing where all colours are the same, and much where they differ.
    """
    luma, chroma = _luma(sr), base - _luma(base)
    highest = _over_neighbourhood(torch.maximum, chroma, -torch.inf)
    lowest = _over_neighbourhood(torch.minimum, chroma, torch.inf)
    room = highest - lowest
    limits = (_of_pixels(x, "nearest", sr) for x in (lowest - room, highest + room))
    chroma = torch.clamp(sr - luma, *limits)
    return chroma + (luma - _luma(chroma))


class Moments:
    """Sums of parts that come one by one, [B, 3, h, w]; of every channel [B, 3, 1, 1] in float32."""

    def __init__(self) -> None:
        self.count, self.sum, self.squares = 0, torch.zeros(1), torch.zeros(1)
        self.device = torch.device("cpu")

    def add(self, part: Tensor) -> None:
        # mps has no float64
        wide = (part.cpu() if part.device.type == "mps" else part).double()
        self.device = part.device
        self.count += part.shape[-2] * part.shape[-1]
        self.sum = self.sum.to(wide) + wide.sum((2, 3), keepdim=True)
        self.squares = self.squares.to(wide) + wide.square().sum((2, 3), keepdim=True)

    def mean_and_std(self) -> tuple[Tensor, Tensor]:
        mean = self.sum / self.count
        variance = self.squares / self.count - mean.square()
        std = variance.clamp_min(0).sqrt()
        return mean.float().to(self.device), std.float().to(self.device)


def _luma(x: Tensor) -> Tensor:
    red, green, blue = x.split(1, 1)
    return (LUMA[0] * red).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])


def _coarse(x: Tensor) -> Tensor:
    """Along each axis two running means over COARSE blocks. Outside is the mirrored picture."""
    for axis in (-2, -1):
        x = _mirrored(x, axis, np.arange(1 - COARSE, x.shape[axis] + COARSE - 1))
        for _ in range(2):
            x = _over_all(torch.add, x, axis, COARSE)
    return x / COARSE**4


def _over_neighbourhood(both: Both, x: Tensor, outside: float) -> Tensor:
    """Of pixels -> of blocks: `both` over the pixels of those up to CHROMA_RADIUS away."""
    x = F.pad(_over_blocks(both, x), (CHROMA_RADIUS,) * 4, value=outside)
    for axis in (-2, -1):
        x = _over_all(both, x, axis, 2 * CHROMA_RADIUS + 1)
    return x


def _over_blocks(both: Both, x: Tensor) -> Tensor:
    """`both` over the pixels of each block: of neighbours, of pairs, .. -> [B, C, blocks, blocks]."""
    for axis in (-2, -1):
        if x.shape[axis] % BLOCK:
            whole = -(-x.shape[axis] // BLOCK) * BLOCK
            x = _mirrored(x, axis, np.arange(whole))
        for _ in range(BLOCK.bit_length() - 1):
            x = both(*x.unflatten(axis, (-1, 2)).unbind(axis))
    return x


def _of_pixels(x: Tensor, mode: str, like: Tensor) -> Tensor:
    """Of blocks -> of the pixels of a picture."""
    height, width = like.shape[-2:]
    return F.interpolate(x, scale_factor=BLOCK, mode=mode)[..., :height, :width]


def _mirrored(x: Tensor, axis: int, places: np.ndarray) -> Tensor:
    index = torch.from_numpy(mirrored_index(places, x.shape[axis]))
    return x.index_select(axis, index.to(x.device))


def _over_all(both: Both, x: Tensor, axis: int, count: int) -> Tensor:
    """`both` over each `count` neighbours along an axis: of neighbours, of pairs, of fours, .. A sum
    wants a power of two, or it counts some twice.
    """
    done = 1
    while done < count:
        step = min(done, count - done)
        length = x.shape[axis] - step
        x, done = both(x.narrow(axis, 0, length), x.narrow(axis, step, length)), done + step
    return x
