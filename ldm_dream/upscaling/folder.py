"""Upscale planned jobs: go on past bad pictures, report.

What cannot be written is refused before it is computed. Every output is written beside and renamed
(`write_image`), so one that exists is whole and `skip_existing` may trust it.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ldm_dream.data.images import (
    Image,
    ImageError,
    check_writable,
    image_size,
    in_words,
    read_image,
    write_image,
)
from ldm_dream.errors import shown
from ldm_dream.heap import give_back_freed_memory
from ldm_dream.upscaling.planning import Job, Plan, is_too_long
from ldm_dream.upscaling.sizes import Size, as_size
from ldm_dream.writing import WriteError, whole_file


@dataclass(frozen=True)
class Result:
    """What became of one picture. Sizes are (width, height) in pixels, None where it was not read
    or not made. Names as they may be shown.
    """

    source: str
    target: str
    status: str  # done, skipped, failed
    size_in: tuple[int, int] | None = None
    size_out: tuple[int, int] | None = None
    seconds: float = 0.0  # read, upscale and write
    error: str | None = None
    note: str = ""

    def __str__(self) -> str:
        if self.size_in is None or self.size_out is None:
            return f"{self.source}  {self.status}: {self.error or 'its output is already there.'}"
        sizes = " -> ".join(f"{width}x{height}" for width, height in (self.size_in, self.size_out))
        note = f"  ({self.note})" if self.note else ""
        return f"{self.source} -> {self.target}  {sizes}  {self.seconds:.2f} s{note}"


# --------------------------------------------------------------------------------------- the work


@dataclass(frozen=True)
class Work:
    """upscale: Image -> Image, `scale` times as large, or of that size. Raises UpscaleError for an
    impossible scale. quality: as for `write_image`.
    """

    upscale: Callable[[Image], Image]
    scale: float | Size
    skip_existing: bool = False
    keep_metadata: bool = True
    quality: int | None = None

    def __post_init__(self) -> None:
        as_size(self.scale)


def upscale_all(jobs: list[Job], work: Work) -> Iterator[Result]:
    """Read, upscale and write job by job. A bad picture, and a place where it cannot be written, make
    it `failed` and the loop goes on; other errors end it. From the first one on the process gives
    large freed blocks back (`ldm_dream/heap.py`).
    """
    give_back_freed_memory()
    for job in jobs:
        source, target = shown(job.source), shown(job.target)
        start = time.perf_counter()
        try:
            if is_too_long(job.target):
                raise ImageError(f"{target}: this name is too long; give a shorter --suffix.")
            if work.skip_existing and job.target.exists():
                yield Result(source, target, "skipped")
                continue
            sizes = _upscale_one(job, work)
        except (ImageError, WriteError, MemoryError) as error:
            reason = shown(error) or "too little memory for it"
            reason = reason if source in reason else f"{source}: {reason}"
            seconds = time.perf_counter() - start
            yield Result(source, target, "failed", seconds=seconds, error=reason)
        else:
            seconds = time.perf_counter() - start
            yield Result(source, target, "done", *sizes, seconds, note=job.note)


def _upscale_one(job: Job, work: Work) -> tuple[tuple[int, int], tuple[int, int]]:
    """-> (width, height) of the picture and of the result."""
    picture = read_image(job.source)
    height, width = picture.pixels.shape[:2]
    high, wide = as_size(work.scale).of((height, width))
    check_writable(job.target, wide, high, picture.alpha)
    if job.may_be_own:
        _refuse_own(job.target, (high, wide))
    if not work.keep_metadata:
        picture = replace(picture, metadata=None)
    result = work.upscale(picture)
    write_image(job.target, result, work.quality)
    return (width, height), (result.pixels.shape[1], result.pixels.shape[0])


def _refuse_own(target: Path, size: tuple[int, int]) -> None:
    """Raises WriteError unless `target` has the (height, width) that its result would have."""
    try:
        is_own = os.path.exists(target) and image_size(target) != size
    except ImageError:
        is_own = True
    if is_own:
        raise WriteError(
            f"{target}: is there and is no result of this command; "
            "move it away or give another --suffix or -o."
        )


# ------------------------------------------------------------------------------------- the report


def summary(plan: Plan, results: list[Result]) -> str:
    """One line: what was done and what was left out, both by kind."""
    counts = Counter(result.status for result in results)
    if waiting := len(plan.jobs) - len(results):
        counts["not reached"] = waiting
    left_out = f"; left out: {in_words(plan.left_out)}" if plan.left_out else ""
    return f"{in_words(counts) or 'no picture'}{left_out}"


def write_report(path: Path, settings: dict, plan: Plan, results: list[Result]) -> None:
    """JSON {"settings": .., "summary": .., "left_out": {kind: count}, "pictures": [Result, ..]},
    written beside and renamed. Raises WriteError.
    """
    report = {
        "settings": {
            name: shown(value) if isinstance(value, str | Path) else value
            for name, value in settings.items()
        },
        "summary": summary(plan, results),
        "left_out": plan.left_out,
        "pictures": [asdict(result) for result in results],
    }
    with whole_file(path) as draft:
        draft.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
