"""One picture: decoded, cut or made smaller, and written as PNG bytes."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageOps
import pyvips
from PIL.Image import Image

from ldm_dream.data import jpeg
from ldm_dream.data.formats import MAX_PIXELS

KINDS = ("PNG", "JPEG", "WEBP", "BMP")
# zlib's levels, by `python -m benchmarks png-levels`: a PNG that is not compressed is read in about half
# the time and takes nearly twice the space. PNG's filters would save a fifth of the space, and
# reading would take a third longer.
IN_A_FOLDER, IN_AN_LMDB = 3, 0


_BROKEN = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    zlib.error,
    PIL.Image.DecompressionBombError,
)


class PictureError(Exception):
    """A picture that cannot be used; its text is the reason, in a few words."""


class TooSmall(PictureError):
    """A whole picture, smaller than what is to be made of it."""


def open_picture(data: bytes) -> Image:
    """The upright picture in 8-bit RGB, whole. Raises PictureError."""
    try:
        with warnings.catch_warnings():  # of many pixels: the limit below decides
            warnings.simplefilter("ignore")
            image = PIL.Image.open(io.BytesIO(data), formats=KINDS)
        if image.width * image.height > MAX_PIXELS:
            raise PictureError(f"{image.width}x{image.height} is more than {MAX_PIXELS} pixels")
        if image.mode.startswith(("I", "F")):
            raise PictureError(f"pixels of type {image.mode}, not of 8 bits")
        turn = image.getexif().get(0x0112, 1)
        if image.format == "JPEG":
            pixels, _ = jpeg.decode(data)  # Pillow takes a damaged JPEG for whole
            pixels = np.atleast_3d(pixels)
            if pixels.shape[2] != 4:  # CMYK is Pillow's
                image = PIL.Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
        image = image.convert("RGB")
        if turn != 1:
            image.getexif()[0x0112] = turn
            image = PIL.ImageOps.exif_transpose(image)
        return image
    except jpeg.BrokenJpeg as error:
        raise PictureError(str(error)) from None
    except _BROKEN as error:
        reason = "no picture, or its header is broken"
        known = not isinstance(error, PIL.UnidentifiedImageError)
        raise PictureError(str(error) if known and str(error) else reason) from None


def to_png(image: Image, level: int, filter: str = "none") -> bytes:
    """An RGB picture as PNG. level: of zlib. filter: of libvips' names, before compression."""
    pixels: Any = pyvips.Image.new_from_array(np.asarray(image)).copy(interpretation="srgb")
    return bytes(pixels.pngsave_buffer(compression=level, filter=filter))


# ------------------------------------------------------------------------------------------- cuts


@dataclass(frozen=True)
class Square:
    """The shorter side becomes `side` by Pillow's bicubic, then the middle is cut out: as SR3's
    data/prepare_data.py does by torchvision (Image-Super-Resolution-via-Iterative-Refinement
    @1a9a533).
    """

    side: int

    def __call__(self, image: Image, name: str) -> list[tuple[str, Image]]:
        width, height = image.size
        shorter = min(width, height)
        _check_size(image, self.side)
        size = (int(self.side * width / shorter), int(self.side * height / shorter))
        if image.size != size:
            image = image.resize(size, PIL.Image.Resampling.BICUBIC)
        left, top = (round((length - self.side) / 2) for length in size)
        return [(name, image.crop((left, top, left + self.side, top + self.side)))]


@dataclass(frozen=True)
class SubImages:
    """Overlapping squares, the last of a row and of a column at the border: NAME_s001, row by row,
    as BasicSR's extract_subimages has it with threshold 0 (XPixelGroup/BasicSR @192b1a9). A side
    shorter than a square stays whole.
    """

    side: int
    step: int

    def __call__(self, image: Image, name: str) -> list[tuple[str, Image]]:
        width, height = image.size
        corners = [(top, left) for top in self._starts(height) for left in self._starts(width)]
        return [
            (
                f"{name}_s{number:03d}",
                image.crop((left, top, min(left + self.side, width), min(top + self.side, height))),
            )
            for number, (top, left) in enumerate(corners, 1)
        ]

    def _starts(self, length: int) -> list[int]:
        last = max(length - self.side, 0)
        return sorted({*range(0, last + 1, self.step), last})


@dataclass(frozen=True)
class Crop:
    """A square as it stands, from the middle, or from a place that the picture's name decides."""

    side: int
    is_middle: bool = False

    def __call__(self, image: Image, name: str) -> list[tuple[str, Image]]:
        _check_size(image, self.side)
        free = [length - self.side for length in image.size]
        drawn = np.random.default_rng(zlib.crc32(name.encode()))
        left, top = (
            [space // 2 for space in free]
            if self.is_middle
            else [int(drawn.integers(space + 1)) for space in free]
        )
        return [(name, image.crop((left, top, left + self.side, top + self.side)))]


@dataclass(frozen=True)
class AsItIs:
    """The whole picture; a PNG keeps its bytes."""

    def __call__(self, image: Image, name: str) -> list[tuple[str, Image]]:
        return [(name, image)]


Cut = Square | SubImages | Crop | AsItIs


def _check_size(image: Image, side: int) -> None:
    if min(image.size) < side:
        raise TooSmall(f"{image.width}x{image.height} is smaller than {side}")
