"""The work: every picture is read once and goes into all sets that lack it, by several processes."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Generator, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from zipfile import BadZipFile

from ldm_dream.preparing.pictures import (
    AsItIs,
    Cut,
    PictureError,
    TooSmall,
    open_picture,
    to_png,
)
from ldm_dream.preparing.plan import Planned
from ldm_dream.preparing.recipe import PrepareError
from ldm_dream.preparing.sets import Made, PictureSet, check_holds_only
from ldm_dream.preparing.sources import UNREADABLE, Entry, one_after_the_other
from ldm_dream.writing import whole_file

WAITING = 2  # pictures a worker that are under way; one of DIV2K is 28 MB of PNGs for an LMDB


@dataclass(frozen=True)
class Target:
    """name: the picture's in its set. folder: where to write; None: the bytes are wanted."""

    number: int  # of the set
    name: str
    cut: Cut
    level: int
    folder: Path | None


@dataclass(frozen=True)
class Task:
    entry: Entry
    targets: tuple[Target, ...]


@dataclass(frozen=True)
class Result:
    """What became of a picture of the publisher: done, left out or failed, and why."""

    path: str
    status: str = "done"
    reason: str = ""
    made: tuple[list[Made], ...] = ()  # as the task's targets


def tasks_of(sets: list[tuple[Planned, PictureSet]]) -> list[Task]:
    """What is still to do, a picture once. Raises PrepareError for a set with foreign pictures."""
    tasks: dict[str, Task] = {}
    for number, (planned, target) in enumerate(sets):
        check_holds_only(target, planned.chosen)
        folder = None if target.is_lmdb else target.unfinished
        for name, entry in planned.chosen.items():
            if name not in target.done:
                task = tasks.get(entry.path, Task(entry, ()))
                more = Target(number, name, planned.part.cut, target.level, folder)
                tasks[entry.path] = replace(task, targets=(*task.targets, more))
    return list(tasks.values())


def prepare(sets: list[tuple[Planned, PictureSet]], workers: int) -> Iterator[Result]:
    """Do all that is still to do; a result for each picture. What is done stays when it is stopped.
    Raises PrepareError or WriteError.
    """
    tasks = {task.entry.path: task for task in tasks_of(sets)}
    started = [target for planned, target in sets if not target.is_whole(planned.chosen)]
    with ExitStack() as opened:
        for target in started:
            target.start()
            opened.callback(target.close)
        for result in _results(tasks, workers):
            for target, made in zip(tasks[result.path].targets, result.made):
                sets[target.number][1].add(target.name, made)
            yield result
        for target in started:
            target.finish()


def make(task: Task) -> Result:
    """One picture, in a worker."""
    path = task.entry.path
    try:
        data = task.entry.read()
        image = open_picture(data)
    except (PictureError, BadZipFile, *UNREADABLE) as error:
        return Result(path, "failed", str(error) or type(error).__name__)
    made, small = [], ""
    for target in task.targets:
        try:
            cuts = target.cut(image, target.name)
        except TooSmall as error:
            small, cuts = str(error), []
        is_kept = isinstance(target.cut, AsItIs) and target.folder and data.startswith(b"\x89PNG")
        made.append([])
        for name, cut in cuts:
            png = data if is_kept else to_png(cut, target.level)
            if target.folder:
                with whole_file(target.folder / f"{name}.png") as draft:
                    draft.write_bytes(png)
            kept = b"" if target.folder else png
            made[-1].append(Made(name, cut.height, cut.width, kept))
    return Result(path, "left out" if small else "done", small, tuple(made))


# ---------------------------------------------------------------------------------------- workers


def _results(tasks: dict[str, Task], workers: int) -> Iterator[Result]:
    """In any order. One worker: in this process."""
    entries = one_after_the_other(task.entry for task in tasks.values())
    todo = (replace(tasks[entry.path], entry=entry) for entry in entries)
    if workers <= 1 or len(tasks) <= 1:
        yield from map(make, todo)
        return
    waiting: set[Future[Result]] = set()
    with _pool(min(workers, len(tasks))) as pool:
        for task in todo:
            waiting.add(pool.submit(make, task))
            if len(waiting) >= WAITING * workers:
                waiting = yield from _finished(waiting)
        while waiting:
            waiting = yield from _finished(waiting)


def _finished(waiting: set[Future[Result]]) -> Generator[Result, None, set[Future[Result]]]:
    """Yields what is ready, at least one; returns the others."""
    ready, others = wait(waiting, return_when=FIRST_COMPLETED)
    for future in ready:
        yield future.result()
    return others


@contextmanager
def _pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Raises PrepareError where a worker is killed."""
    context = multiprocessing.get_context("forkserver")
    pool = ProcessPoolExecutor(workers, context, initializer=_as_a_worker)
    try:
        yield pool
    except BrokenProcessPool:
        raise PrepareError(
            "a worker was killed, perhaps for lack of memory; what was done stays: run the same "
            "command again, with fewer --workers."
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _as_a_worker() -> None:
    """Ctrl-C is for the parent, which then ends its workers; a worker does not outlive it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    multiprocessing.connection.wait([sentinel])
    os._exit(1)
