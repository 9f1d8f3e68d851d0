"""Pictures from disk: every one becomes upright RGB, alpha apart and straight.

What cannot be read whole is an `ImageError` of one sentence; half a picture is never returned. What
is read in another way than it stands in the file is said in a warning.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pyvips

from ldm_dream.data import jpeg
from ldm_dream.data.cmyk import as_cmyk, to_srgb
from ldm_dream.data.formats import JPEG, MAX_PIXELS, PNG
from ldm_dream.data.header import Header, broken, check_limits, header_of, pillow_mode, reason_of
from ldm_dream.data.image import Image, ImageError
from ldm_dream.data.metadata import Metadata, read_metadata
from ldm_dream.data.png import other_space
from ldm_dream.data.tiff import libvips_divides
from ldm_dream.errors import shown

log = logging.getLogger(__name__)

_TURNS = {  # EXIF orientation -> upright, of [H, W, C]
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: np.rot90(x, -1),
    7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
    8: lambda x: np.rot90(x),
}
# what 1.0 of other pictures is, in pictures of floats, and of whole numbers of other kinds
_FLOAT_LEVELS, _WHOLE_LEVELS = (1, 255, 65535), (255, 65535, 2**31 - 1, 2**32 - 1)
# floats: how far editors overshoot a range, below it and above, and how much of it is used at least
_BELOW, _ABOVE, _USED = 0.1, 2, 1 / 16
_GAIN_MAPS = (b"hdrgm:Version", b"HDRGainMapVersion")  # in XMP: of ISO 21496-1 and of Apple


def read_image(
    path: str | Path, max_pixels: int = MAX_PIXELS, content: bytes | None = None
) -> Image:
    """Decode a picture of any kind that is readable here (8, 16 or 32 bits or float; grey, palette,
    RGB, CMYK or Lab, with or without alpha). content: what it holds, where `path` only names it.
    Raises ImageError.

    More than `max_pixels` is refused from the header, before anything is decoded. CMYK and Lab become
    sRGB, floats and 32 bits become 16, an alpha that colours are multiplied by becomes straight.
    """
    path = Path(path)
    with header_of(path, content) as header:
        check_limits(header, max_pixels)
        _say_what_changes(header)
        if isinstance(header.opened, pyvips.Image):
            return _from_libvips(header, header.opened)
        return _from_pillow(header, header.opened)


def read_window(
    path: str | Path, rows: slice, columns: slice, content: bytes | None = None
) -> np.ndarray | None:
    """That part of `read_image(path, content=content).pixels`, decoded no further than its last row;
    None for what is decoded whole for any part of it.

    For a file that was once read whole: damage elsewhere is not seen, and nothing is said of what is
    read in another way than it stands there. Raises ImageError.
    """
    with header_of(Path(path), content) as header:
        image = header.opened
        if not isinstance(image, pyvips.Image) or not _is_in_rows(header, image):
            return None
        size = columns.stop - columns.start, rows.stop - rows.start
        try:
            bands = np.atleast_3d(image.crop(columns.start, rows.start, *size).numpy())
        except pyvips.Error as error:
            raise broken(header.path, reason_of(error), header.kind) from None
        return _picture(header, bands, None, Metadata({})).pixels


def _is_in_rows(header: Header, image: pyvips.Image) -> bool:
    """Whether rows of the picture are rows of the file, decoded one by one, with nothing to convert
    that takes more than one of them.
    """
    return (
        header.kind in (PNG, JPEG)
        and header.are_levels
        and header.frames == 1
        and header.orientation not in _TURNS
        and image.interpretation != "cmyk"
    )


def image_size(path: str | Path, content: bytes | None = None) -> tuple[int, int]:
    """(height, width) of the upright picture, from the header alone. Raises ImageError."""
    with header_of(Path(path), content) as header:
        return header.size


def _say_what_changes(header: Header) -> None:
    name = shown(header.path)
    if header.frames > 1:
        log.warning("%s: has %d pages or frames; only the first is used.", name, header.frames)
    if header.is_associated and header.has_alpha:
        log.warning("%s: its colours are multiplied by alpha; they become straight.", name)
    damaged = header.chunks.damaged
    if header.chunks.is_doubtful:
        raise broken(header.path, f"chunk {', '.join(damaged)}: wrong checksum")
    if damaged:
        log.warning("%s: damaged, and left out: %s.", name, shown(", ".join(damaged)))
    opened = header.opened
    has_profile = isinstance(opened, pyvips.Image) and _profile(opened) is not None
    if other := other_space(header.chunks.space, has_profile):
        log.warning(
            "%s: its colours are of another kind than sRGB (%s); they are enlarged as they stand, "
            "and only a PNG keeps the mark.",
            name, other,
        )  # fmt: skip


def _from_libvips(header: Header, image: pyvips.Image) -> Image:
    icc = _profile(image)
    metadata = read_metadata(image, header.exif, header.chunks.texts, header.dpi)
    if any(name in metadata.fields.get("xmp-data", b"") for name in _GAIN_MAPS):
        log.warning(
            "%s: its gain map for HDR screens is left out; it is enlarged as other screens show it.",
            shown(header.path),
        )
    bands = _decode(header, image)
    if image.interpretation == "cmyk":
        log.warning("%s: its CMYK becomes sRGB.", shown(header.path))
        icc = None
    return _picture(header, bands, icc, metadata)


def _decode(header: Header, image: pyvips.Image) -> np.ndarray:
    """-> [H, W, bands] of grey or RGB, alpha straight."""
    try:
        if header.kind is JPEG:
            bands, repaired = jpeg.decode(header.read_stored())
            if repaired:
                log.warning("%s: %s.", shown(header.path), repaired)
            if image.interpretation != "cmyk":
                return np.atleast_3d(bands)
            image = as_cmyk(bands, _profile(image))
        return np.atleast_3d(_converted(header, image).numpy())
    except pyvips.Error as error:
        raise broken(header.path, reason_of(error), header.kind) from None
    except jpeg.BrokenJpeg as error:
        raise broken(header.path, str(error)) from None


def _converted(header: Header, image: pyvips.Image) -> pyvips.Image:
    if image.interpretation == "cmyk":
        image = to_srgb(image)
    if header.is_associated and header.has_alpha and not libvips_divides():
        kind, top = image.format, {1: 255, 2: 65535}.get(header.depth, 1)
        image = image.unpremultiply(max_alpha=top)
        image = image.rint().cast(kind) if header.depth < 4 else image.cast(kind)
    return image


def _profile(image: pyvips.Image) -> bytes | None:
    icc: Any = image.get("icc-profile-data") if image.get_typeof("icc-profile-data") else None
    return None if icc is None else bytes(icc)


def _from_pillow(header: Header, image: PIL.Image.Image) -> Image:
    image.load()
    mode = pillow_mode(image)
    bands = np.atleast_3d(np.array(image if image.mode == mode else image.convert(mode)))
    icc = None if image.mode == "CMYK" else image.info.get("icc_profile")
    names = {"exif": "exif-data", "xmp": "xmp-data"}
    fields = {
        names[key]: image.info[key] for key in names if isinstance(image.info.get(key), bytes)
    }
    return _picture(header, bands, icc, Metadata(fields, header.dpi))


def _picture(header: Header, bands: np.ndarray, icc: bytes | None, metadata: Metadata) -> Image:
    """bands: [H, W, colours + alpha] as stored -> the upright picture."""
    if not header.are_levels:
        bands = _sixteen_bits(header.path, bands)
    if header.orientation in _TURNS:
        bands = _TURNS[header.orientation](bands)
    colours = 1 if header.is_gray else 3
    pixels = np.ascontiguousarray(bands[..., :colours])
    pixels = np.repeat(pixels, 3, axis=2) if header.is_gray else pixels
    alpha = np.ascontiguousarray(bands[..., colours]) if header.has_alpha else None
    return Image(
        pixels, alpha, icc, header.is_gray, header.chunks.space, metadata, header.is_lossless, header.bits
    )  # fmt: skip


def _sixteen_bits(path: Path, bands: np.ndarray) -> np.ndarray:
    """Numbers in the smallest range from 0 on that holds them -> uint16; the ranges end at 1 (of
    floats), 255, 65535 and with 31 or 32 bits. Floats a little outside are clipped. Raises ImageError
    where no range is likely.
    """
    low, high = float(bands.min()), float(bands.max())
    if not np.isfinite([low, high]).all():
        raise ImageError(f"{shown(path)}: holds NaN or infinity; give it finite values.")
    is_float = np.issubdtype(bands.dtype, np.floating)
    known = _FLOAT_LEVELS if is_float else _WHOLE_LEVELS
    below, above = (_BELOW, _ABOVE) if is_float else (0, 1)
    levels = next((top for top in known if high <= top or high < top * above), None)
    is_dark = is_float and levels != 1 and levels is not None and high < levels * _USED
    if levels is None or low < -below * levels or is_dark:
        raise ImageError(
            f"{shown(path)}: its values reach from {low:g} to {high:g}; scale them to [0, 1]."
        )
    is_outside = low < 0 or high > levels
    log.warning(
        "%s: %s from %g to %g, %sread as [0, %d] and written in 16 bits.",
        shown(path), "floats" if is_float else f"{bands.dtype} numbers", low, high,
        "clipped, " if is_outside else "", levels,
    )  # fmt: skip
    inside = bands.clip(0, levels) if is_outside else bands
    return np.rint(inside * (65535 / levels)).astype(np.uint16)
