"""The header decides: kind, size and channels of a picture are known, and refused where they are
not possible, before any pixel is decoded.
"""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import PIL.Image
import pyvips

from ldm_dream.data.formats import (
    AVIF,
    BY_SUFFIX,
    HEAD,
    HEIC,
    MAX_BYTES,
    MAX_PIXELS,
    PNG,
    READABLE,
    TIFF,
    WEBP,
    Format,
    kind_of,
)
from ldm_dream.data.heif import read_space
from ldm_dream.data.image import ImageError
from ldm_dream.data.jpeg import first_line
from ldm_dream.data.png import Chunks, read_chunks
from ldm_dream.data.resolution import Dpi, dpi_in_place, dpi_in_tags, possible
from ldm_dream.data.tiff import exif_of, first_directory, is_associated, quiet
from ldm_dream.data.webp import is_lossless
from ldm_dream.errors import shown

_GRAY, _RGB = ("b-w", "grey16"), ("srgb", "rgb16", "rgb", "scrgb")
_LEVELS = {"uchar": 1, "ushort": 2}  # kinds of numbers -> bytes
_DEPTHS = _LEVELS | {"char": 1, "short": 2, "uint": 4, "int": 4, "float": 4, "double": 8}
# what Pillow's kinds of pixels are read as
PILLOW_MODES = {
    "1": "L", "L": "L", "LA": "LA", "P": "RGB", "PA": "RGBA", "RGB": "RGB", "RGBA": "RGBA",
    "RGBX": "RGB", "CMYK": "RGB", "YCbCr": "RGB", "I;16": "I;16",
}  # fmt: skip


@dataclass(frozen=True)
class Header:
    """What is known before decoding. opened: its pixels are decoded on use.

    width, height: as stored, before `orientation` (1 to 8, as in EXIF) is applied. channels: grey 1,
    RGB 3, CMYK 4, plus 1 with alpha. depth: bytes a channel. are_levels: of 8 or 16 bits, without a
    sign. frames: pages, or frames of an animation. is_associated: colours are multiplied by alpha.
    exif: of a TIFF, which libvips leaves out. chunks: of a PNG, likewise. content: the picture's
    bytes, where `path` only names it. is_lossless, bits: as in `Image`. dpi: outside of EXIF.
    """

    path: Path
    kind: Format
    opened: pyvips.Image | PIL.Image.Image
    width: int
    height: int
    channels: int
    depth: int
    is_gray: bool
    has_alpha: bool
    orientation: int = 1
    frames: int = 1
    is_associated: bool = False
    exif: bytes | None = None
    chunks: Chunks = Chunks()
    content: bytes | None = None
    are_levels: bool = True
    is_lossless: bool = False
    bits: int | None = None
    dpi: Dpi | None = None

    @property
    def stored_bytes(self) -> int:
        """How many the picture takes on disk."""
        return self.path.stat().st_size if self.content is None else len(self.content)

    def read_stored(self) -> bytes:
        """All of them."""
        return self.path.read_bytes() if self.content is None else self.content

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the upright picture."""
        turned = self.orientation >= 5
        return (self.width, self.height) if turned else (self.height, self.width)


@contextmanager
def header_of(path: Path, content: bytes | None = None) -> Iterator[Header]:
    """Open a picture: a file, or `content`, which `path` then only names. Raises ImageError, also for
    what the body finds broken with Pillow.
    """
    with _open(path) if content is None else _in_memory(path, content) as file:
        kind = kind_of(file.read(HEAD))
        if kind is None:
            raise ImageError(
                f"{shown(path)}: not a picture in {READABLE}, or its header is broken; convert it."
            )
        if not kind.is_readable():
            raise ImageError(
                f"{shown(path)}: nothing installed here reads {kind.name}; convert it to PNG or JPEG."
            )
        file.seek(0)
        if kind.in_libvips():
            yield _by_libvips(path, kind, file)
        else:
            with _pillow_errors(path):
                yield _by_pillow(path, kind, file)


def check_limits(header: Header, max_pixels: int = MAX_PIXELS) -> None:
    """Raises ImageError for more than `max_pixels`, more than MAX_BYTES when decoded, or more than
    the file can hold.
    """
    width, height = header.width, header.height
    name, pixels = shown(header.path), width * height
    if pixels > max_pixels:
        raise ImageError(
            f"{name}: {width}x{height} is more than the allowed {max_pixels} pixels; cut it first."
        )
    if pixels * header.channels * header.depth > MAX_BYTES:
        raise ImageError(
            f"{name}: {width}x{height} with {header.channels} channels of {8 * header.depth} bits is more "
            f"than the allowed {MAX_BYTES >> 20} MiB; cut it or convert it to 8 bits."
        )
    size = header.stored_bytes
    if header.kind.densest and pixels > size * header.kind.densest:
        raise ImageError(
            f"{name}: broken or truncated picture ({size} bytes cannot hold {width}x{height} pixels)."
        )


def check_header(path: Path) -> None:
    """Raises ImageError for a file that its header already shows to be no picture to read."""
    with header_of(path) as header:
        check_limits(header)


def needs_alpha(path: Path) -> bool:
    """Whether a file is named as a kind without alpha and yet has one (a PNG named .jpg); False for
    what cannot be read.
    """
    named = BY_SUFFIX.get(path.suffix.lower())
    if named is None or named.has_alpha:
        return False
    try:
        with header_of(path) as header:
            return header.has_alpha
    except ImageError:
        return False


def broken(path: Path, reason: str, kind: Format | None = None) -> ImageError:
    """A HEIC is more often whole and of a codec that the libvips at hand was built without."""
    if kind is HEIC:
        return ImageError(
            f"{shown(path)}: this HEIC cannot be read here ({shown(reason)}); convert it to PNG or JPEG."
        )
    return ImageError(f"{shown(path)}: broken or truncated picture ({shown(reason)}).")


@contextmanager
def _open(path: Path) -> Iterator[io.BufferedReader]:
    """A regular file that is not empty. Raises ImageError, also where the body cannot read it."""
    name = shown(path)
    if os.path.isdir(path):
        raise ImageError(f"{name}: is a folder, not a picture.")
    if not os.path.exists(path):  # False for a name that no file can have, too
        raise ImageError(f"{name}: no such file.")
    try:
        # what is no file (a pipe) may block for ever
        if not stat.S_ISREG(path.stat().st_mode):
            raise ImageError(f"{name}: is no regular file; copy the picture into one.")
        with path.open("rb") as file:
            if not os.fstat(file.fileno()).st_size:
                raise ImageError(f"{name}: the file is empty.")
            yield file
    except OSError as error:  # at any time: a disk that fails, a file that is gone
        raise ImageError(f"{name}: cannot be read: {error.strerror or error}.") from None


@contextmanager
def _in_memory(path: Path, content: bytes) -> Iterator[io.BytesIO]:
    if not content:
        raise ImageError(f"{shown(path)}: holds no bytes.")
    yield io.BytesIO(content)


def _by_libvips(path: Path, kind: Format, file: io.BufferedReader | io.BytesIO) -> Header:
    first = first_directory(file) if kind is TIFF else {}
    chunks = read_chunks(file) if kind is PNG else Chunks()
    space = read_space(file) if kind in (AVIF, HEIC) else ()
    lossless = kind is WEBP and is_lossless(file)
    dpi = dpi_in_tags(first) if kind is TIFF else dpi_in_place(file, kind)
    file.seek(0)
    content = file.getvalue() if isinstance(file, io.BytesIO) else None
    try:
        # by descriptor: names with brackets or of bytes that are not UTF-8 are names like others,
        # and libvips caches nothing by name
        source = (
            pyvips.Source.new_from_descriptor(file.fileno())
            if content is None
            else pyvips.Source.new_from_memory(content)
        )
        image: Any = pyvips.Operation.call(
            f"{kind.loader}_source", source, access="sequential", fail_on="error"
        )
    except pyvips.Error as error:
        raise broken(path, reason_of(error), kind) from None
    if space and not image.get_typeof("icc-profile-data"):  # which says more, of this very picture
        chunks = Chunks(space=space)
    if image.interpretation in ("lab", "labs"):
        image = image.colourspace("rgb16")
    gray, cmyk = image.interpretation in _GRAY, image.interpretation == "cmyk"
    if image.format not in _DEPTHS or not (gray or cmyk or image.interpretation in _RGB):
        raise ImageError(
            f"{shown(path)}: {image.interpretation} pixels of type {image.format} are not supported; "
            "convert to 8 or 16-bit RGB."
        )
    colours = 1 if gray else 4 if cmyk else 3
    if image.bands not in (colours, colours + 1):
        raise ImageError(
            f"{shown(path)}: {image.bands} channels are not supported; "
            "convert to grey or RGB, with or without alpha."
        )
    return Header(
        path, kind, image, image.width, image.height, image.bands, _DEPTHS[image.format], gray,
        image.bands > colours, _number(image, "orientation"), max(chunks.frames, _number(image, "n-pages")),
        is_associated(first), exif_of(first), chunks, content, image.format in _LEVELS, lossless, _bits(image), dpi,
    )  # fmt: skip


def _by_pillow(path: Path, kind: Format, file: io.BufferedReader | io.BytesIO) -> Header:
    content = file.getvalue() if isinstance(file, io.BytesIO) else None
    with quiet():  # of many pixels too: check_limits decides
        # what is in memory never gives more than it holds
        bounded = file if isinstance(file, io.BytesIO) else _Bounded(file.raw)
        image = PIL.Image.open(bounded, formats=(str(kind.pillow),))
        turn = image.getexif().get(0x0112, 1)
    if image.mode not in PILLOW_MODES:
        raise ImageError(
            f"{shown(path)}: pixels of kind {image.mode} are not supported; convert to 8-bit RGB."
        )
    mode = pillow_mode(image)
    channels = {"I;16": 1}.get(mode, len(mode))
    return Header(
        path, kind, image, *image.size, channels, 2 if mode == "I;16" else 1, mode[0] in "LI",
        mode[-1] == "A", turn if isinstance(turn, int) else 1, getattr(image, "n_frames", 1),
        content=content, dpi=possible(image.info.get("dpi")),
    )  # fmt: skip


class _Bounded(io.BufferedReader):
    """A file whose `read` never makes room for more than is left: Pillow asks for what headers say."""

    def read(self, size: int | None = -1) -> bytes:
        left = max(0, os.fstat(self.fileno()).st_size - self.tell())
        return super().read(left if size is None or size < 0 else min(size, left))


def pillow_mode(image: PIL.Image.Image) -> str:
    """As which of L, LA, RGB, RGBA and I;16 it is read."""
    mode = PILLOW_MODES[image.mode]
    return {"L": "LA", "RGB": "RGBA"}.get(mode, mode) if image.has_transparency_data else mode


@contextmanager
def _pillow_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (ImageError, MemoryError):
        raise
    except PIL.Image.DecompressionBombError as error:
        raise ImageError(f"{shown(path)}: {shown(error)}; cut it first.") from None
    except Exception as error:  # its readers raise many kinds: SyntaxError, struct.error, KeyError
        raise broken(path, str(error)) from None


def _bits(image: pyvips.Image) -> int | None:
    """Of an AVIF or HEIC with more than 8."""
    is_deep = image.get_typeof("heif-bitdepth") and image.format == "ushort"
    return _number(image, "heif-bitdepth") if is_deep else None


def reason_of(error: pyvips.Error) -> str:
    return first_line(error.detail or error.message)


def _number(image: pyvips.Image, field: str) -> int:
    """A whole number of the header; 1 where it holds none."""
    value = image.get(field) if image.get_typeof(field) else 1
    return value if isinstance(value, int) else 1
