"""Upscale planned jobs: go on past bad pictures, report.

While one picture is computed, a thread reads the next one and another writes the last one; a large
picture is alone. What cannot be written is refused before it is computed. Every output is written
beside and renamed (`write_image`), so one that exists is whole and `skip_existing` may trust it.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ldm_dream.data.images import (
    Image,
    ImageError,
    check_writable,
    image_size,
    in_words,
    read_image,
    write_image,
)
from ldm_dream.dtypes import name_of
from ldm_dream.errors import shown
from ldm_dream.upscaling.devices import TooLittleMemory
from ldm_dream.upscaling.engine import Engine, Options
from ldm_dream.upscaling.layout import check_pixels
from ldm_dream.upscaling.planning import BatchError, Job, Plan, is_too_long
from ldm_dream.upscaling.sizes import Size
from ldm_dream.writing import WriteError, whole_file

# pixels of a picture or of its result; above it no other picture is held beside it
ALONE_ABOVE = 2**26
# a picture's result is told at once if it is written in this share of its time; else with the next
PATIENCE = 0.05


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
        if self.status != "done" or self.size_in is None or self.size_out is None:
            return f"{self.source}  {self.status}: {self.error or 'its output is already there.'}"
        sizes = " -> ".join(f"{width}x{height}" for width, height in (self.size_in, self.size_out))
        note = f"  ({self.note})" if self.note else ""
        return f"{self.source} -> {self.target}  {sizes}  {self.seconds:.2f} s{note}"


# --------------------------------------------------------------------------------------- the work


@dataclass(frozen=True)
class Work:
    """upscale: Image -> Image of that size. quality: as for `write_image`. note: is told each result
    as soon as it is certain, in the thread that writes.
    """

    upscale: Callable[[Image], Image]
    size: Size
    skip_existing: bool = False
    keep_metadata: bool = True
    quality: int | None = None
    note: Callable[[Job, Result], None] = lambda job, result: None


def upscale_plan(
    plan: Plan, work: Work, settings: dict[str, Any], say: Callable[[str], None], last: ExitStack
) -> list[Result]:
    """All jobs of a command; say is told each Result. settings: of the command, whose `json_report`
    is written at the end of `last`, however the work ends.
    """
    results: list[Result] = []
    if settings["json_report"]:
        last.callback(write_report, settings["json_report"], settings, plan, results)
    with closing(upscale_all(plan.jobs, work)) as made:  # its threads end here
        for result in made:
            results.append(result)
            say(str(result))
    return results


def upscale_one(
    plan: Plan, work: Work, settings: dict[str, Any], say: Callable[[str], None], last: ExitStack
) -> None:
    """As `upscale_plan`, of a plan of one picture; its failure is the error of the command. Raises
    BatchError.
    """
    result = upscale_plan(plan, work, settings, lambda line: None, last)[0]
    if result.error:
        raise BatchError(result.error)
    say(str(result))


def check_one(job: Job, size: Size, most: int, skip_existing: bool = False) -> None:
    """Raises BatchError, by the sentence of `upscale_one`, for a picture whose result its header
    shows not to be possible; most: pixels of that. To be asked before a model is loaded.
    """
    if skip_existing and job.target.exists():
        return
    try:
        high, wide = size.of(image_size(job.source))
        check_writable(job.target, wide, high)
        check_pixels((high, wide), most)
    except ImageError as error:
        raise BatchError(_naming(job, shown(error))) from None


def _naming(job: Job, reason: str) -> str:
    """With the picture's name, if that is not in it."""
    source = shown(job.source)
    return reason if source in reason else f"{source}: {reason}"


def upscale_all(jobs: Iterable[Job], work: Work) -> Generator[Result, None, None]:
    """Read, upscale and write job by job; -> results in that order. A bad picture, and a place where
    it cannot be written, make it `failed` and the loop goes on; other errors end it, when what is
    computed is written and told. `work.upscale` is called in this thread.
    """
    left, waiting = iter(jobs), list[Future[Result]]()
    with ThreadPoolExecutor(1, "read") as reader, ThreadPoolExecutor(1, "write") as writer:
        try:
            ahead = reader.submit(_next_read, left, work)
            while True:
                under_way: list[Future] = [ahead, *waiting]
                wait(under_way, return_when=FIRST_COMPLETED)
                if waiting and waiting[0].done():
                    yield from _told(waiting)
                picture = ahead.result()
                if picture is None:
                    break
                if is_alone := picture.is_large:
                    yield from _told(waiting)
                else:
                    ahead = reader.submit(_next_read, left, work)
                picture.upscale()
                yield from _told(waiting)
                waiting.append(writer.submit(picture.write))
                wait(waiting, None if is_alone else PATIENCE * picture.seconds)
                if is_alone:
                    ahead = reader.submit(_next_read, left, work)
            yield from _told(waiting)
        except GeneratorExit:
            raise
        except BaseException:  # Ctrl-C, too
            yield from _told(waiting)
            raise


def _told(waiting: list[Future[Result]]) -> Iterator[Result]:
    """Waits for what is written, and takes it out."""
    while waiting:
        result = waiting[0].result()
        del waiting[0]
        yield result


def _next_read(jobs: Iterator[Job], work: Work) -> _Picture | None:
    """None: there are no more."""
    job = next(jobs, None)
    if job is None:
        return None
    picture = _Picture(job, work)
    picture.read()
    return picture


class _Picture:
    """A job on its way through `read`, `upscale` and `write`, of which only one runs at a time.

    A step does nothing once the `result` is certain. image: what was read, then what was made of
    it; of a large picture `read` learns only the size, and `upscale` reads the rest.
    """

    def __init__(self, job: Job, work: Work):
        self.job, self.work, self.seconds = job, work, 0.0
        self.image: Image | None = None
        self.size_in: tuple[int, int] = (0, 0)  # (width, height)
        self.size_out: tuple[int, int] = (0, 0)
        self.is_made = False
        self.result: Result | None = None

    @property
    def is_large(self) -> bool:
        return max(math.prod(self.size_in), math.prod(self.size_out)) > ALONE_ABOVE

    def read(self) -> None:
        with self._step():
            job, work = self.job, self.work
            if is_too_long(job.target):
                target = shown(job.target)
                raise ImageError(f"{target}: this name is too long; give a shorter --suffix.")
            if work.skip_existing and job.target.exists():
                self.result = Result(shown(job.source), shown(job.target), "skipped")
                return
            height, width = image_size(job.source)
            high, wide = work.size.of((height, width))
            self.size_in, self.size_out = (width, height), (wide, high)
            if not self.is_large:
                self._load()

    def upscale(self) -> None:
        if self.result is None:
            with self._step():
                if self.image is None:
                    self._load()
                assert self.image is not None
                self.image = self.work.upscale(self.image)
                height, width = self.image.pixels.shape[:2]
                self.size_out, self.is_made = (width, height), True

    def write(self) -> Result:
        if self.result is None:
            with self._step():
                assert self.image is not None
                write_image(self.job.target, self.image, self.work.quality)
        if self.result is None:
            source, target = shown(self.job.source), shown(self.job.target)
            sizes = self.size_in, self.size_out
            self.result = Result(source, target, "done", *sizes, self.seconds, note=self.job.note)
        self.image = None
        self.work.note(self.job, self.result)
        return self.result

    def _load(self) -> None:
        picture = read_image(self.job.source)
        check_writable(self.job.target, *self.size_out, picture.alpha)
        if self.job.may_be_own:
            width, height = self.size_out
            _refuse_own(self.job.target, (height, width))
        self.image = picture if self.work.keep_metadata else replace(picture, metadata=None)

    @contextmanager
    def _step(self) -> Iterator[None]:
        """Adds its seconds; what is the matter with this picture alone becomes the result."""
        start, reason = time.perf_counter(), None
        try:
            yield
        except (ImageError, WriteError, MemoryError, TooLittleMemory) as error:
            reason = shown(error) or "too little memory for it"
        self.seconds += time.perf_counter() - start
        if reason is not None:
            source, target = shown(self.job.source), shown(self.job.target)
            reason = _naming(self.job, reason)
            self.image = None
            size_in = self.size_in if any(self.size_in) else None
            size_out = self.size_out if self.is_made else None
            self.result = Result(
                source, target, "failed", size_in, size_out, self.seconds, error=reason
            )


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


def used(engine: Engine, how: Options, size: Size) -> dict[str, Any]:
    """Settings as they were used, where the command left them to the model and the machine."""
    settled, dtype = asdict(engine.settled(how)), name_of(engine.dtype)
    return settled | {"scale": size.scale, "device": str(engine.device), "dtype": dtype}


def summary(plan: Plan, results: list[Result]) -> str:
    """One line: what was done and what was left out, both by kind."""
    counts = Counter(result.status for result in results)
    if waiting := len(plan.jobs) - len(results):
        counts["not reached"] = waiting
    left_out = f"; left out: {in_words(plan.left_out)}" if plan.left_out else ""
    return f"{in_words(counts) or 'no picture'}{left_out}"


def failures(results: list[Result]) -> list[str]:
    """A line for each picture that failed."""
    return [f"failed: {result.error}\n" for result in results if result.status == "failed"]


def write_report(path: Path, settings: dict, plan: Plan, results: list[Result]) -> None:
    """JSON {"settings": .., "summary": .., "left_out": {kind: count}, "pictures": [Result, ..]},
    written beside and renamed. Raises WriteError.
    """
    report = {
        "settings": {name: _as_json(value) for name, value in settings.items()},
        "summary": summary(plan, results),
        "left_out": plan.left_out,
        "pictures": [asdict(result) for result in results],
    }
    with whole_file(path) as draft:
        draft.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def _as_json(value: Any) -> Any:
    if isinstance(value, list):
        return [_as_json(one) for one in value]
    return shown(value) if isinstance(value, str | Path) else value
