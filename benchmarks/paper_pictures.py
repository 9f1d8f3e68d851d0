"""The pictures of `docs/paper.html`: of every arm the first ones side by side, and of each picture a
magnified cut where it has the most detail.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image

from .paper_systems import ORIGINAL, in_a_name

CUT = 3  # a cut has a third of the picture's side
Pixels = np.ndarray  # uint8 [H, W, 3]


def strip_of(rows: Path, scale: str, system: str, arm: str) -> Path:
    """Where the first pictures of an arm lie side by side, squares, beside the file of the rows."""
    return rows.with_suffix("") / f"{scale}-{system}-{in_a_name(arm)}.webp"


def pictures(rows: Path, scale: str, name: str, arms: Iterable[str]) -> str:
    """arms: those whose pictures are not there are left out."""
    places = {arm: strip_of(rows, scale, name, arm) for arm in arms}
    strips = {arm: path for arm, path in places.items() if path.exists()}
    parts = ["<h3>Pictures (Figures 4 to 6, 9, 15 to 22)</h3>"]
    parts += [
        f"<figure><figcaption>{escape(arm)}</figcaption>{_image(path.read_bytes(), arm)}</figure>"
        for arm, path in strips.items()
    ]
    if ORIGINAL in strips:
        parts.append(_cuts({arm: np.asarray(Image.open(path)) for arm, path in strips.items()}))
    return "\n".join(parts)


def _cuts(strips: dict[str, Pixels]) -> str:
    """A line for each picture. A strip that was made of pictures of another size is left out."""
    side, shape = len(strips[ORIGINAL]), strips[ORIGINAL].shape
    strips = {arm: strip for arm, strip in strips.items() if strip.shape == shape}
    size, lines = side // CUT, []
    for left in range(0, strips[ORIGINAL].shape[1], side):
        top, begin = detailed(strips[ORIGINAL][:, left : left + side], size)
        place = np.s_[top : top + size, left + begin : left + begin + size]
        cells = (f"<td>{_image(_encoded(strip[place]), arm)}</td>" for arm, strip in strips.items())
        lines.append(f"<tr>{''.join(cells)}</tr>")
    head = "".join(f"<th>{escape(arm)}</th>" for arm in strips)
    caption = "The third of each picture with the most detail, magnified"
    return (
        f'<table class="cuts"><caption>{caption}</caption><tr>{head}</tr>{"".join(lines)}</table>'
    )


def detailed(picture: Pixels, size: int) -> tuple[int, int]:
    """Row and column where the square of `size` with the most difference between neighbours begins."""
    grey = picture.mean(2)
    change = np.abs(np.diff(grey, axis=0, append=grey[-1:]))
    change += np.abs(np.diff(grey, axis=1, append=grey[:, -1:]))
    sums = np.pad(change.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    square = sums[size:, size:] - sums[:-size, size:] - sums[size:, :-size] + sums[:-size, :-size]
    top, left = np.unravel_index(square.argmax(), square.shape)
    return int(top), int(left)


def _encoded(pixels: Pixels) -> bytes:
    made = io.BytesIO()
    Image.fromarray(pixels).save(made, "WEBP", lossless=True)
    return made.getvalue()


def _image(webp: bytes, arm: str) -> str:
    data = base64.b64encode(webp).decode()
    return f'<img alt="{escape(arm)}" src="data:image/webp;base64,{data}">'
