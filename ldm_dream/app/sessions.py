"""What belongs to one browser tab: its pictures, its results, and a way to stop.

All files of a session lie in one folder with a name that nobody can guess, and go with it.
"""

from __future__ import annotations

import itertools
import os
import re
import secrets
import shutil
import threading
import time
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from zipfile import ZipFile

from ldm_dream.app.errors import AppError
from ldm_dream.app.told import Result
from ldm_dream.data.images import in_words, kind_left_out
from ldm_dream.errors import shown
from ldm_dream.writing import whole_file

SESSIONS = "sessions"  # name of the folder of all sessions
MOMENT = 0.4  # seconds; the command is to end within one


@dataclass
class Session:
    """folder: of all its files; each run has a folder in it. results, failed: of the last run; failed
    holds sentences. has_chosen: the visitor, one of these results to look at. stop: ends the last
    run. moved: where a file was uploaded to -> where it is. count: of the files and runs. threads:
    of all runs. is_over: the tab is closed. used: when it was last asked for, by the monotonic clock.
    """

    folder: Path
    results: list[Result] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    has_chosen: bool = False
    stop: threading.Event = field(default_factory=threading.Event)
    moved: dict[Path, Path] = field(default_factory=dict)
    count: int = 0
    threads: list[threading.Thread] = field(default_factory=list)
    is_over: bool = False
    used: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)  # a browser asks twice at a time

    def take(self, uploads: list[str]) -> list[Path]:
        """Moves uploaded pictures into the session's folder, where they are not there yet; -> where
        they are now. Each has a folder of its own, so that names need not differ. What is no picture
        by name is deleted. Raises AppError.
        """
        pictures: list[Path] = []
        with self.lock:
            for upload in map(Path, uploads):
                if kind_left_out(upload.name) is None:
                    pictures.append(self._taken(upload))
                else:
                    upload.unlink(missing_ok=True)
        return pictures

    def _taken(self, upload: Path) -> Path:
        if not upload.exists() and upload in self.moved:  # the browser has not heard of it yet
            return self.moved[upload]
        if self.folder in upload.parents and upload.exists():
            return upload
        place = self._new_folder("in") / upload.name
        try:
            shutil.move(upload, place)
        except FileNotFoundError:
            raise AppError(f"{upload.name}: is no longer here; add it once more.") from None
        self.moved[upload] = place
        return place

    @property
    def is_at_work(self) -> bool:
        return not self.stop.is_set() and any(thread.is_alive() for thread in self.threads)

    def begin(self, pictures: Collection[Path]) -> None:
        """Forgets the run before, its files included, and every upload that is not of `pictures`. A
        run that has not ended yet keeps its own lists and ends for itself.
        """
        self.stop.set()
        self.results, self.failed, self.stop = [], [], threading.Event()
        self.has_chosen = False
        self.threads = [thread for thread in self.threads if thread.is_alive()]
        kept = {picture.parent.name for picture in pictures}
        with self.lock:
            self.moved = {old: new for old, new in self.moved.items() if new.parent.name in kept}
            _, folders, _ = next(os.walk(self.folder), ("", [], []))  # it may be deleted by now
            for name in {*folders} - kept:
                shutil.rmtree(self.folder / name, ignore_errors=True)

    def new_folder(self, kind: str) -> Path:
        with self.lock:
            return self._new_folder(kind)

    def _new_folder(self, kind: str) -> Path:
        self.count += 1
        folder = self.folder / f"{kind}-{self.count}"
        folder.mkdir(parents=True)
        return folder

    @property
    def files(self) -> list[Path]:
        """Of all results."""
        return [path for result in self.results for path in result.files]

    def pack(self) -> Path:
        """A ZIP of all results, of which there is one. Equal names get a number, also those that
        differ in case alone. Raises AppError, WriteError.
        """
        files = self.files
        if not files:
            raise AppError("There is no result; press Make larger first.")
        place = files[0].parents[1] / "larger.zip"
        taken: set[str] = set()
        with (
            whole_file(place) as draft,
            ZipFile(draft, "w") as archive,
        ):  # pictures are packed already
            for path in files:
                numbered = (f"{path.stem}-{count}{path.suffix}" for count in itertools.count(2))
                names = itertools.chain([path.name], numbered)
                name = next(name for name in names if name.casefold() not in taken)
                taken.add(name.casefold())
                archive.write(path, name)
        return place

    def sentence(self, error: BaseException) -> str:
        """Its text, which names files without the folders that they lie in here."""
        folders = re.escape(shown(self.folder))
        return shown(re.sub(rf"{folders}/(in-\d+|run-\d+(/\d+)?)/", "", str(error)))


class Sessions:
    """root: folder of all sessions, whose parent may be served."""

    def __init__(self, root: Path):
        self.root = root
        self._open: dict[str, Session] = {}
        self._tabs: Counter[str] = Counter()  # keys of the browser tabs that are open
        self._lock = threading.Lock()

    def of(self, key: str) -> Session:
        """That of a browser tab, made when it is first asked for."""
        with self._lock:
            if key not in self._open:
                folder = self.root / secrets.token_hex(16)
                folder.mkdir(parents=True)
                self._open[key] = Session(folder)
            self._open[key].used = time.monotonic()
            return self._open[key]

    @contextmanager
    def tab(self, key: str) -> Iterator[None]:
        """During the body, the tab is open."""
        with self._lock:
            self._tabs[key] += 1
        try:
            yield
        finally:
            with self._lock:
                self._tabs -= Counter([key])  # keeps no zeros

    def end(self, key: str) -> None:
        """Stops its work and deletes its files."""
        with self._lock:
            session = self._open.pop(key, None)
        if session:
            self._end([session])

    def end_unused(self, seconds: float) -> None:
        """Ends those of no open tab that were not asked for in so long: a program may name any key."""
        until = time.monotonic() - seconds
        with self._lock:
            unused = [k for k, s in self._open.items() if s.used <= until and not self._tabs[k]]
        for key in unused:
            self.end(key)

    def strangers(self) -> list[Path]:
        """Folders that no session owns, such as of one that still wrote when it was ended."""
        with self._lock:
            known = {session.folder for session in self._open.values()}
            return [path for path in self.root.glob("*") if path not in known]

    def close(self) -> None:
        """Ends all, and waits a moment for their work, which may be writing."""
        with self._lock:
            sessions = [*self._open.values()]
            self._open.clear()
        self._end(sessions, MOMENT)

    def _end(self, sessions: list[Session], seconds: float = 0) -> None:
        until = time.monotonic() + seconds
        for session in sessions:
            session.is_over = True
            session.stop.set()
        for thread in (thread for session in sessions for thread in session.threads):
            thread.join(max(0, until - time.monotonic()))
        for session in sessions:
            shutil.rmtree(session.folder, ignore_errors=True)


def left_out(uploads: list[str]) -> str:
    """A sentence on those that are no pictures by name ("" if none). Raises AppError where there is no
    picture.
    """
    reasons = [kind_left_out(Path(upload).name) for upload in uploads]
    counts = Counter(filter(None, reasons))
    if not uploads:
        raise AppError("There is no picture yet; drop one on the field, or click it.")
    if None not in reasons:
        raise AppError(f"There is no picture among {in_words(counts)}; add one.")
    return f"Left out: {in_words(counts)}." if counts else ""
