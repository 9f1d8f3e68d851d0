"""Pictures to disk: by suffix, whole or not at all."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pyvips

from ldm_dream.data.formats import PNG, TIFF, WRITES, Format, output_format
from ldm_dream.data.header import reason_of
from ldm_dream.data.image import Image, ImageError, to_uint8
from ldm_dream.data.metadata import set_field, with_metadata
from ldm_dream.data.png import with_chunks
from ldm_dream.data.tiff import with_exif
from ldm_dream.errors import shown
from ldm_dream.writing import whole_file

log = logging.getLogger(__name__)


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
        raise ImageError(
            f"{name}: {kind.name} ends at {kind.largest} pixels a side, and this is {width}x{height}; "
            "write png or tif."
        )
    return kind


def write_image(path: str | Path, image: Image) -> None:
    """Write by suffix; an existing file is replaced whole or not at all, and a missing folder is
    made. Raises ImageError for a picture that its kind does not hold, WriteError for a place that
    cannot be written to.

    16 bits stay in PNG and TIFF and are rounded to 8 in the others. JPEG holds no alpha: a picture
    that is not opaque is refused there. What else a kind does not hold is said in a warning.
    """
    path = Path(path)
    height, width = image.pixels.shape[:2]
    kind = check_writable(path, width, height, image.alpha)
    data = _encode(path, kind, image)
    with whole_file(path) as draft:
        draft.write_bytes(data)


def _encode(path: Path, kind: Format, image: Image) -> bytes:
    pixels = image.pixels if kind.has_16_bits else to_uint8(image.pixels)
    alpha = image.alpha if kind.has_alpha else None
    # the mean gives equal channels back exactly and treats a colour cast of the model as noise
    if image.was_gray:
        pixels = np.rint(pixels.mean(2, keepdims=True)).astype(pixels.dtype)
    if alpha is not None:
        alpha = alpha if kind.has_16_bits else to_uint8(alpha)
        pixels = np.concatenate([pixels, alpha[..., None]], 2)
    space = {(True, 1): "b-w", (True, 2): "grey16", (False, 1): "srgb", (False, 2): "rgb16"}[
        image.was_gray, pixels.itemsize
    ]
    picture = pyvips.Image.new_from_array(np.ascontiguousarray(pixels)).copy(interpretation=space)
    if image.icc is not None:
        set_field(picture, "icc-profile-data", image.icc)
    picture, lost = with_metadata(picture, image.metadata, kind)
    if lost:
        log.warning(
            "%s: written without its %s, which %s does not keep here.",
            shown(path), " and ".join(lost), kind.name,
        )  # fmt: skip
    try:
        data = picture.write_to_buffer(kind.suffixes[0], **(kind.save or {}))
    except pyvips.Error as error:
        raise ImageError(f"{shown(path)}: cannot be encoded ({shown(reason_of(error))}).") from None
    if kind is PNG:
        cicp = [(b"cICP", image.cicp)] if image.cicp else []
        return with_chunks(data, [*cicp, *(image.metadata.texts if image.metadata else ())])
    if kind is TIFF and (exif := image.metadata and image.metadata.fields.get("exif-data")):
        with_tags = with_exif(data, exif, picture.width, picture.height)
        if with_tags is None:
            log.warning("%s: written without its EXIF, which is damaged.", shown(path))
        return with_tags or data
    return data
