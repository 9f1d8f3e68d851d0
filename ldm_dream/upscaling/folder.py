"""Upscale a file or a folder: which file goes where, go on past bad pictures, report.

Never writes over an input, nor over what lies among them and cannot be a result. What cannot be
written is refused before it is computed. Every output is written beside and renamed
(`write_image`), so one that exists is whole and `skip_existing` may trust it.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from ldm_dream.data.images import (
    WRITES,
    Image,
    ImageError,
    check_writable,
    image_size,
    in_words,
    list_images,
    needs_alpha,
    read_image,
    write_image,
)
from ldm_dream.errors import UserError, shown
from ldm_dream.heap import give_back_freed_memory
from ldm_dream.writing import WriteError, check_outputs, whole_file

LONGEST_NAME = 255  # bytes, of all common file systems


class BatchError(UserError, ValueError):
    """A combination of input and output that is not possible; its text is complete for the user."""


@dataclass(frozen=True)
class Job:
    """note: what is unusual about the target, to be told with the result. may_be_own: the target was
    there before among the inputs, so it is an earlier result or a picture of the user.
    """

    source: Path
    target: Path
    note: str = ""
    may_be_own: bool = False


@dataclass(frozen=True)
class Plan:
    """left_out: how many files of the folder are no input, by a few words on why."""

    jobs: list[Job]
    left_out: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Naming:
    """Of outputs in a folder: NAME + suffix + ext. ext "auto" keeps the input's kind, or takes PNG
    where that is not written. Raises BatchError.
    """

    suffix: str = ""
    ext: str = "auto"

    def __post_init__(self) -> None:
        if self.ext != "auto" and f".{self.ext}" not in WRITES:
            raise BatchError(
                f"ext={self.ext!r} cannot be written; use auto or one of {', '.join(s[1:] for s in WRITES)}."
            )
        if set(self.suffix) & {"/", "\0", os.sep}:
            raise BatchError(
                f"suffix={self.suffix!r} is no part of a file name; take out the slash."
            )


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


# ------------------------------------------------------------------------------- before the work


def plan_jobs(source: Path, out: Path, recursive: bool = False, naming: Naming = Naming()) -> Plan:
    """Pictures of `source` and where each goes. Raises ImageError (nothing to read) or BatchError
    (nowhere to write).

    source a folder: `out` is a folder, subfolders are kept. source a file: `out` is a folder, or
    the output's name if it has a suffix. Earlier results are no inputs: what lies in an `out` inside
    of `source`, and where both are one folder, what is named with the suffix.
    """
    listing = list_images(source, recursive)
    if _is_too_long(out):
        raise BatchError(f"{shown(out)}: this name is too long; give -o a shorter one.")
    if source.is_file() and out.suffix and not out.is_dir():
        if naming != Naming():
            raise BatchError(
                f"{shown(out)} names the output file, so a suffix and an ext change nothing; leave them out."
            )
        if out.suffix.lower() not in WRITES:
            raise BatchError(
                f"{shown(out)}: cannot write {shown(out.suffix)}; use one of {', '.join(WRITES)}."
            )
        plan = Plan([Job(source, out)])
    else:
        if out.exists() and not out.is_dir():
            raise BatchError(f"{shown(out)} is a file; the output of a folder is a folder.")
        root = source if source.is_dir() else source.parent
        is_result = (
            _earlier_results(root, out, naming.suffix) if source.is_dir() else lambda p: False
        )
        found = [path for path in listing.pictures if not is_result(path)]
        results = [path.resolve() for path in listing.pictures if is_result(path)]
        left_out = listing.left_out | ({"earlier result": len(results)} if results else {})
        jobs = _named(found, root, out, naming)
        plan = Plan(_marked(jobs, set(results)), left_out)
    _refuse_collisions(plan.jobs)
    return plan


def check_places(plan: Plan, report: Path | None = None, model: Path | None = None) -> None:
    """Every output can be written and is no input, nor a file of the folder `model`; missing folders
    are made. Raises BatchError or WriteError.
    """
    outputs = [job.target for job in plan.jobs if not _is_too_long(job.target)]
    if report is not None:
        if _is_too_long(report):
            raise BatchError(
                f"{shown(report)}: this name is too long; give the report a shorter one."
            )
        if report.resolve() in {path.resolve() for path in outputs}:
            raise BatchError(f"{shown(report)} is an output; give the report another name.")
        outputs.append(report)
    of_model = list(model.iterdir()) if model and model.is_dir() else []
    check_outputs(outputs, [*(job.source for job in plan.jobs), *of_model])


def _earlier_results(root: Path, out: Path, suffix: str) -> Callable[[Path], bool]:
    """What of the pictures under `root` this output folder and suffix made before."""
    root, out = root.resolve(), out.resolve()
    if root == out:
        return lambda path: bool(suffix) and path.stem.endswith(suffix)
    if out.is_relative_to(root):
        return lambda path: path.resolve().is_relative_to(out)
    return lambda path: False


def _named(found: list[Path], root: Path, out: Path, naming: Naming) -> list[Job]:
    """A job for each. Where a.gif and a.png would both become a.png, the first is a_gif.png."""
    reasons = {path: _why_png(path) for path in found} if naming.ext == "auto" else {}
    jobs: list[Job] = []
    taken: set[Path] = set()
    for path in sorted(found, key=lambda path: bool(reasons.get(path))):  # these give way
        reason = reasons.get(path, "")
        ext = f".{naming.ext}" if naming.ext != "auto" else ".png" if reason else path.suffix
        target = out / path.relative_to(root).with_name(path.stem + naming.suffix + ext)
        if reason and target in taken:
            target = target.with_name(f"{path.stem}_{path.suffix[1:]}{naming.suffix}.png")
        taken.add(target)
        jobs.append(Job(path, target, reason))
    return sorted(jobs, key=lambda job: job.source)


def _marked(jobs: list[Job], results: set[Path]) -> list[Job]:
    """results: resolved paths of what was passed over as an earlier result."""
    return [replace(job, may_be_own=job.target.resolve() in results) for job in jobs]


def _why_png(path: Path) -> str:
    """Why the result is not of the kind that its name says; "" where it is."""
    if path.suffix.lower() not in WRITES:
        return f"as PNG: {path.suffix.lower()[1:]} is not written"
    return f"as PNG: {path.suffix.lower()[1:]} holds no transparency" if needs_alpha(path) else ""


def _refuse_collisions(jobs: list[Job]) -> None:
    inputs = {job.source.resolve() for job in jobs}
    targets: dict[Path, Path] = {}
    for job in jobs:
        target = job.target.resolve()
        if target in inputs:
            raise BatchError(
                f"{shown(job.target)} is an input and would be overwritten; choose another -o or give a --suffix."
            )
        if target in targets:
            raise BatchError(
                f"{shown(targets[target])} and {shown(job.source)} would both become {shown(job.target)}; "
                "use --ext auto or rename one."
            )
        targets[target] = job.source


def _is_too_long(path: Path) -> bool:
    return any(len(os.fsencode(part)) > LONGEST_NAME for part in path.parts)


# --------------------------------------------------------------------------------------- the work


@dataclass(frozen=True)
class Work:
    """upscale: Image -> Image, `scale` times as large. Raises BatchError for an impossible scale."""

    upscale: Callable[[Image], Image]
    scale: float
    skip_existing: bool = False
    keep_metadata: bool = True

    def __post_init__(self) -> None:
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise BatchError(
                f"scale={self.scale} is not possible; give a number above 0, for example 4."
            )


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
            if _is_too_long(job.target):
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
    wide, high = (max(1, round(side * work.scale)) for side in (width, height))
    check_writable(job.target, wide, high, picture.alpha)
    if job.may_be_own:
        _refuse_own(job.target, (high, wide))
    if not work.keep_metadata:
        picture = replace(picture, metadata=None)
    result = work.upscale(picture)
    write_image(job.target, result)
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
