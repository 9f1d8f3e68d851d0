"""What the browser shows: pictures as PNG, the bar of progress, sentences. HTML is made here only,
and every text in it is escaped.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import PIL.Image

from ldm_dream.app.told import Now, Result
from ldm_dream.data.images import Image, to_uint8, write_image
from ldm_dream.upscaling.progress import in_time
from ldm_dream.upscaling.watch import PREVIEW

MOST = 2**24  # pixels of a picture in the browser; a larger one is shown smaller
STRIP = 256  # rows of it that are made at a time
WAITING = "Waiting for its turn."


def write_view(path: Path, image: Image) -> Path:
    """`image` as 8-bit PNG that every browser shows, of at most MOST pixels: a larger one by means of
    whole squares.
    """
    height, width = image.pixels.shape[:2]
    step = 1
    while (height // step) * (width // step) > MOST:
        step += 1
    alpha = None if image.alpha is None else _smaller(image.alpha[..., None], step)[..., 0]
    write_image(
        path, replace(image, pixels=_smaller(image.pixels, step), alpha=alpha, metadata=None)
    )
    return path


def _smaller(bands: np.ndarray, step: int) -> np.ndarray:
    """[H, W, C] -> uint8 [H / step, W / step, C]."""
    if step == 1:
        return to_uint8(bands)
    height, width = (max(1, side // step) for side in bands.shape[:2])
    made = np.empty((height, width, bands.shape[2]), np.uint8)
    for top in range(0, height, STRIP):
        rows = slice(top, min(top + STRIP, height))
        part = to_uint8(bands[rows.start * step : rows.stop * step, : width * step])
        squares = part.reshape(-1, step, width, step, part.shape[-1])
        made[rows] = np.rint(squares.mean((1, 3), dtype=np.float32))
    return made


def before_work(image: Image, size: tuple[int, int]) -> PIL.Image.Image:
    """What is seen of the work until something is made: `image` as large as previews of a result of
    `size` (height, width) are.
    """
    step = -(-max(image.pixels.shape[:2]) // (2 * PREVIEW))  # so much is enough
    small = np.ascontiguousarray(to_uint8(image.pixels[::step, ::step]))
    part = -(-max(size) // PREVIEW)
    high, wide = (-(-side // part) for side in size)
    return PIL.Image.fromarray(small).resize((wide, high), PIL.Image.Resampling.BICUBIC)


def comparison(result: Result) -> dict[str, Any]:
    """What `comparing.js` draws: pictures that lie over each other, in pixels of the result."""
    width, height = result.size
    pictures = [
        {"name": view.name, "url": f"gradio_api/file={quote(str(view.path))}", "size": f"{view.size[0]} x {view.size[1]}"}
        for view in result.views
    ]  # fmt: skip
    return {"name": result.name, "width": width, "height": height, "pictures": pictures}


def progress(now: Now) -> str:
    """Which picture, a bar, steps and tiles, the time left, and the picture as far as it is."""
    which = f"{now.picture} of {now.pictures}: " if now.pictures > 1 else ""
    first = f"<p><b>{escape(which + now.name)}</b> {escape(now.model)}</p>"
    if not now.total:
        doing = WAITING if now.is_waiting else "Reading the picture."
        return f"{first}<progress></progress><p>{doing}</p>"
    share = now.done / now.total
    bar = f'<progress max="1" value="{share:.4f}" aria-label="How far this picture is"></progress>'
    parts = [f"{share:.0%}", _steps(now)]
    if (left := now.left()) is not None:
        parts.append(f"about {in_time(left)} left")
    return f"{first}{bar}<p>{', '.join(parts)}</p>{_shown(now.preview)}"


def _steps(now: Now) -> str:
    """Of all tiles: which of them is on its way is not known, since several are."""
    tiles = now.total // now.calls
    step = f"step {min(now.done + 1, now.total)} of {now.total}"
    return f"{step}, {tiles} tiles" if tiles > 1 else step


def _shown(preview: PIL.Image.Image | None) -> str:
    if preview is None:
        return ""
    file = io.BytesIO()
    preview.convert("RGB").save(file, "JPEG", quality=85)
    data = base64.b64encode(file.getvalue()).decode()
    return f'<img src="data:image/jpeg;base64,{data}" alt="The picture as far as it is">'


def sentences(texts: Iterable[str], is_error: bool = False) -> str:
    """A line for each. An error is read out at once."""
    role = ' class="error" role="alert"' if is_error else ""
    return "".join(f"<p{role}>{escape(text)}</p>" for text in texts if text)


def summary(result: Result) -> str:
    """`photo.jpg: 80 x 60 became 320 x 240.`"""
    old, new = (f"{width} x {height}" for width, height in (result.size_in, result.size))
    note = f" ({result.note})" if result.note else ""
    return f"{result.name}: {old} became {new} pixels{note}."
