"""Pictures of Pillow <-> arrays: upright, in a mode that can hold the result, with what `info` says.

`info` stays as Pillow's own methods keep it, but for what is no longer true: the orientation and
the pixel sizes of EXIF, a transparent colour (now in alpha) and the profile of CMYK.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import PIL.Image
from PIL import ExifTags, ImageOps

from ldm_dream.data.cmyk import as_cmyk, to_srgb
from ldm_dream.data.images import ImageError

# Palettes and 1-bit pictures come back as RGB(A) and L: their colours cannot hold what the model
# adds.
_TARGETS = {
    "1": "L",
    "L": "L",
    "LA": "LA",
    "P": "RGB",
    "PA": "RGBA",
    "CMYK": "RGB",
    "RGB": "RGB",
    "RGBA": "RGBA",
}


def unpack(image: PIL.Image.Image) -> tuple[np.ndarray, Callable[[np.ndarray], PIL.Image.Image]]:
    """-> [H, W] or [H, W, 2 .. 4] of uint8 or uint16, and what makes a picture of such an array
    again. Raises ImageError for a mode that is not supported.
    """
    upright = ImageOps.exif_transpose(image)
    info = {name: value for name, value in upright.info.items() if name != "transparency"}
    if image.mode == "CMYK":
        info.pop("icc_profile", None)
    bands = _bands(upright)

    def pack(bands: np.ndarray) -> PIL.Image.Image:
        result = PIL.Image.fromarray(bands)
        result.info = dict(info)
        if "exif" in info:
            result.info["exif"] = _exif_of_size(result)
        return result

    return bands, pack


def _bands(image: PIL.Image.Image) -> np.ndarray:
    if image.mode.startswith("I;16"):
        return np.asarray(image).astype(np.uint16)
    if image.mode not in _TARGETS:
        raise ImageError(
            f"a PIL picture of mode {image.mode} is not supported; convert it to RGB, RGBA, L or I;16."
        )
    if image.mode == "CMYK":
        inks = np.asarray(image)
        return to_srgb(as_cmyk(inks, image.info.get("icc_profile"))).numpy()
    target = _TARGETS[image.mode]
    if image.has_transparency_data:
        target = {"L": "LA", "RGB": "RGBA"}.get(target, target)
    return np.asarray(image.convert(target))


def _exif_of_size(image: PIL.Image.Image) -> bytes:
    """Its EXIF with the sizes, where they stand, made its own."""
    exif = image.getexif()
    sizes = {
        ExifTags.Base.ImageWidth: image.width,
        ExifTags.Base.ImageLength: image.height,
        ExifTags.Base.ExifImageWidth: image.width,
        ExifTags.Base.ExifImageHeight: image.height,
    }
    for tags in (exif, exif.get_ifd(ExifTags.IFD.Exif)):
        tags.update({tag: size for tag, size in sizes.items() if tag in tags})
    return exif.tobytes()
