"""Sizes of pictures from their headers, which are read once: a file in the user's cache folder keeps
them, and a picture whose size in bytes or time has changed is read again.

Of several processes that begin at once, one reads and the others wait for its file. It is written
every minute, so that a scan that is stopped goes on where it was.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from tqdm import tqdm

from ldm_dream.data import lmdb_store
from ldm_dream.data.formats import HEAD, JPEG, kind_of
from ldm_dream.data.header import header_of
from ldm_dream.data.image import ImageError
from ldm_dream.data.listing import BYTES, TIME, Listing
from ldm_dream.errors import shown
from ldm_dream.writing import WriteError, make_folder, whole_file

log = logging.getLogger(__name__)

HEIGHT, WIDTH, DEPTH = 0, 1, 2  # columns of `Headers.table`
KEPT_FROM = 500  # headers, 0.2 s: fewer are read again faster than a file would be worth
SLOW = 3.0  # seconds, after which a scan says how long it took
KEEP_EVERY = 60.0  # seconds
PATIENCE = 600.0  # seconds, after which a scan no longer waits for that of another process
POLL = 0.2  # seconds
PREFIX = 2**16  # bytes of a JPEG in an LMDB that are looked at first
_VERSION = 1


@dataclass(frozen=True)
class Headers:
    """table: int64 [n, 3], height, width and bytes a channel (0: not known) of each picture; a row of
    zeros where its header cannot be read, and `unreadable` says why.
    """

    table: np.ndarray
    unreadable: dict[int, str]


def read_headers(listing: Listing, rows: list[int]) -> Headers:
    """Of these pictures of a listing, in this order."""
    table = np.zeros((len(rows), 3), np.int64)
    if listing.sizes:
        for i, row in enumerate(rows):
            table[i, :DEPTH] = listing.sizes.get(listing.names[row], (0, 0))
    path = cache_file(listing.place)
    _fill(table, _kept(path), listing, rows)
    unreadable: dict[int, str] = {}
    if not table[:, HEIGHT].all():
        with _alone(path, listing.place):
            kept = _kept(path)  # another process may have been here
            _fill(table, kept, listing, rows)
            new = np.flatnonzero(table[:, HEIGHT] == 0)
            begin = time.monotonic()

            def keep() -> None:
                _keep(path, kept, listing, [rows[i] for i in new], table[new])

            unreadable = _scan(table, listing, rows, new, keep)
            seconds = time.monotonic() - begin
            if len(new) >= KEPT_FROM or seconds > SLOW:
                keep()
        if seconds > SLOW:
            log.warning(
                "%s: the headers of %d pictures were read in %.0f s; %s.",
                shown(listing.place), len(new), seconds,
                f"{path} keeps them" if path.is_file() else f"{path} cannot be written to keep them",
            )  # fmt: skip
    return Headers(table, unreadable)


def cache_file(place: Path) -> Path:
    """Where the headers of a place are kept, by its true path."""
    own = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    name = hashlib.sha256(os.fsencode(os.path.realpath(place))).hexdigest()
    return Path(own) / "ldm_dream" / "headers" / f"{name}.npz"


def _scan(
    table: np.ndarray,
    listing: Listing,
    rows: list[int],
    wanted: np.ndarray,
    keep: Callable[[], None],
) -> dict[int, str]:
    """Fills these rows of the table, and calls `keep` every minute; -> why pictures are unreadable."""
    unreadable: dict[int, str] = {}
    said = time.monotonic()
    with lmdb_store.reading(listing.place) if listing.is_lmdb else nullcontext() as lmdb:
        # disable=None: only on a terminal
        for i in tqdm(wanted.tolist(), "reading headers", disable=None, leave=False, delay=1):
            try:
                table[i] = _header(listing, rows[i], lmdb)
            except ImageError as error:
                unreadable[i] = str(error)
            if time.monotonic() - said > KEEP_EVERY:
                keep()
                said = time.monotonic()
    return unreadable


def _header(listing: Listing, row: int, lmdb: Any) -> tuple[int, int, int]:
    """A row of `Headers.table`. lmdb: where the picture is in one, a transaction of it. Raises
    ImageError.
    """
    path = Path(listing.path(row))
    if lmdb is None:
        return _header_of(path, None)
    value = lmdb_store.view(lmdb, listing.place, listing.names[row])
    # all that tells a JPEG's size and orientation comes first; of other kinds it may come last
    if len(value) > PREFIX and kind_of(bytes(value[:HEAD])) is JPEG:
        with suppress(ImageError):  # a profile or a preview may be larger
            return _header_of(path, bytes(value[:PREFIX]))
    return _header_of(path, bytes(value))


def _header_of(path: Path, content: bytes | None) -> tuple[int, int, int]:
    with header_of(path, content) as header:
        return *header.size, header.depth


# -------------------------------------------------------------------------------------- what is kept


class Kept(NamedTuple):
    """index: name -> row of `rows`, int64 [n, 5]: bytes, time, and a row of `Headers.table`."""

    index: dict[str, int]
    rows: np.ndarray


NOTHING = Kept({}, np.zeros((0, 5), np.int64))


def _fill(table: np.ndarray, kept: Kept, listing: Listing, rows: list[int]) -> None:
    """What is kept of these pictures as they are now."""
    known = np.array([kept.index.get(listing.names[row], -1) for row in rows], np.int64)
    here = np.flatnonzero(known >= 0)
    found, now = kept.rows[known[here]], listing.stats[rows][here][:, [BYTES, TIME]]
    same = (found[:, :2] == now).all(1)
    table[here[same]] = found[same, 2:]


def _kept(path: Path) -> Kept:
    """Nothing where there is no such file, or a damaged one."""
    try:
        with np.load(path, allow_pickle=False) as file:
            if int(file["version"]) != _VERSION:
                return NOTHING
            names, rows = file["names"].tobytes(), file["rows"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return NOTHING
    found = names.decode("utf-8", "surrogateescape").split("\0")
    index = {name: row for row, name in enumerate(found)}
    return Kept(index, rows) if rows.shape == (len(found), 5) else NOTHING


def _keep(path: Path, kept: Kept, listing: Listing, new: list[int], table: np.ndarray) -> None:
    """Beside what is kept of pictures that are still there."""
    found = np.concatenate([listing.stats[new][:, [BYTES, TIME]], table], 1)
    fresh = {listing.names[row]: values for row, values in zip(new, found) if values[2]}
    there = {*listing.names, *listing.others} - fresh.keys()
    all_rows = {name: kept.rows[row] for name, row in kept.index.items() if name in there} | fresh
    if not all_rows:
        return
    names = "\0".join(all_rows).encode("utf-8", "surrogateescape")
    # a cache that cannot be written costs time alone
    with suppress(WriteError), whole_file(path) as draft, draft.open("wb") as file:
        np.savez(
            file,
            version=np.int64(_VERSION),
            names=np.frombuffer(names, np.uint8),
            rows=np.stack(list(all_rows.values())),
        )


@contextmanager
def _alone(path: Path, place: Path) -> Iterator[None]:
    """In the body no other process scans the same place, unless no lock can be had in time."""
    try:
        make_folder(path.parent)
        lock = path.with_suffix(".lock").open("a")
    except OSError:  # WriteError is one
        yield
        return
    with lock:
        _wait_for(lock, place)
        yield


def _wait_for(lock: IO, place: Path) -> None:
    """Until it is had, at most PATIENCE; what takes long is said."""
    begin, said = time.monotonic(), False
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except OSError as error:
            if not isinstance(error, BlockingIOError):  # a file system without locks
                return
        waited = time.monotonic() - begin
        if waited > PATIENCE:
            log.warning(
                "%s: another process reads its headers for %.0f s; they are read here as well.",
                shown(place), waited,
            )  # fmt: skip
            return
        if waited > SLOW and not said:
            log.warning("%s: another process reads its headers; waiting for it.", shown(place))
            said = True
        time.sleep(POLL)
