"""What a cut of a photo takes as PNG, packed in several ways: bytes, and time to write and to read.

    python -m benchmarks png-levels --hr PHOTOS

One thread, the ways in turns, the middle of the repetitions. The data sets that tools/prepare_data.py
makes are packed as ldm_dream/preparing/pictures.py says, by these figures.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pyvips
from PIL.Image import Image

from benchmarks.measure import percentiles, seconds
from ldm_dream.data.images import find_images
from ldm_dream.errors import UserError
from ldm_dream.preparing.pictures import PictureError, SubImages, open_picture, to_png

SIDE = 480  # of BasicSR's sub-images
WAYS = [(level, filter) for level in (0, 1, 3, 6) for filter in ("none", "sub", "all")]
Calls = dict[str, Callable[[], list]]


def main(args: argparse.Namespace) -> None:
    cuts = _cuts(Path(args.hr), args.count)
    packed = {way: [to_png(cut, *way) for cut in cuts] for way in WAYS}
    write: Calls = {f"{way}": partial(_write, cuts, way) for way in WAYS}
    read: Calls = {f"{way}": partial(_read, packed[way]) for way in WAYS}
    writing, reading = (seconds(calls, args.repetitions, "cpu") for calls in (write, read))
    print(f"{len(cuts)} cuts of {SIDE}x{SIDE}: level, filter, kB, ms to write, ms to read")
    for way in WAYS:
        size = sum(map(len, packed[way])) / len(cuts) / 1e3
        times = [percentiles(t[f"{way}"])["p50"] / len(cuts) * 1e3 for t in (writing, reading)]
        print(f"{way[0]}  {way[1]:4}  {size:5.0f}  {times[0]:6.2f}  {times[1]:6.2f}")


def _cuts(folder: Path, count: int) -> list[Image]:
    cuts: list[Image] = []
    for path in find_images(folder, recursive=True):
        try:
            image = open_picture(path.read_bytes())
        except PictureError:
            continue
        if min(image.size) >= SIDE:
            cuts.append(SubImages(SIDE, SIDE)(image, "")[0][1])
        if len(cuts) == count:
            break
    if not cuts:
        raise UserError(f"{folder}: holds no picture of {SIDE} pixels a side; name another folder.")
    return cuts


def _write(cuts: list[Image], way: tuple[int, str]) -> list[bytes]:
    return [to_png(cut, *way) for cut in cuts]


def _read(pngs: list[bytes]) -> list[np.ndarray]:
    return [pyvips.Image.new_from_buffer(png, "", access="sequential").numpy() for png in pngs]
