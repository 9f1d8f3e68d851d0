"""Upscale a file or a folder: which file goes where, go on past bad pictures, report.

Never writes over an input. Every output is written beside and renamed (`write_image`), so one that
exists is whole and `skip_existing` may trust it.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from ldm_dream.data.images import SUFFIXES, Image, ImageError, find_images, read_image, write_image
from ldm_dream.errors import UserError


class BatchError(UserError, ValueError):
    """A combination of input and output that is not possible; its text is complete for the user."""


@dataclass(frozen=True)
class Job:
    source: Path
    target: Path


@dataclass(frozen=True)
class Result:
    """What became of one picture. Sizes are (width, height) in pixels, None where it was not read
    or not made.
    """

    source: str
    target: str
    status: str  # done, skipped, failed
    size_in: tuple[int, int] | None = None
    size_out: tuple[int, int] | None = None
    seconds: float = 0.0  # read, upscale and write
    error: str | None = None

    def __str__(self) -> str:
        if self.size_in is None or self.size_out is None:
            return f"{self.source}  {self.status}: {self.error or 'its output is already there.'}"
        sizes = " -> ".join(f"{width}x{height}" for width, height in (self.size_in, self.size_out))
        return f"{self.source} -> {self.target}  {sizes}  {self.seconds:.2f} s"


def plan_jobs(
    source: Path, out: Path, recursive: bool = False, suffix: str = "", ext: str = "auto"
) -> list[Job]:
    """Pictures of `source` and where each goes. Raises ImageError (nothing to read) or BatchError
    (nowhere to write).

    source a folder: `out` is a folder, subfolders are kept. source a file: `out` is a folder, or
    the output's name if it has a suffix. Inside a folder the name is NAME + suffix + ext; ext
    "auto" keeps the input's own format.
    """
    if ext != "auto" and f".{ext}" not in SUFFIXES:
        raise BatchError(
            f"ext={ext!r} cannot be written; use auto or one of {', '.join(s[1:] for s in SUFFIXES)}."
        )
    found = find_images(source, recursive)
    if source.is_file() and out.suffix and not out.is_dir():
        if suffix or ext != "auto":
            raise BatchError(
                f"{out} names the output file, so a suffix and an ext change nothing; leave them out."
            )
        if out.suffix.lower() not in SUFFIXES:
            raise BatchError(f"{out}: cannot write {out.suffix}; use one of {', '.join(SUFFIXES)}.")
        jobs = [Job(source, out)]
    else:
        if out.exists() and not out.is_dir():
            raise BatchError(f"{out} is a file; the output of a folder is a folder.")
        root = source if source.is_dir() else source.parent
        inside = out.resolve() != root.resolve() and out.resolve().is_relative_to(root.resolve())
        found = [
            p for p in found if not (inside and p.resolve().is_relative_to(out.resolve()))
        ]  # earlier results
        jobs = [
            Job(p, out / p.relative_to(root).with_name(p.stem + suffix + _ext(p, ext)))
            for p in found
        ]
    _refuse_collisions(jobs)
    return jobs


def upscale_all(
    jobs: list[Job], upscale: Callable[[Image], Image], skip_existing: bool = False
) -> Iterator[Result]:
    """Read, upscale and write job by job; an ImageError makes that picture `failed` and the loop
    goes on, other errors end it.
    """
    for job in jobs:
        names = str(job.source), str(job.target)
        if skip_existing and job.target.exists():
            yield Result(*names, "skipped")
            continue
        start = time.perf_counter()
        try:
            picture = read_image(job.source)
            result = upscale(picture)
            _make_folder(job.target.parent)
            write_image(job.target, result)
        except ImageError as error:
            yield Result(*names, "failed", seconds=time.perf_counter() - start, error=str(error))
        else:
            sizes = (picture.pixels.shape[1::-1], result.pixels.shape[1::-1])
            yield Result(*names, "done", *sizes, time.perf_counter() - start)


def write_report(path: Path, settings: dict, results: list[Result]) -> None:
    """JSON {"settings": .., "pictures": [Result, ..]}, written beside and renamed. Raises
    BatchError.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    report = {"settings": settings, "pictures": [asdict(result) for result in results]}
    try:
        beside.write_text(json.dumps(report, indent=1, default=str) + "\n", encoding="utf-8")
        os.replace(beside, path)
    except OSError as error:
        raise BatchError(f"{path}: the report cannot be written: {error.strerror}.") from None
    finally:
        beside.unlink(missing_ok=True)


def _ext(source: Path, ext: str) -> str:
    return source.suffix if ext == "auto" else f".{ext}"


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ImageError(f"{folder}: the folder cannot be made: {error.strerror}.") from None


def _refuse_collisions(jobs: list[Job]) -> None:
    inputs = {job.source.resolve() for job in jobs}
    targets: dict[Path, Path] = {}
    for job in jobs:
        target = job.target.resolve()
        if target in inputs:
            raise BatchError(
                f"{job.target} is an input and would be overwritten; choose another -o or give a --suffix."
            )
        if target in targets:
            raise BatchError(
                f"{targets[target]} and {job.source} would both become {job.target}; use --ext auto or rename one."
            )
        targets[target] = job.source
