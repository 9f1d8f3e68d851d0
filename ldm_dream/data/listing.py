"""What one place of a config holds: the pictures of a folder, of a list or of an LMDB, or one picture.

Unlike the upscaler's listing (`images.list_images`) links to folders are followed, and hidden folders
are not looked into. Each file is asked once for its size in bytes and its time.
"""

from __future__ import annotations

import functools
import os
import re
import stat
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from ldm_dream.data import lmdb_store
from ldm_dream.data.formats import BY_SUFFIX, READABLE
from ldm_dream.data.images import in_words, kind_left_out
from ldm_dream.errors import UserError, shown

LISTS = (".txt", ".lst")
BYTES, TIME = 0, 1  # columns of `Listing.stats`
Identity = tuple[int, int]  # (device, inode)


class DataError(UserError, ValueError):
    """Training data that cannot be used; its text is complete for the user."""


@dataclass(frozen=True)
class Listing:
    """Pictures in no particular order.

    names: below the place, with `/` and suffix; of an LMDB its keys. keys: what `{}` of the place's
    pattern stands for, or the names without suffix. stats: int64 [n, 4], bytes, mtime in ns, device
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

    def path(self, row: int) -> str:
        """Of its file; of an LMDB's picture it is a name for messages."""
        return self.elsewhere[row] if self.elsewhere else f"{self.root}{self.names[row]}"

    @functools.cached_property
    def root(self) -> str:
        """What stands before each name."""
        return "" if str(self.place) == "." else f"{self.place}/".replace("//", "/")


def list_place(place: Path, seen: set[Identity]) -> Listing:
    """seen: folders that were looked into, which are not looked into again. Raises DataError."""
    if os.path.isdir(place):
        if os.path.isfile(place / lmdb_store.DATA):
            return _of_lmdb(place)
        return _of_folder(place, seen)
    if not os.path.isfile(place):  # not Path.is_file, which raises for a name that is too long
        raise DataError(f"{shown(place)}: no such file or folder.")
    if place.suffix.lower() in LISTS:
        return _of_list(place)
    return _listing(place, [(place.name, os.stat(place))], {}, [str(place)])


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
    others = len(keys) - len(chosen)
    return replace(
        listing,
        names=[listing.names[i] for i in chosen],
        keys=[key[1] for key in keys if key],
        elsewhere=listing.elsewhere and [listing.elsewhere[i] for i in chosen],
        stats=listing.stats[chosen],
        left_out=listing.left_out | ({"of other names": others} if others else {}),
    )


def without_suffix(name: str) -> str:
    """A name without the suffix of a kind of picture; keys of an LMDB often have none."""
    stem, suffix = os.path.splitext(name)
    return stem if suffix.lower() in BY_SUFFIX else name


def _listing(
    place: Path,
    found: list[tuple[str, os.stat_result]],
    left_out: Mapping[str, int],
    elsewhere: list[str] | None = None,
) -> Listing:
    """found: name and status of each picture."""
    names = [name for name, _ in found]
    stats = [(s.st_size, s.st_mtime_ns, s.st_dev, s.st_ino) for _, s in found]
    return Listing(
        place,
        names,
        [without_suffix(name) for name in names],
        # an inode has 64 bits and no sign
        np.array(stats, np.uint64).reshape(-1, 4).astype(np.int64),
        dict(sorted(left_out.items())),
        elsewhere,
    )


def _of_folder(place: Path, seen: set[Identity]) -> Listing:
    """Links to folders come last, so that a folder that is reached in two ways goes by its own name;
    one that is seen, such as a link back up, is not looked into.
    """
    found, left_out, known = [], Counter(), False
    folders, links = [""], []
    while folders or links:
        is_link = not folders
        inner = links.pop(0) if is_link else folders.pop()
        where = os.path.join(place, inner) if inner else str(place)
        try:
            status = os.stat(where)
            if (identity := (status.st_dev, status.st_ino)) in seen:
                known = True
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
        for entry in there:
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
                found.append((name, status))
        links.sort()
    left_out = +left_out  # without zeros
    if not found and not known:
        others = f" (it holds {in_words(dict(sorted(left_out.items())))})" if left_out else ""
        raise DataError(
            f"{shown(place)}: the folder and its subfolders hold no picture in {READABLE}{others}."
        )
    return _listing(place, found, left_out)


def _of_list(place: Path) -> Listing:
    """A path a line, relative to the list's folder; lines that begin with # say nothing."""
    try:
        lines = place.read_text(encoding="utf-8-sig", errors="surrogateescape").splitlines()
    except OSError as error:
        raise DataError(f"{shown(place)}: cannot be read: {error.strerror}.") from None
    found: dict[str, tuple[str, os.stat_result]] = {}
    left_out: Counter[str] = Counter()
    for number, line in enumerate(map(str.strip, lines), 1):
        if not line or line.startswith("#"):
            continue
        path = os.path.normpath(os.path.join(place.parent, os.path.expanduser(line)))
        status = _status(path)
        if status is None or not stat.S_ISREG(status.st_mode):
            wrong = (
                "no such file" if status is None else "no file; a list names pictures, one a line"
            )
            raise DataError(f"{shown(place)}, line {number}: {shown(path)}: {wrong}.")
        left_out["line that stands there twice"] += path in found
        below = os.path.relpath(path, place.parent)
        name = os.path.basename(path) if below.startswith("..") else below
        found[path] = (name, status)
    if not found:
        raise DataError(f"{shown(place)}: the list names no picture; write a path a line.")
    return _listing(place, list(found.values()), +left_out, list(found))


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
