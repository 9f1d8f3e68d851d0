"""Rows of others in the tables of `paper`: made by a model of theirs, or a folder of their results."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ldm_dream.data.image import to_uint8
from ldm_dream.data.images import image_size, read_image
from ldm_dream.data.sources import Pictures
from ldm_dream.dtypes import name_of
from ldm_dream.errors import UserError
from ldm_dream.scoring.pairing import find_partners
from ldm_dream.upscaling.upscaler import Upscaler

from .paper_systems import ARMS, BICUBIC, ORIGINAL, REGRESSION, System
from .scored import Pairs, enlarged


class Other(NamedTuple):
    """path: a model as `upscale.py -n` takes it, or a folder of pictures."""

    name: str
    path: str


def others(words: list[str]) -> list[Other]:
    """NAME=PATH each. Raises UserError."""
    found = [Other(*word.partition("=")[::2]) for word in words]
    taken = {BICUBIC, ORIGINAL, REGRESSION, *ARMS}
    for other in found:
        if not re.fullmatch(r"[\w .+-]+", other.name) or not other.path:
            raise UserError(
                f"--other {'='.join(other)}: give NAME=PATH, the name of letters, digits, spaces and .+-_."
            )
        if other.name in taken:
            raise UserError(f"--other {other.name}: there is a row of this name; take another one.")
        taken.add(other.name)
    return found


def made_by(
    other: Other, system: System, pairs: Pairs, scale: int
) -> tuple[list[np.ndarray], str | None]:
    """uint8 [H,W,3] of each pair, and the dtype of a model. Raises UserError for another scale, for a
    picture that is missing and for one of another size.
    """
    folder = Path(other.path).expanduser()
    if folder.is_dir() and not (folder / "config.yaml").exists():
        return _read(other, folder, system, pairs), None
    upscaler = Upscaler.from_pretrained(other.path)
    if upscaler.scale != scale:
        raise UserError(
            f"--other {other.name}: enlarges by {upscaler.scale}, {system.title} by {scale}; leave out "
            "one of them (--systems)."
        )
    return enlarged(upscaler, pairs), name_of(upscaler.dtype)


def _read(other: Other, folder: Path, system: System, pairs: Pairs) -> list[np.ndarray]:
    """Results have the size of the pictures that are scored, or of their originals, whose centre
    these are.
    """
    originals = Pictures(system.hr, (), "data.val", says=False)
    paths = {originals.name(i): Path(originals.path(i)) for i in range(len(originals))}
    asked = [paths[name] for name, _, _ in pairs]
    files = find_partners(asked, folder).files
    made = []
    for original, (_, hr, _) in zip(asked, pairs):
        sr = to_uint8(read_image(files[original]).pixels)
        size, (height, width) = sr.shape[:2], hr.shape[-2:]
        if size not in ((height, width), image_size(original)):
            raise UserError(
                f"--other {other.name}: {files[original]} is {size[0]}x{size[1]}; give the size of "
                f"{original}, or its centre of {height}x{width} pixels."
            )
        top, left = (size[0] - height) // 2, (size[1] - width) // 2
        made.append(sr[top : top + height, left : left + width])
    return made
