"""Progress: how far a long work is and when it will be done, as a bar on a terminal and as a line now
and then elsewhere.
"""

from __future__ import annotations

import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from ldm_dream.data.image import Image
from ldm_dream.upscaling.folder import Result
from ldm_dream.upscaling.forecast import Forecast, believed
from ldm_dream.upscaling.planning import Job

BETWEEN_LINES = 10.0  # seconds
BETWEEN_BARS = 0.1
LONG = 60.0  # seconds of work that are said as soon as they can be estimated
FORMAT = "{percentage:3.0f}%|{bar}| {desc}"


class Progress:
    """Of pictures, each of which is so many steps of so many tiles.

    work: pixels of all pictures, about. pictures: how many. calls: steps a tile, in all. quiet: shows
    nothing. Results go to stdout, all else to stderr.
    """

    def __init__(self, work: float, pictures: int, calls: int, quiet: bool = False):
        self.work, self.pictures, self.calls = work, pictures, calls
        self.quiet, self.done, self.ended = quiet, 0.0, 0
        self.began = self.shown = time.monotonic()
        self.said = False  # how long it takes
        self.is_bar = sys.stderr.isatty() and not quiet
        self.bar = tqdm(
            total=1, bar_format=FORMAT, ncols=_columns(), disable=not self.is_bar, leave=False
        )

    def __enter__(self) -> Progress:
        """Until the end, warnings too are written above the bar."""
        self.warnings = logging_redirect_tqdm()
        self.warnings.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.bar.close()
        self.warnings.__exit__(*error)

    def watching(self, upscale: Callable[..., Image]) -> Callable[[Image], Image]:
        """`upscale`, of whose steps this one hears."""

        def watched(picture: Image) -> Image:
            height, width = picture.pixels.shape[:2]
            with self.picture(height * width) as tell:
                return upscale(picture, callback=tell)

        return watched

    @contextmanager
    def picture(self, work: float) -> Iterator[Callable[..., None]]:
        """-> during a picture of so many pixels, what is to be told of every step: how many are done
        and how many there are.
        """
        if not self.done:
            self.began = time.monotonic()

        def tell(done: int, total: int, *_: object) -> None:
            self._show(work, done, total)

        yield tell
        self.done += work
        self.ended += 1

    def note(self, job: Job, result: Result) -> None:
        """What became of a picture, as `Work.note` tells it; one that failed was not made."""
        if result.status == "failed" and result.size_out is None:
            self.ended += 1
            self.work -= _counted(job, result)

    def write(self, line: str) -> None:
        """A result, above the bar."""
        if not self.quiet:
            tqdm.write(line)
            sys.stdout.flush()

    def introduce(self, expected: Forecast, numbers: str) -> None:
        """What is ahead, where there is much of it, and on a terminal. numbers: dtype and device."""
        if expected.is_large or self.is_bar:
            self.tell(f"{expected}; computed in {numbers}; the time is told after the first steps.")

    def tell(self, line: str) -> None:
        """What is no result."""
        if not self.quiet:
            tqdm.write(line, file=sys.stderr)
            sys.stderr.flush()

    def _show(self, work: float, done: int, total: int) -> None:
        # this picture may be more than what was expected
        expected = max(self.work, self.done + work, 1.0)
        now, fraction = time.monotonic(), (self.done + work * done / total) / expected
        passed = now - self.began
        # one step tells little: the first is of another kind than the next
        left = passed / fraction - passed if fraction and (self.done or done > 1) else None
        is_news = left is not None and not self.said and passed + left > LONG
        between = BETWEEN_BARS if self.is_bar else BETWEEN_LINES
        if now - self.shown < between and not is_news:
            return
        self.shown, self.said = now, self.said or is_news
        text = self._text(done, total, left)
        if self.is_bar:
            self.bar.n, self.bar.ncols = fraction, _columns()
            self.bar.set_description_str(text)
        else:
            self.tell(f"{fraction:4.0%}  {text}")

    def _text(self, done: int, total: int, left: float | None) -> str:
        tiles = total // self.calls
        picture = f"picture {self.ended + 1} of {self.pictures}, " if self.pictures > 1 else ""
        in_tiles = f" ({tiles} tiles)" if tiles > 1 else ""
        time_left = "" if left is None else f", about {in_time(left)} left"
        return f"{picture}step {done} of {total}{in_tiles}{time_left}"


def _counted(job: Job, result: Result) -> float:
    """Pixels of the picture, as the forecast counted them."""
    try:
        return believed(math.prod(result.size_in or (0, 0)), os.path.getsize(job.source))
    except OSError:
        return 0.0


def _columns() -> int:
    """Of the terminal, less one, where the cursor stands; 80 where it says that it has none."""
    return (shutil.get_terminal_size().columns or 80) - 1


def in_time(seconds: float) -> str:
    """0.2 -> "1 s", 45 -> "45 s", 720 -> "12 min", 12000 -> "3 h 20 min"."""
    if seconds < 99.5:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
