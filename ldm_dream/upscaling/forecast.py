"""Forecast: how many pixels and bytes a plan will make, told before the work.

Of a long folder only some pictures are looked at, evenly spaced; the others count as these do.
"""

from __future__ import annotations

import math
import os
import shutil
from dataclasses import dataclass

from ldm_dream.data.images import ImageError, image_size
from ldm_dream.upscaling.planning import Job
from ldm_dream.upscaling.sizes import Size

LOOKED_AT = 256  # pictures
LONG_WORK = 2**24  # pixels of results; what makes more takes minutes on a CPU
RAW = 3  # bytes of an RGB pixel of 8 bits
# pixels a byte of a file; more are what a header claims and the file cannot hold
MOST_IN_A_BYTE = 1000
UNITS = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


@dataclass(frozen=True)
class Forecast:
    """pixels, results: of the pictures and of what they become. size: bytes of the results,
    about. free: bytes in the place they go to, None where there is no such place.
    """

    pictures: int
    pixels: float
    results: float
    size: float
    free: int | None

    @property
    def is_large(self) -> bool:
        """Whether a user would want to know before it begins."""
        return self.results > LONG_WORK or not self.fits

    @property
    def fits(self) -> bool:
        return self.free is None or self.size <= self.free

    def __str__(self) -> str:
        pictures = "1 picture" if self.pictures == 1 else f"{self.pictures} pictures"
        free = "" if self.free is None else f"; {in_bytes(self.free)} are free there"
        warning = "" if self.fits else ", which may not be enough"
        return (
            f"{pictures} of {self.pixels / 1e6:.1f} megapixels become {self.results / 1e6:.1f} "
            f"megapixels, about {in_bytes(self.size)}{free}{warning}"
        )


def forecast(jobs: list[Job], wanted: Size, skip_existing: bool) -> Forecast:
    """Pictures that cannot be read count as nothing, as do with skip_existing those whose result is
    there.
    """
    todo = [job for job in jobs if not (skip_existing and job.target.exists())]
    looked = todo[:: -(-len(todo) // LOOKED_AT)] if todo else []
    found = [_one(job, wanted) for job in looked]
    pixels, results, size = (
        (sum(column) * len(todo) / len(looked) for column in zip(*found))
        if found
        else (0.0, 0.0, 0.0)
    )
    return Forecast(len(todo), pixels, results, size, _free(jobs))


def _one(job: Job, wanted: Size) -> tuple[float, float, float]:
    """-> pixels of the picture, of its result, and bytes of that: as many a pixel as the picture
    has where both are of one kind, else those of raw pixels, which are more.
    """
    try:
        size = image_size(job.source)
        bytes_there = os.path.getsize(job.source)
    except (ImageError, OSError):
        return 0.0, 0.0, 0.0
    claimed = math.prod(size)
    pixels = believed(claimed, bytes_there)
    result = math.prod(wanted.of(size)) * pixels / claimed
    same_kind = job.source.suffix.lower() == job.target.suffix.lower()
    return pixels, result, result * (bytes_there / pixels if same_kind else RAW)


def believed(pixels: float, size: int) -> float:
    """As many of the pixels that a header says as a file of `size` bytes can hold."""
    return min(pixels, MOST_IN_A_BYTE * size)


def _free(jobs: list[Job]) -> int | None:
    if not jobs:
        return None
    place = next((p for p in jobs[0].target.resolve().parents if p.is_dir()), None)
    return None if place is None else shutil.disk_usage(place).free


def in_bytes(count: float) -> str:
    """2.5e9 -> "2.5 GB"."""
    for unit, name in UNITS:
        if count >= unit:
            return f"{count / unit:.1f} {name}"
    return f"{count:.0f} bytes"
