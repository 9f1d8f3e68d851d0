"""Pictures in an LMDB: a folder with `data.mdb`, in which a key names an encoded picture.

BasicSR's have a `meta_info.txt` beside it, a line `NAME.png (HEIGHT,WIDTH,CHANNELS) LEVEL` for each
key NAME; LSUN's have keys without meaning and WebP values. An environment is opened once a process,
since LMDB forbids a second time, and never travels to another one.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ldm_dream.errors import UserError, shown

DATA, META = "data.mdb", "meta_info.txt"
_META_LINE = re.compile(r"(.+?)(?:\.\w+)? \((\d+), ?(\d+), ?\d+\)(?: \d+)?")


class LmdbError(UserError, RuntimeError):
    """An LMDB that cannot be read; its text is complete for the user."""


def contents(folder: Path) -> tuple[list[str], list[int], dict[str, tuple[int, int]]]:
    """-> keys, bytes of their values, and key -> (height, width) where `meta_info.txt` tells. Raises
    LmdbError.
    """
    keys, lengths = [], []
    with reading(folder) as transaction:
        for key, value in transaction.cursor():
            keys.append(os.fsdecode(bytes(key)))
            lengths.append(len(value))
    return keys, lengths, _sizes(folder / META)


def read(folder: Path, key: str) -> bytes:
    """The value of a key. Raises LmdbError."""
    with reading(folder) as transaction:
        return bytes(view(transaction, folder, key))


def view(transaction: Any, folder: Path, key: str) -> memoryview:
    """The value of a key, while the transaction is open. Raises LmdbError."""
    value = transaction.get(os.fsencode(key))
    if value is None:
        raise LmdbError(f"{shown(folder)}: has no key {shown(key)} any more.")
    return value


def package() -> Any:
    """The package lmdb, which is an extra. Raises LmdbError."""
    try:
        import lmdb
    except ImportError:
        raise LmdbError(
            "LMDBs need the package lmdb, which is not installed: pip install 'ldm_dream[data]'."
        ) from None
    return lmdb


@contextmanager
def reading(folder: Path) -> Iterator[Any]:
    """A transaction that gives values as views of the file. What the package raises in the body
    becomes a LmdbError.
    """
    lmdb = package()
    try:
        with _opened(os.path.realpath(folder)).begin(buffers=True) as transaction:
            yield transaction
    except (lmdb.Error, OSError) as error:
        raise LmdbError(
            f"{shown(folder)}: is no whole LMDB ({shown(error)}); make or get it again."
        ) from None


@functools.cache
def _opened(folder: str) -> Any:
    """Without its lock file, which may lie where nothing can be written; pictures are read in no
    order, so nothing is read ahead.
    """
    lmdb = package()
    environment = lmdb.open(folder, readonly=True, lock=False, readahead=False, create=False)
    pages, page = environment.info()["last_pgno"] + 1, environment.stat()["psize"]
    there = os.path.getsize(os.path.join(folder, DATA))
    if there < pages * page:  # reading behind its end would end the process
        environment.close()
        raise lmdb.CorruptedError(f"{DATA} has {there} of {pages * page} bytes")
    return environment


def _sizes(path: Path) -> dict[str, tuple[int, int]]:
    """Raises LmdbError for a file that is none of BasicSR's."""
    if not path.is_file():
        return {}
    sizes = {}
    try:
        lines = path.read_bytes().decode("utf-8", errors="surrogateescape").split("\n")
    except OSError as error:
        raise LmdbError(f"{shown(path)}: cannot be read: {error.strerror}.") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        if not (found := _META_LINE.fullmatch(line.strip())):
            raise LmdbError(
                f"{shown(path)}, line {number}: {shown(line)!r} is not `NAME.png (HEIGHT,WIDTH,CHANNELS) LEVEL`; "
                "remove the file, and sizes are read from the pictures."
            )
        sizes[found[1]] = (int(found[2]), int(found[3]))
    return sizes
