"""Pictures at the border of the model: of every type in, the same type and bit depth out.

`unpack` gives every picture one form, `Pixels`: an array in its own depth, which is all that is
kept of a picture whole. Floats are made of parts of it only: `Source` cuts them out, of the picture
or of its bicubic enlargement, `Frame` says where the result lies in what the model makes, which
reaches further on all sides, and `Canvas` takes the result's rows. Grey becomes three equal
channels and comes back as one. Alpha is straight, as in PNG.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from copy import copy
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from ldm_dream.data.images import Image, ImageError
from ldm_dream.data.resize import imresize_part, mirrored_index, upsample
from ldm_dream.data.scratch import let_go, room
from ldm_dream.denoiser import sent
from ldm_dream.upscaling import pil

STRIP, MIN_STRIP = 2**20, 32  # HR pixels and rows of a strip in which colours and size are set
Picture = TypeVar("Picture", PIL.Image.Image, np.ndarray, Tensor, Image)


@dataclass(frozen=True)
class Pixels:
    """A picture as an array.

    bands: [B, H, W, C], uint8 or uint16 in 0 .. levels, or float in [0, 1] (levels = 1); first the
    colours (1 or 3), then alpha where C is one more. pack: bands of any height and width, in the
    same dtype -> a picture of the type that came in. may_spill: a large result may lie in a file
    (`scratch.py`).
    """

    bands: np.ndarray
    colours: int
    levels: float
    pack: Callable[[np.ndarray], Any]
    may_spill: bool = False

    @property
    def size(self) -> tuple[int, int]:
        """(H, W)."""
        return self.bands.shape[1], self.bands.shape[2]

    @property
    def has_alpha(self) -> bool:
        return self.bands.shape[-1] > self.colours

    def cut(self, channels: slice, rows: slice, columns: slice) -> Tensor:
        """A part as float32 [B, channels, h, w] in [0, 1]."""
        part = self.bands[:, rows, columns, channels].astype(np.float32)
        return torch.from_numpy(part).permute(0, 3, 1, 2).contiguous() / self.levels

    def alpha(self, size: tuple[int, int], rows: slice) -> Tensor:
        """Rows of alpha at another size by bicubic, [B, 1, h, width] in [0, 1]."""

        def cut(rows: slice, columns: slice) -> Tensor:
            return self.cut(slice(self.colours, None), rows, columns)

        return imresize_part(cut, self.size, size, rows, slice(0, size[1])).clamp(0, 1)


def unpack(picture: object) -> Pixels:
    """Raises ImageError for a type, shape or range that is not one of these.

    PIL (RGB, RGBA, L, LA, 1, P, CMYK, I;16), numpy [H, W], [H, W, 3] or [H, W, 4] (uint8, uint16,
    or float in [0, 1]), torch [3, H, W] or [B, 3, H, W] (float in [0, 1]),
    `ldm_dream.data.images.Image`.
    """
    if isinstance(picture, Image):
        return _unpack_image(picture)
    if isinstance(picture, PIL.Image.Image):
        bands, pack = pil.unpack(picture)
        return _unpack_array(bands, pack, gray_alpha=True)
    if isinstance(picture, np.ndarray):
        return _unpack_array(picture, lambda bands: bands)
    if isinstance(picture, Tensor):
        return _unpack_tensor(picture)
    raise ImageError(
        f"a picture of type {type(picture).__name__} is not supported; "
        "give the path of a file, PIL, numpy, a torch tensor, or a list of these."
    )


def outline(size: tuple[int, int]) -> Pixels:
    """A picture of (height, width) without pixels of its own, for plans."""
    return Pixels(np.broadcast_to(np.uint8(0), (1, *size, 3)), 3, 255, lambda bands: bands)


def _unpack_image(image: Image) -> Pixels:
    def pack(bands: np.ndarray) -> Image:
        alpha = None if image.alpha is None else bands[..., 3]
        return replace(image, pixels=bands[..., :3], alpha=alpha)

    bands = image.pixels if image.alpha is None else np.dstack([image.pixels, image.alpha])
    return replace(_unpack_array(bands, pack), may_spill=True)


def _unpack_array(
    bands: np.ndarray, pack: Callable[[np.ndarray], Any], gray_alpha: bool = False
) -> Pixels:
    channels = bands.shape[2] if bands.ndim == 3 else 1 if bands.ndim == 2 else 0
    if channels not in (1, 3, 4, *([2] if gray_alpha else [])) or not bands.size:
        raise ImageError(
            f"an array of shape {bands.shape} is not a picture; give [H, W], [H, W, 3] or [H, W, 4]."
        )
    if bands.dtype not in (np.uint8, np.uint16) and not np.issubdtype(bands.dtype, np.floating):
        raise ImageError(
            f"an array of {bands.dtype} is not supported; give uint8, uint16 or floats in [0, 1]."
        )
    is_float = np.issubdtype(bands.dtype, np.floating)
    if is_float:
        _check_range(bands.min(), bands.max())
    levels = 1.0 if is_float else float(np.iinfo(bands.dtype).max)
    colours = channels if channels % 2 else channels - 1
    flat = bands.ndim == 2
    return Pixels(
        np.atleast_3d(bands)[None],
        colours,
        levels,
        lambda made: pack(made[0, ..., 0] if flat else made[0]),
    )


def _unpack_tensor(tensor: Tensor) -> Pixels:
    if (
        tensor.ndim not in (3, 4)
        or tensor.shape[-3] != 3
        or not tensor.numel()
        or not tensor.is_floating_point()
    ):
        given = f"{tensor.dtype} of shape {tuple(tensor.shape)}"
        raise ImageError(
            f"a tensor {given} is not a picture; give floats in [0, 1] of shape [3, H, W] or [B, 3, H, W]."
        )
    values = tensor.detach().float().reshape(-1, *tensor.shape[-3:])
    _check_range(*(x.item() for x in values.aminmax()))

    def pack(bands: np.ndarray) -> Tensor:
        made = torch.from_numpy(bands).permute(0, 3, 1, 2).contiguous()
        return made.to(tensor.device, tensor.dtype).reshape(*tensor.shape[:-2], *made.shape[-2:])

    return Pixels(values.permute(0, 2, 3, 1).cpu().numpy(), 3, 1.0, pack)


def _check_range(low: float, high: float) -> None:
    if not (low >= 0 and high <= 1):  # also refuses NaN
        raise ImageError(
            f"float pictures have values in [0, 1], this one reaches from {low:g} to {high:g}; scale it first."
        )


class Source:
    """What a model sees of a picture: its colours with mirrored pixels around it.

    Networks err where a picture ends, so its own border is not where theirs is: `context` pixels
    on each side, and at the bottom and right as many more as make both sides a multiple of
    `multiple`. Works from 1x1 on.
    """

    def __init__(self, pixels: Pixels, context: int = 0, multiple: int = 1):
        self.pixels, self.count = pixels, len(pixels.bands)
        height, width = pixels.size
        self.rows = _mirrored(height, context, multiple)
        self.columns = _mirrored(width, context, multiple)
        self.size = len(self.rows), len(self.columns)

    def part(self, size: tuple[int, int], rows: slice, columns: slice) -> Tensor:
        """Of the whole at `size` by bicubic: a part, float32 [B, 3, h, w] in about [-1, 1] (the
        cubic overshoots).
        """
        return imresize_part(self._cut, self.size, size, rows, columns)

    def one(self, picture: int) -> Source:
        """A picture of the batch alone."""
        alone = copy(self)
        bands = self.pixels.bands[picture : picture + 1]
        alone.pixels, alone.count = replace(self.pixels, bands=bands), 1
        return alone

    def whole(self, size: tuple[int, int]) -> Tensor:
        return self.part(size, slice(0, size[0]), slice(0, size[1]))

    def _cut(self, rows: slice, columns: slice) -> Tensor:
        high, y = _from(self.rows[rows])
        wide, x = _from(self.columns[columns])
        rgb = self.pixels.cut(slice(0, self.pixels.colours), high, wide)
        rgb = rgb.index_select(2, y).index_select(3, x)
        return rgb.expand(-1, 3, -1, -1) * 2 - 1


def _from(places: np.ndarray) -> tuple[slice, Tensor]:
    """The stretch in which all places are, and the places counted from its start."""
    first, last = int(places.min()), int(places.max())
    return slice(first, last + 1), torch.from_numpy(places - first)


def _mirrored(length: int, context: int, multiple: int) -> np.ndarray:
    """Of an axis: the pixel at each place, `context` before and after and on to the multiple."""
    padded = -(-(length + 2 * context) // multiple) * multiple
    return mirrored_index(np.arange(padded) - context, length)


@dataclass(frozen=True)
class Frame:
    """Where the result lies in what the model makes.

    size: of all that it makes of `source`. edge: pixels of mirrored context at the top and left.
    inner: size of the result in it. enlarged: all of the LR picture at `size`, where it is taken
    whole: for the encoder and for the colour fix.
    """

    source: Source
    size: tuple[int, int]
    edge: int
    inner: tuple[int, int]
    enlarged: Tensor | None = None

    def whole(self, device: torch.device) -> Frame:
        """With what is enlarged, on the device."""
        lr = sent(self.source.whole(self.source.size), device)
        return replace(self, enlarged=upsample(lr, self.size))

    def strips(self, height: int) -> list[slice]:
        """All rows of a result of `height` rows, in strips that hold about STRIP pixels here."""
        most = max(MIN_STRIP, STRIP // self.inner[1]) * height // self.inner[0]
        step = max(1, most)
        return [slice(top, min(top + step, height)) for top in range(0, height, step)]

    def crop(self, seen: Tensor) -> Tensor:
        """The result in a view of all that the model makes, of any resolution."""
        parts = (
            slice(self.edge * n // whole, -(-(self.edge + length) * n // whole))
            for length, whole, n in zip(self.inner, self.size, seen.shape[-2:])
        )
        return seen[(..., *parts)]

    def pairs(
        self, bands: Iterator[Tensor], wants: Iterable[slice]
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """bands: rows of all that the model makes. wants: rows of the result, downwards -> these
        rows of it, and of the enlarged LR picture, [B, 3, h, W].
        """
        columns = slice(self.edge, self.edge + self.inner[1])
        moved = [slice(r.start + self.edge, r.stop + self.edge) for r in wants]
        for rows, sr in zip(moved, cut_anew(bands, moved)):
            yield sr[..., columns], self._base(rows, columns, sr.device)

    def _base(self, rows: slice, columns: slice, device: torch.device) -> Tensor:
        if self.enlarged is not None:
            return self.enlarged[..., rows, columns]
        return sent(self.source.part(self.size, rows, columns).clamp(-1, 1), device)


def cut_anew(bands: Iterator[Tensor], wants: Iterable[slice]) -> Iterator[Tensor]:
    """Bands of rows, [..., h, W], from row 0 on -> the rows of each of `wants`, which go downwards
    and may overlap.
    """
    held: list[tuple[int, Tensor]] = []  # what is still needed, and the row where it begins
    bottom = 0
    for want in wants:
        while bottom < want.stop:
            # copies, since a few rows that are needed would keep the whole band
            held = [(max(y, want.start), _rows(x, y, want).clone()) for y, x in held]
            held.append((bottom, next(bands)))
            bottom += held[-1][1].shape[-2]
        yield torch.cat([_rows(x, y, want) for y, x in held], -2)


def _rows(x: Tensor, top: int, want: slice) -> Tensor:
    """Those of `want` that are in x, whose first row is `top`."""
    return x[..., max(0, want.start - top) : max(0, want.stop - top), :]


class Canvas:
    """The result: as much of it as the picture's own type needs, filled by rows."""

    def __init__(self, pixels: Pixels, size: tuple[int, int]):
        self.pixels, self.size = pixels, size
        shape = (len(pixels.bands), *size, pixels.bands.shape[-1])
        new = room if pixels.may_spill else np.empty
        self.bands = new(shape, pixels.bands.dtype)
        self.drawn = 0  # rows

    def write(self, rows: slice, rgb: Tensor) -> None:
        """rgb [B, 3, h, width] in [0, 1]; alpha follows by itself."""
        # the mean treats a colour cast of the model as noise
        bands = rgb.mean(1, keepdim=True) if self.pixels.colours == 1 else rgb
        if self.pixels.has_alpha:
            bands = torch.cat([bands.cpu(), self.pixels.alpha(self.size, rows)], 1)
        levels = bands.permute(0, 2, 3, 1).cpu().numpy() * self.pixels.levels
        self.bands[:, rows] = levels if self.pixels.levels == 1 else levels.round()
        if self.pixels.may_spill:
            let_go(self.bands)
        self.drawn = rows.stop

    def look(self, most: int) -> Tensor | None:
        """The first picture so far, [1, 3, h, w] in [-1, 1], at most `most` pixels a side, below it
        what it is made of; None where nothing is drawn.
        """
        if not self.drawn:
            return None
        step = -(-max(self.size) // most)
        y, x = (np.arange(0, length, step) for length in self.size)
        (height, width), given = self.pixels.size, self.pixels.bands[0]
        seen = given[y[:, None] * height // self.size[0], x * width // self.size[1]]
        count = len(y[y < self.drawn])
        seen[:count] = self.bands[0, y[:count, None], x]
        rgb = torch.from_numpy(seen[None, ..., : self.pixels.colours] / self.pixels.levels)
        return rgb.float().permute(0, 3, 1, 2).expand(-1, 3, -1, -1) * 2 - 1

    def picture(self) -> Any:
        return self.pixels.pack(self.bands)


def resized(
    x: Tensor, top: int, length: tuple[int, int], size: tuple[int, int], rows: slice
) -> Tensor:
    """Rows of a picture made `size` large; x: those rows of it from `top` on that they need."""

    def cut(rows: slice, columns: slice) -> Tensor:
        return x[..., rows.start - top : rows.stop - top, columns]

    return imresize_part(cut, length, size, rows, slice(0, size[1])).clamp(0, 1)
