"""Pictures in one LMDB, in the form that BasicSR has for them (basicsr/utils/lmdb_util.py @49eedde):
the key is the name without suffix in ASCII, the value the bytes of a PNG; beside `data.mdb` stands
`meta_info.txt`, with a line `NAME.png (height,width,channels) LEVEL` a picture.

What is committed stays when the writer is killed. `meta_info.txt` is written last.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ldm_dream.errors import UserError
from ldm_dream.writing import WriteError, whole_file

DATABASE, META = "data.mdb", "meta_info.txt"
LONGEST_KEY = 511  # bytes, of LMDB as it is built everywhere
FIRST_SIZE = 2**28  # bytes of the map; doubled when it is full


def _lmdb() -> Any:
    try:
        import lmdb
    except ImportError:
        raise UserError(
            "LMDBs need the package lmdb, which is not installed: pip install 'ldm_dream[data]'."
        ) from None
    return lmdb


def open_lmdb(folder: Path) -> Any:
    """A database to read. Raises UserError."""
    lmdb = _lmdb()
    try:
        database = lmdb.open(str(folder), readonly=True, lock=False, readahead=False, create=False)
    except lmdb.Error as error:
        raise UserError(f"{folder}: is no whole LMDB ({error}); make or get it again.") from None
    pages, page = database.info()["last_pgno"] + 1, database.stat()["psize"]
    there = (folder / DATABASE).stat().st_size
    if there < pages * page:  # reading behind its end would kill the process
        database.close()
        raise UserError(
            f"{folder}: is no whole LMDB ({there} of {pages * page} bytes); make or get it again."
        )
    return database


class LmdbWriter:
    """A database in `folder`, new or to go on with. Raises UserError."""

    def __init__(self, folder: Path, first_size: int = FIRST_SIZE):
        self._lmdb, self._folder = _lmdb(), folder
        try:
            self._database = self._lmdb.open(str(folder), map_size=first_size)
        except self._lmdb.Error as error:
            raise self._cannot(error) from None

    def put(self, pictures: Iterable[tuple[str, bytes]]) -> None:
        """Add (name, PNG) in one transaction: all are in, on the disk, or none is."""
        values = [(name.encode("ascii"), data) for name, data in pictures]
        while True:
            try:
                with self._database.begin(write=True) as transaction:
                    for key, data in values:
                        transaction.put(key, data)
                return
            except self._lmdb.MapFullError:
                self._database.set_mapsize(2 * self._database.info()["map_size"])
            except self._lmdb.Error as error:
                raise self._cannot(error) from None

    def close(self) -> None:
        self._database.close()

    def _cannot(self, error: Exception) -> WriteError:
        return WriteError(f"{self._folder}: cannot be written: {error}.")


def write_meta(folder: Path, sizes: dict[str, tuple[int, int]], level: int) -> None:
    """meta_info.txt. sizes: name -> (height, width)."""
    with whole_file(folder / META) as draft:
        draft.write_text(
            "".join(f"{name}.png ({h},{w},3) {level}\n" for name, (h, w) in sorted(sizes.items())),
            encoding="ascii",
        )
