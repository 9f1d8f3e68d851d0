"""Which file becomes which: the pictures to enlarge, and where each result goes.

Never writes over an input, nor over what lies among them and cannot be a result. All is decided
before a model is loaded.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath
from tempfile import TemporaryFile
from typing import NamedTuple

from ldm_dream.data.images import WRITES, check_header, list_images, needs_alpha
from ldm_dream.errors import UserError, shown
from ldm_dream.writing import check_outputs

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


def plan_jobs(
    sources: Path | Sequence[Path], out: Path, recursive: bool = False, naming: Naming = Naming()
) -> Plan:
    """Pictures of `sources`, files and folders, and where each goes. Raises ImageError (nothing to
    read) or BatchError (nowhere to write).

    Into the folder `out`: a file by its name, what is in a folder by its place there. For one file
    alone `out` may be the output's name, known by its suffix. A picture that is given twice is taken
    once. Earlier results are no inputs: what lies in an `out` inside of a folder, and where both
    are one folder, what is named with the suffix.
    """
    sources = [sources] if isinstance(sources, Path) else list(sources)
    listings = [(source, list_images(source, recursive)) for source in sources]
    if is_one_picture(sources):
        check_header(sources[0])  # no model is loaded for what is none
    if is_too_long(out):
        raise BatchError(f"{shown(out)}: this name is too long; give -o a shorter one.")
    if is_one_picture(sources) and out.suffix and not out.is_dir():
        return _checked(Plan([_to_a_file(sources[0], out, naming)]))
    if is_one_picture(sources) and out.exists() and not out.is_dir():
        raise BatchError(
            f"{shown(out)} is no folder and no name of a picture; name a folder, or a file that ends "
            f"in one of {', '.join(WRITES)}."
        )
    if out.exists() and not out.is_dir():
        raise BatchError(
            f"{shown(out)} is a file; the output of a folder or of several inputs is a folder."
        )
    if len(sources) > 1 and out.suffix.lower() in WRITES and not out.is_dir():
        raise BatchError(
            f"{shown(out)} names one file, but several inputs are given; name a folder."
        )
    found: list[_Found] = []
    seen: set[Path] = set()  # where those of earlier sources really are
    results: set[Path] = set()
    left_out: Counter[str] = Counter()
    for source, listing in listings:
        is_result = _earlier_results(source, out, naming.suffix)
        left_out.update(listing.left_out)
        root = source if source.is_dir() else source.parent
        places = {path: path.resolve() for path in listing.pictures}
        for path, place in places.items():
            if is_result(path, place):
                results.add(place)
            elif place in seen:
                left_out["given twice"] += 1
            else:
                found.append(_Found(path, root))
        seen.update(place for place in places.values() if place not in results)
    if results:
        left_out["earlier result"] = len(results)
    jobs = _named(found, out, naming)
    return _checked(Plan(_marked(jobs, results), dict(left_out)))


def is_one_picture(sources: Sequence[Path]) -> bool:
    return len(sources) == 1 and sources[0].is_file()


def _to_a_file(source: Path, out: Path, naming: Naming) -> Job:
    if naming != Naming():
        raise BatchError(
            f"{shown(out)} names the output file, so a suffix and an ext change nothing; leave them out."
        )
    if out.suffix.lower() not in WRITES:
        raise BatchError(
            f"{shown(out)}: cannot write {shown(out.suffix)}; use one of {', '.join(WRITES)}."
        )
    return Job(source, out)


def check_places(plan: Plan, report: Path | None = None, model: str | Path = "") -> None:
    """Every output can be written and is no input, nor a file of the model, which may be a name;
    missing folders are made. Raises BatchError or WriteError.
    """
    outputs = [job.target for job in plan.jobs if not is_too_long(job.target)]
    if report is not None:
        if is_too_long(report):
            raise BatchError(
                f"{shown(report)}: this name is too long; give the report a shorter one."
            )
        if report.resolve() in {path.resolve() for path in outputs}:
            raise BatchError(f"{shown(report)} is an output; give the report another name.")
        outputs.append(report)
    place = Path(os.path.expanduser(model))
    of_model = [] if not model else list(place.iterdir()) if place.is_dir() else [place]
    check_outputs(outputs, [*(job.source for job in plan.jobs), *of_model])
    for folder in {path.parent for path in outputs}:
        _try_to_write(folder)


def _try_to_write(folder: Path) -> None:
    """Raises BatchError where no file can be made, as in /proc, which allows it by its modes."""
    try:
        TemporaryFile(dir=folder).close()
    except OSError as error:
        raise BatchError(
            f"{shown(folder)}: cannot be written to ({error.strerror}); name another folder."
        ) from None


class _Found(NamedTuple):
    """A picture, and the folder below which its place is kept."""

    path: Path
    root: Path


def _earlier_results(root: Path, out: Path, suffix: str) -> Callable[[Path, Path], bool]:
    """What of the pictures under `root`, by name and resolved, this output folder and suffix made
    before; a file that is given itself is meant.
    """
    root, out = root.resolve(), out.resolve()
    if not root.is_dir():
        return lambda path, place: False
    if root == out:
        return lambda path, place: bool(suffix) and path.stem.endswith(suffix)
    if out.is_relative_to(root):
        return lambda path, place: place.is_relative_to(out)
    return lambda path, place: False


def _named(found: list[_Found], out: Path, naming: Naming) -> list[Job]:
    """A job for each."""
    reasons = [_why_png(path, naming) for path, _ in found]
    places = [path.relative_to(root) for path, root in found]
    names = result_names(list(zip(places, reasons)), naming)
    jobs = [
        Job(*job) for job in zip((path for path, _ in found), map(out.joinpath, names), reasons)
    ]
    return sorted(jobs, key=lambda job: job.source)


def result_names(
    places: Sequence[tuple[PurePath, str]], naming: Naming, stable: bool = False
) -> list[PurePath]:
    """Of pictures, each with the reason why it becomes PNG, "" where it does not. Where a.gif and
    a.png would both become a.png, the first is a_gif.png. stable: it always is, so that no picture
    that comes later changes a name.
    """
    names: dict[int, PurePath] = {}
    taken: set[PurePath] = set()
    for number in sorted(range(len(places)), key=lambda number: bool(places[number][1])):
        place, reason = places[number]  # those with a reason give way
        ext = f".{naming.ext}" if naming.ext != "auto" else ".png" if reason else place.suffix
        name = place.with_name(place.stem + naming.suffix + ext)
        if reason and (stable or name in taken):
            name = place.with_name(f"{place.stem}_{place.suffix[1:]}{naming.suffix}.png")
        taken.add(name)
        names[number] = name
    return [names[number] for number in range(len(places))]


def _marked(jobs: list[Job], results: set[Path]) -> list[Job]:
    """results: resolved paths of what was passed over as an earlier result."""
    return [replace(job, may_be_own=job.target.resolve() in results) for job in jobs]


def why_png_by_name(path: PurePath, naming: Naming) -> str:
    """Why the result is not of the kind that the name says; "" where it is."""
    is_kept = naming.ext != "auto" or path.suffix.lower() in WRITES
    return "" if is_kept else f"as PNG: {path.suffix.lower()[1:]} is not written"


def _why_png(path: Path, naming: Naming) -> str:
    """The same, from a look into the file."""
    reason = why_png_by_name(path, naming)
    if not reason and naming.ext == "auto" and needs_alpha(path):
        return f"as PNG: {path.suffix.lower()[1:]} holds no transparency"
    return reason


def _checked(plan: Plan) -> Plan:
    """Raises BatchError where an output would take the place of an input or of another output."""
    inputs = {job.source.resolve() for job in plan.jobs}
    targets: dict[Path, Path] = {}
    for job in plan.jobs:
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
    return plan


def is_too_long(path: Path) -> bool:
    return any(len(os.fsencode(part)) > LONGEST_NAME for part in path.parts)
