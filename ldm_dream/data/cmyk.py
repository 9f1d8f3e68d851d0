"""CMYK to sRGB, by the profile that the picture brings or else the one of libvips, so that a colour
is the same from whatever file or library it comes.
"""

from __future__ import annotations

import numpy as np
import pyvips

from ldm_dream.data.metadata import set_field

_INKS = 4


def to_srgb(image: pyvips.Image) -> pyvips.Image:
    """A picture of 8 or 16 bits, with or without alpha behind the inks -> in the same depth."""
    inks, depth = image[:_INKS], 8 if image.format == "uchar" else 16
    made = inks.icc_transform("srgb", embedded=True, input_profile="cmyk", depth=depth)
    return made if image.bands == _INKS else made.bandjoin(image[_INKS:])


def as_cmyk(bands: np.ndarray, profile: bytes | None) -> pyvips.Image:
    """[H, W, 4] as a picture of libvips."""
    image = pyvips.Image.new_from_array(bands).copy(interpretation="cmyk")
    if profile:
        set_field(image, "icc-profile-data", profile)
    return image
