"""What the page is told of the work: how far it is, and what came of it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import PIL.Image


@dataclass(frozen=True)
class Now:
    """How far the work is. picture of pictures, from 1 on; done of total network calls, of which a
    tile takes `calls`; since: time of its first call, or None. preview: the picture as far as it is,
    before the first call as it was given. is_waiting: for its turn.
    """

    name: str = ""
    picture: int = 0
    pictures: int = 0
    model: str = ""
    done: int = 0
    total: int = 0
    calls: int = 1
    since: float | None = None
    preview: PIL.Image.Image | None = None
    is_waiting: bool = False

    def left(self) -> float | None:
        """Seconds that this picture still takes, if it goes on as it did."""
        if self.since is None or self.done < 2:
            return None
        return (time.monotonic() - self.since) / self.done * (self.total - self.done)


@dataclass(frozen=True)
class View:
    """A picture as the browser shows it: `path` is a PNG, of the size (width, height) in the file."""

    name: str
    path: Path
    size: tuple[int, int]


@dataclass(frozen=True)
class Result:
    """One enlarged picture. files: to download, the model's first, then that of the other model.
    views: the original, then one for each file. size: (width, height). note: a few words, or "".
    """

    name: str
    files: list[Path]
    views: list[View]
    size_in: tuple[int, int]
    size: tuple[int, int]
    note: str = ""
