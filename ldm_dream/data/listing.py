"""What one place of a config holds: the pictures of a folder, of a list or of an LMDB, or one picture.

Unlike the upscaler's listing (`images.list_images`) links to folders are followed, and hidden folders
are not looked into. Each file is asked once for its size in bytes and its time.
"""

from __future__ import annotations

import functools
import os
import re
import stat
from array import array
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from ldm_dream.data import lmdb_store
from ldm_dream.data.formats import BY_SUFFIX, READABLE
from ldm_dream.data.images import in_words, kind_left_out
from ldm_dream.errors import UserError, shown
from ldm_dream.writing import OF_A_RUN, OF_A_SET

LISTS = (".txt", ".lst")
BYTES, TIME = 0, 1  # columns of `Listing.stats`
Identity = tuple[int, int, str | None]  # device, inode, and the key of an LMDB


class DataError(UserError, ValueError):
    """Training data that cannot be used; its text is complete for the user."""


@dataclass(frozen=True)
class Listing:
    """Pictures in no particular order.

    names: below the place, with `/` and suffix; of an LMDB its keys; of a list what leads from its
    folder to the picture, `../` too. others: names there that are not as the place's pattern says.
    keys: what `{}` of the pattern stands for, or the names without suffix. stats: int64 [n, 4], bytes, mtime in ns, device
    and inode. left_out: how many of each other kind, by a few words. elsewhere: paths of files that
    are not the name below the place. sizes: name -> (height, width) where the place itself tells.
    """

    place: Path
    names: list[str]
    keys: list[str]
    stats: np.ndarray
    left_out: dict[str, int]
    elsewhere: list[str] | None = None
    is_lmdb: bool = False
    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)
    others: tuple[str, ...] = ()

    def path(self, row: int) -> str:
        """Of its file; of an LMDB's picture it is a name for messages."""
        return self.elsewhere[row] if self.elsewhere else f"{self.root}{self.names[row]}"

    def identities(self) -> list[Identity]:
        """What is equal where two names lead to one picture."""
        files = self.stats[:, TIME + 1 :].tolist()
        keys = self.names if self.is_lmdb else [None] * len(files)
        return [(device, inode, key) for (device, inode), key in zip(files, keys)]

    @functools.cached_property
    def root(self) -> str:
        """What stands before each name."""
        return "" if str(self.place) == "." else f"{self.place}/".replace("//", "/")


def list_place(place: Path) -> Listing:
    """Raises DataError."""
    if os.path.isdir(place):
        if os.path.isfile(place / lmdb_store.DATA):
            return _of_lmdb(place)
        return _of_folder(place)
    if not os.path.isfile(place):  # not Path.is_file, which raises for a name that is too long
        raise DataError(f"{shown(place)}: no such file or folder.")
    if place.suffix.lower() in LISTS:
        return _of_list(place)
    found = _Found()
    found.add(place.name, os.stat(place))
    return _listing(place, found, {}, [str(place)])


def narrowed(place: Path, pattern: str) -> tuple[Path, str]:
    """`all.txt/sub`, `{}` -> `all.txt`, `sub/{}`: names below a list or an LMDB are no folders."""
    for above in place.parents:
        if os.path.isfile(above) or os.path.isfile(above / lmdb_store.DATA):
            return above, f"{place.relative_to(above).as_posix()}/{pattern}"
    return place, pattern


def matching(listing: Listing, pattern: str) -> Listing:
    """The pictures whose names are as `pattern` says, and what its `{}` is in them. A pattern without
    a suffix takes any.
    """
    before, _, behind = pattern.partition("{}")
    fits = re.compile(f"{re.escape(before)}(.*){re.escape(behind)}", re.DOTALL)
    whole = without_suffix(pattern) != pattern
    keys = [fits.fullmatch(name if whole else without_suffix(name)) for name in listing.names]
    chosen = [i for i, key in enumerate(keys) if key]
    if not chosen:
        raise DataError(
            f"{shown(listing.place)}: none of its {len(listing.names)} pictures has a name like {shown(pattern)}."
        )
    others = tuple(name for name, key in zip(listing.names, keys) if not key)
    return replace(
        listing,
        names=[listing.names[i] for i in chosen],
        keys=[key[1] for key in keys if key],
        elsewhere=listing.elsewhere and [listing.elsewhere[i] for i in chosen],
        stats=listing.stats[chosen],
        left_out=listing.left_out | ({"of other names": len(others)} if others else {}),
        others=others,
    )


def without_suffix(name: str) -> str:
    """A name without the suffix of a kind of picture; keys of an LMDB often have none."""
    stem, suffix = os.path.splitext(name)
    return stem if suffix.lower() in BY_SUFFIX else name


@dataclass(frozen=True)
class _Found:
    """Pictures one after the other: a name and four numbers each, so that millions fit."""

    names: list[str] = field(default_factory=list)
    numbers: array[int] = field(default_factory=lambda: array("q"))

    def add(self, name: str, status: os.stat_result) -> None:
        ids = (_signed(status.st_dev), _signed(status.st_ino))
        self.names.append(name)
        self.numbers.extend((status.st_size, status.st_mtime_ns, *ids))


def _signed(number: int) -> int:
    """Of 64 bits without sign, as an inode is."""
    return number - 2**64 if number >= 2**63 else number


def _listing(
    place: Path,
    found: _Found,
    left_out: Mapping[str, int],
    elsewhere: list[str] | None = None,
) -> Listing:
    return Listing(
        place,
        found.names,
        [without_suffix(name) for name in found.names],
        np.array(found.numbers, np.int64).reshape(-1, 4),
        dict(sorted(left_out.items())),
        elsewhere,
    )


def _of_folder(place: Path) -> Listing:
    """Links to folders come last, so that a folder that is reached in two ways goes by its own name;
    one that is seen, such as a link back up, is not looked into, and neither is the folder of a run,
    which holds sample grids.
    """
    found, left_out, seen = _Found(), Counter(), set()
    folders, links = [""], []
    while folders or links:
        is_link = not folders
        inner = links.pop(0) if is_link else folders.pop()
        where = os.path.join(place, inner) if inner else str(place)
        try:
            status = os.stat(where)
            if (identity := (status.st_dev, status.st_ino)) in seen:
                left_out["link to a folder that is listed already"] += is_link
                continue
            with os.scandir(where) as entries:
                there = list(entries)
        except OSError as error:
            if not inner:
                raise DataError(f"{shown(place)}: cannot be read: {error.strerror}.") from None
            left_out["unreadable subfolder"] += 1
            continue
        seen.add(identity)
        if inner and any(entry.name == OF_A_RUN for entry in there):
            left_out["run folder"] += 1
            continue
        for entry in there:
            if entry.name == OF_A_SET:
                continue
            name = f"{inner}/{entry.name}" if inner else entry.name
            status = _status(entry.path)
            is_folder = status is not None and stat.S_ISDIR(status.st_mode)
            if entry.name.startswith("."):
                left_out["hidden folder" if is_folder else "hidden"] += 1
            elif is_folder:
                (links if entry.is_symlink() else folders).append(name)
            elif status is None or not stat.S_ISREG(status.st_mode):
                left_out["no file"] += 1
            elif kind := kind_left_out(entry.name):
                left_out[kind] += 1
            else:
                found.add(name, status)
        links.sort()
    left_out = +left_out  # without zeros
    if not found.names:
        others = f" (it holds {in_words(dict(sorted(left_out.items())))})" if left_out else ""
        raise DataError(
            f"{shown(place)}: the folder and its subfolders hold no picture in {READABLE}{others}."
        )
    return _listing(place, found, left_out)


def _of_list(place: Path) -> Listing:
    """A path a line, relative to the list's folder; lines that begin with # say nothing."""
    try:
        text = place.read_bytes().decode("utf-8-sig", errors="surrogateescape")
    except OSError as error:
        raise DataError(f"{shown(place)}: cannot be read: {error.strerror}.") from None
    found, paths = _Found(), dict[str, int]()
    left_out: Counter[str] = Counter()
    # other ends of lines and other spaces may be part of a name
    for number, line in enumerate(text.split("\n"), 1):
        line = line.strip(" \t\r")
        if not line or line.startswith("#"):
            continue
        path = os.path.normpath(os.path.join(place.parent, os.path.expanduser(line)))
        status = _status(path)
        if status is None or not stat.S_ISREG(status.st_mode):
            wrong = (
                "no such file" if status is None else "no file; a list names pictures, one a line"
            )
            raise DataError(f"{shown(place)}, line {number}: {shown(path)}: {wrong}.")
        if path in paths:
            left_out["line that stands there twice"] += 1
            continue
        paths[path] = number
        found.add(os.path.relpath(path, place.parent), status)
    if not paths:
        raise DataError(f"{shown(place)}: the list names no picture; write a path a line.")
    return _listing(place, found, left_out, list(paths))


def _of_lmdb(place: Path) -> Listing:
    try:
        keys, lengths, sizes = lmdb_store.contents(place)
    except lmdb_store.LmdbError as error:
        raise DataError(str(error)) from None
    if not keys:
        raise DataError(f"{shown(place)}: the LMDB holds no picture.")
    status = os.stat(place / lmdb_store.DATA)
    stats = np.empty((len(keys), 4), np.uint64)
    stats[:, BYTES] = lengths
    stats[:, TIME:] = status.st_mtime_ns, status.st_dev, status.st_ino
    missing = len(sizes.keys() - set(keys)) if sizes else 0
    return Listing(
        place,
        keys,
        [without_suffix(key) for key in keys],
        stats.astype(np.int64),
        {f"name in {lmdb_store.META} without a picture": missing} if missing else {},
        is_lmdb=True,
        sizes=sizes,
    )


def _status(path: str) -> os.stat_result | None:
    """Of what a name leads to; None where that is nothing."""
    try:
        return os.stat(path)
    except (OSError, ValueError):  # ValueError: a name that no file can have
        return None
