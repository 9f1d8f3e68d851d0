"""Pictures to disk: by suffix, whole or not at all.

Beside the picture itself only a few rows are in memory: they are encoded straight into the draft,
and what the encoder leaves out is added there. Of a picture that lies in a file (`scratch.py`) no
more than these rows is.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyvips

from ldm_dream.data.formats import AVIF, JPEG, PNG, TIFF, WEBP, WRITES, Format, output_format
from ldm_dream.data.header import reason_of
from ldm_dream.data.image import Image, ImageError, to_uint8
from ldm_dream.data.metadata import keeps_exif, set_field, with_metadata
from ldm_dream.data.png import add_chunks, packed
from ldm_dream.data.resolution import JFIF, add_jfif, drop_from_png, drop_from_tiff
from ldm_dream.data.scratch import let_go, room
from ldm_dream.data.tiff import add_exif
from ldm_dream.errors import shown
from ldm_dream.writing import whole_file

log = logging.getLogger(__name__)

# pixels of a JPEG from which on its Huffman tables are the standard ones: to fit them, libjpeg holds
# all coefficients, 6 bytes a pixel
LARGE_JPEG = 2**26
DEEP_AVIF = 10  # bits of an AVIF that is made of 16; the most that browsers agree on
STRIP = 2**18  # pixels that are brought into the depth and channels of the file at a time


def check_writable(path: Path, width: int, height: int, alpha: np.ndarray | None = None) -> Format:
    """-> the kind that `path` names. Raises ImageError where it cannot hold such a picture: to be
    asked before the picture is computed. alpha: of the picture it is made from.
    """
    name, kind = shown(path), output_format(path)
    if kind is None:
        raise ImageError(
            f"{name}: cannot write {shown(path.suffix) or 'a name without suffix'}; use one of {', '.join(WRITES)}."
        )
    if not kind.has_alpha and alpha is not None and alpha.min() < np.iinfo(alpha.dtype).max:
        raise ImageError(f"{name}: {kind.name} cannot hold transparency; write png, webp or tif.")
    if max(width, height) > kind.largest:
        larger = [one.suffixes[0][1:] for one in (PNG, TIFF) if max(width, height) <= one.largest]
        advice = f"write {' or '.join(larger)}" if larger else "make it smaller"
        raise ImageError(
            f"{name}: {kind.name} ends at {kind.largest} pixels a side, and this is {width}x{height}; "
            f"{advice}."
        )
    return kind


def check_quality(quality: int | None, targets: Iterable[Path]) -> None:
    """Raises ImageError for a quality that is not possible, and where no target has one."""
    if quality is None:
        return
    if not 1 <= quality <= 100:
        raise ImageError(
            f"quality={quality} is not possible; give a whole number from 1 (small) to 100 (good)."
        )
    kinds = {kind.name: kind for path in targets if (kind := output_format(path))}
    if kinds and not any(kind.has_quality for kind in kinds.values()):
        raise ImageError(
            f"quality={quality} changes nothing in {' and '.join(kinds)}; leave it out, "
            "or write jpg, webp or avif."
        )


def write_image(path: str | Path, image: Image, quality: int | None = None) -> None:
    """Write by suffix; an existing file is replaced whole or not at all, and a missing folder is
    made. Raises ImageError for a picture that its kind does not hold, WriteError for a place that
    cannot be written to.

    quality: of JPEG, WebP and AVIF, 1 to 100; None: high, and a picture from a lossless WebP is
    lossless in WebP again. 16 bits stay in PNG and TIFF, become 10 (or what they were) in AVIF, and
    8 in the others. JPEG holds no alpha: a picture that is not opaque is refused there. What else a
    kind does not hold is said in a warning.
    """
    path = Path(path)
    height, width = image.pixels.shape[:2]
    kind = check_writable(path, width, height, image.alpha)
    with whole_file(path) as draft, draft.open("r+b") as file:
        _encode(path, kind, image, file, quality)


def _encode(path: Path, kind: Format, image: Image, file: BinaryIO, quality: int | None) -> None:
    pixels = _as_stored(image, kind)
    space = {(True, 1): "b-w", (True, 2): "grey16", (False, 1): "srgb", (False, 2): "rgb16"}[
        image.was_gray, pixels.itemsize
    ]
    picture = pyvips.Image.new_from_array(pixels).copy(interpretation=space)
    if image.icc is not None:
        set_field(picture, "icc-profile-data", image.icc)
    picture, lost = with_metadata(picture, image.metadata, kind)
    # on this object, which lives until all is written
    picture.set_progress(True)
    picture.signal_connect("eval", lambda *_: let_go(pixels))
    if lost:
        log.warning(
            "%s: written without its %s, which %s does not keep here.",
            shown(path), " and ".join(lost), kind.name,
        )  # fmt: skip
    # the room for what libvips leaves out, which stands before the rest
    chunks, has_jfif = b"", kind is JPEG and not keeps_exif(image.metadata, kind)
    if kind is PNG:
        chunks = packed([*image.space, *(image.metadata.texts if image.metadata else ())])
    file.seek(JFIF if has_jfif else len(chunks))
    try:
        target = pyvips.Target.new_to_descriptor(file.fileno())
        picture.write_to_target(target, kind.suffixes[0], **_options(kind, image, quality))
    except pyvips.Error as error:
        for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO):
            if os.strerror(code) in error.detail:
                raise OSError(code, os.strerror(code)) from None
        raise ImageError(f"{shown(path)}: cannot be encoded ({shown(reason_of(error))}).") from None
    dpi = image.metadata and image.metadata.dpi
    if has_jfif:
        add_jfif(file, dpi)
    if kind is PNG:
        if dpi is None:
            drop_from_png(file, len(chunks))
        add_chunks(file, chunks)
    if kind is TIFF and dpi is None:
        drop_from_tiff(file)
    exif = image.metadata and image.metadata.fields.get("exif-data")
    size = picture.width, picture.height
    if kind is TIFF and exif and not add_exif(file, exif, *size):
        log.warning("%s: written without its EXIF, which is damaged.", shown(path))


def _options(kind: Format, image: Image, quality: int | None) -> dict[str, Any]:
    """Of libvips."""
    kept = ["xmp", "iptc", "icc", "other"]
    if keeps_exif(image.metadata, kind):
        kept.append("exif")
    return {"keep": _flags(kept)} | _of_pixels(kind, image, quality)


def _flags(names: list[str]) -> int:
    return sum(getattr(pyvips.ForeignKeep, name.upper()) for name in names)


def _of_pixels(kind: Format, image: Image, quality: int | None) -> dict[str, Any]:
    if kind is WEBP and image.is_lossless and quality is None:
        return {"lossless": True}
    height, width = image.pixels.shape[:2]
    options = dict(kind.save or {})
    if kind is JPEG and width * height > LARGE_JPEG:
        options["optimize_coding"] = False
    if kind is AVIF:
        options["bitdepth"] = 8 if image.pixels.itemsize == 1 else image.bits or DEEP_AVIF
    return options | ({"Q": quality} if quality is not None and kind.has_quality else {})


def _as_stored(image: Image, kind: Format) -> np.ndarray:
    """[H, W, channels] in the depth of the file: the picture's own array where that is so already."""
    alpha = image.alpha if kind.has_alpha else None
    height, width = image.pixels.shape[:2]
    dtype = image.pixels.dtype if kind.has_16_bits else np.dtype(np.uint8)
    if alpha is None and not image.was_gray and image.pixels.dtype == dtype:
        return np.ascontiguousarray(image.pixels)
    colours = 1 if image.was_gray else 3
    stored = room((height, width, colours + (alpha is not None)), dtype)
    step = max(1, STRIP // width)
    for rows in (slice(top, top + step) for top in range(0, height, step)):
        pixels = image.pixels[rows] if kind.has_16_bits else to_uint8(image.pixels[rows])
        # the mean gives equal channels back exactly and treats a colour cast of the model as noise
        mean = np.rint(pixels.mean(2, keepdims=True)) if image.was_gray else pixels
        stored[rows, :, :colours] = mean
        if alpha is not None:
            stored[rows, :, colours] = alpha[rows] if kind.has_16_bits else to_uint8(alpha[rows])
        let_go(stored)
        let_go(image.pixels)
    return stored
