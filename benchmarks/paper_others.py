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
from ldm_dream.scoring.pairing import PairingError, find_partners
from ldm_dream.upscaling.upscaler import Upscaler

from .paper_systems import ARMS, BICUBIC, ORIGINAL, REGRESSION, System, in_a_name
from .scored import Pairs, enlarged


class Other(NamedTuple):
    """path: a model as `upscale.py -n` takes it, or a folder of pictures."""

    name: str
    path: str


def others(words: list[str]) -> list[Other]:
    """NAME=PATH each. Raises UserError."""
    found = [Other(*word.partition("=")[::2]) for word in words]
    taken = {in_a_name(name).lower() for name in (BICUBIC, ORIGINAL, REGRESSION, *ARMS)}
    for other in found:
        if not re.fullmatch(r"[\w .+-]+", other.name) or not other.path:
            raise UserError(
                f"--other {'='.join(other)}: give NAME=PATH, the name of letters, digits, spaces and .+-_."
            )
        if in_a_name(other.name).lower() in taken:
            raise UserError(f"--other {other.name}: there is a row of this name; take another one.")
        taken.add(in_a_name(other.name).lower())
    return found


def made_by(
    other: Other, system: System, pairs: Pairs, scale: int
) -> tuple[list[np.ndarray], str | None]:
    """uint8 [H,W,3] of each pair, and the dtype of a model. Raises UserError for another scale, for a
    picture that is missing and for one of another size.
    """
    folder = Path(other.path).expanduser()
    if folder.is_dir() and not (folder / "config.yaml").exists():
        return _read(other, folder, system, pairs, scale), None
    upscaler = Upscaler.from_pretrained(other.path)
    if upscaler.scale != scale:
        raise UserError(
            f"--other {other.name}: enlarges by {upscaler.scale}, {system.title} by {scale}; leave out "
            "one of them (--systems)."
        )
    return enlarged(upscaler, pairs), name_of(upscaler.dtype)


def _read(other: Other, folder: Path, system: System, pairs: Pairs, scale: int) -> list[np.ndarray]:
    """Results have the size of the pictures that are scored; or of their originals, whole or cut to
    multiples of the scale, and their centre is taken.
    """
    originals = Pictures(system.hr, (), "data.val", says=False)
    paths = {originals.name(i): Path(originals.path(i)) for i in range(len(originals))}
    if len(paths) < len(originals):
        raise UserError(
            f"--other {other.name}: pictures of {system.title} share names, so a folder cannot tell "
            "which is meant; give a model."
        )
    asked = [paths[name] for name, _, _ in pairs]
    try:
        files = find_partners(asked, folder).files
    except PairingError:
        raise UserError(
            f"--other {other.name}: {folder} lacks some of the pictures, or names them in two ways; "
            f"give each the name of its original ({asked[0].name}), or that and one ending."
        ) from None
    made = []
    for original, (_, hr, _) in zip(asked, pairs):
        sr = to_uint8(read_image(files[original]).pixels)
        whole, cut = image_size(original), (hr.shape[-2], hr.shape[-1])
        size = sr.shape[0], sr.shape[1]
        if size == cut:
            made.append(sr)
            continue
        if size not in (whole, tuple(side // scale * scale for side in whole)):
            raise UserError(
                f"--other {other.name}: {files[original]} is {size[1]}x{size[0]}; give the size of "
                f"{original}, or its centre of {cut[1]}x{cut[0]} pixels."
            )
        top, left = ((side - inner) // 2 for side, inner in zip(whole, cut))
        made.append(sr[top : top + cut[0], left : left + cut[1]])
    return made
