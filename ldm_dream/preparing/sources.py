"""Pictures where they lie: in folders, zips, tars, tars in tars, and LMDBs. Nothing is unpacked but
an LMDB in a zip, which cannot be read there.

A picture is an entry: its path, as FOLDER_OR_ARCHIVE/PATH_INSIDE, and how to read its bytes. No
part of such a path names a file that is written. Entries can be sent to other processes; those of a
compressed tar (.tar.gz) can only be read one after the other, by `one_after_the_other`.
"""

from __future__ import annotations

import hashlib
import lzma
import os
import re
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath

from ldm_dream.data import lmdb_store
from ldm_dream.data.lmdb_store import DATA, reading
from ldm_dream.errors import shown
from ldm_dream.preparing.recipe import PrepareError
from ldm_dream.writing import OF_A_SET, whole_file

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
ARCHIVES = re.compile(r"\.(zip|tar|tgz|tar\.(gz|bz2|xz))$", re.IGNORECASE)
# RuntimeError: of zipfile, for a file that is encrypted or packed in a way that it does not know
UNREADABLE = (OSError, EOFError, RuntimeError, zlib.error, lzma.LZMAError)
BROKEN = (zipfile.BadZipFile, tarfile.TarError, *UNREADABLE)


@dataclass(frozen=True, slots=True)
class Entry:
    """A picture in a file of its own."""

    path: str
    file: Path

    def read(self) -> bytes:
        return self.file.read_bytes()


@dataclass(frozen=True, slots=True)
class InZip(Entry):
    member: str

    def read(self) -> bytes:
        return _opened_zip(self.file).read(self.member)


@dataclass(frozen=True, slots=True)
class InTar(Entry):
    """A stretch of a file: a member of a tar that is not compressed, or of a tar in it."""

    offset: int
    size: int

    def read(self) -> bytes:
        with self.file.open("rb") as file:
            file.seek(self.offset)
            data = file.read(self.size)
        if len(data) < self.size:
            raise EOFError("the archive ends before it")
        return data


@dataclass(frozen=True, slots=True)
class InCompressedTar(Entry):
    member: str

    def read(self) -> bytes:
        raise AssertionError("read by one_after_the_other")


@dataclass(frozen=True, slots=True)
class InMemory(Entry):
    data: bytes

    def read(self) -> bytes:
        return self.data


@dataclass(frozen=True, slots=True)
class InLmdb(Entry):
    key: bytes

    def read(self) -> bytes:
        return lmdb_store.read(self.file, os.fsdecode(self.key))


@dataclass(frozen=True, slots=True)
class ZippedLmdb(Entry):
    """Not a picture: a database in a zip, of `size` bytes with this CRC-32; `unpacked` makes pictures
    of it.
    """

    member: str
    size: int
    crc: int

    def name(self) -> str:
        """Of a folder: another one for each archive, member and contents."""
        whole = "\0".join(map(str, (self.file.resolve(), self.member, self.size, self.crc)))
        return hashlib.sha256(os.fsencode(whole)).hexdigest()[:32]


@lru_cache(maxsize=4)
def _opened_zip(file: Path) -> zipfile.ZipFile:
    return zipfile.ZipFile(file)


# ------------------------------------------------------------------------------------ what is there


def find_entries(places: Iterable[Path], archives: str) -> list[Entry]:
    """All pictures in these folders and archives, in order. Of archives that lie in a folder, those
    are opened whose name matches. Raises PrepareError.
    """
    entries: list[Entry] = []
    for place in places:
        place = place.expanduser()
        name = place.resolve().name
        if place.is_dir():
            entries += _in_folder(place, name, re.compile(archives))
        elif not place.exists():
            raise PrepareError(f"{shown(place)}: no such file or folder; put the archives there.")
        else:
            entries += _in_archive(place, name)
    return entries


def _in_folder(place: Path, name: str, archives: re.Pattern) -> Iterator[Entry]:
    """Links are followed, but into no folder twice."""
    seen = set()
    for folder, subfolders, files in os.walk(place, onerror=_cannot_list, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen or OF_A_SET in files:
            subfolders.clear()
            continue
        seen.add(real)
        subfolders[:] = sorted(sub for sub in subfolders if not sub.startswith("."))
        inside = PurePosixPath(name, Path(folder).relative_to(place).as_posix())
        for file in sorted(name for name in files if not name.startswith(".")):
            path, here = str(inside / file), Path(folder, file)
            if file == DATA:
                yield from _in_lmdb(Path(folder), path)
            elif ARCHIVES.search(file) and archives.search(file):
                yield from _in_archive(here, path)
            elif _is_picture(file) and here.is_file():
                yield Entry(path, here)


def _cannot_list(error: OSError) -> None:
    raise PrepareError(f"{shown(error.filename)}: cannot be read: {error.strerror}.")


def _is_picture(name: str) -> bool:
    at = PurePosixPath(name)
    return at.suffix.lower() in SUFFIXES and not at.name.startswith(".")


def _in_archive(file: Path, path: str) -> Iterator[Entry]:
    try:
        if file.suffix.lower() == ".zip" or zipfile.is_zipfile(file):
            yield from _in_zip(file, path)
        elif _is_compressed(file):
            with tarfile.open(file, "r|*") as tar:
                for info in tar:
                    if info.isreg() and _is_picture(info.name):
                        yield InCompressedTar(f"{path}/{info.name}", file, info.name)
        else:
            with tarfile.open(file, "r:") as tar:
                yield from _in_tar(tar, file, path, 0)
    except tarfile.ReadError as error:
        if not ARCHIVES.search(file.name):
            raise PrepareError(
                f"{shown(file)}: is no folder, no zip and no tar; unpack it, and name its folder."
            ) from None
        raise _broken(file, error) from None
    except BROKEN as error:
        raise _broken(file, error) from None


def _broken(file: Path, error: Exception) -> PrepareError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else error
    return PrepareError(
        f"{shown(file)}: cannot be read whole ({shown(reason)}); get this archive again."
    )


def _is_compressed(file: Path) -> bool:
    with file.open("rb") as opened:
        head = opened.read(6)
    return head.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0"))


def _in_zip(file: Path, path: str) -> Iterator[Entry]:
    with zipfile.ZipFile(file) as archive:
        for info in archive.infolist():
            inside = f"{path}/{info.filename}"
            if PurePosixPath(info.filename).name == DATA:
                yield ZippedLmdb(inside, file, info.filename, info.file_size, info.CRC)
            elif _is_picture(info.filename) and not info.is_dir():
                yield InZip(inside, file, info.filename)


def _in_tar(tar: tarfile.TarFile, file: Path, path: str, start: int) -> Iterator[Entry]:
    """start: where in the file this tar begins."""
    for info in tar:
        inside = f"{path}/{info.name}"
        if info.isreg() and not info.issparse() and _is_picture(info.name):
            yield InTar(inside, file, start + info.offset_data, info.size)
        elif info.isreg() and info.name.endswith(".tar"):
            with tarfile.open(fileobj=tar.extractfile(info), mode="r:") as inner:
                yield from _in_tar(inner, file, inside, start + info.offset_data)


def _in_lmdb(folder: Path, path: str) -> Iterator[Entry]:
    with reading(folder) as transaction:
        for key in map(bytes, transaction.cursor().iternext(values=False)):
            yield InLmdb(f"{path}/{key.decode('ascii', 'replace')}", folder, key)


# --------------------------------------------------------------------------------------- to read


def one_after_the_other(entries: Iterable[Entry]) -> Iterator[Entry]:
    """The same entries, those of compressed tars last and with their bytes, in the order of the tar.
    Raises PrepareError for a tar that ends too early.
    """
    compressed: dict[Path, dict[str, Entry]] = {}
    for entry in entries:
        if isinstance(entry, InCompressedTar):
            compressed.setdefault(entry.file, {})[entry.member] = entry
        else:
            yield entry
    for file, wanted in compressed.items():
        try:
            with tarfile.open(file, "r|*") as tar:
                for info in tar:
                    if info.isreg() and (entry := wanted.pop(info.name, None)):
                        member = tar.extractfile(info)
                        yield InMemory(entry.path, file, member.read() if member else b"")
        except BROKEN as error:
            raise _broken(file, error) from None


def unpacked(entries: Iterable[Entry], folder: Path) -> Iterator[Entry]:
    """The same entries, with the pictures of databases in zips in their place: these are unpacked
    below `folder`, unless they lie there whole. Raises PrepareError.
    """
    for entry in entries:
        if isinstance(entry, ZippedLmdb):
            place = folder / entry.name()
            _unpack(entry, place / DATA)
            yield from _in_lmdb(place, entry.path)
        else:
            yield entry


def _unpack(zipped: ZippedLmdb, file: Path) -> None:
    if file.is_file() and file.stat().st_size == zipped.size and _crc(file) == zipped.crc:
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(file.parent).free
    if free < zipped.size:
        raise PrepareError(
            f"{shown(file.parent)}: {zipped.size / 1e9:.1f} GB are needed to unpack "
            f"{shown(zipped.file)}, and {free / 1e9:.1f} GB are free; name a roomier folder with -o."
        )
    try:
        with (
            whole_file(file) as draft,
            zipfile.ZipFile(zipped.file) as archive,
            archive.open(zipped.member) as source,
            draft.open("wb") as target,
        ):
            shutil.copyfileobj(source, target, 2**20)
    except (zipfile.BadZipFile, EOFError, zlib.error) as error:
        raise _broken(zipped.file, error) from None


def _crc(file: Path) -> int:
    crc = 0
    with file.open("rb") as opened:
        while block := opened.read(2**20):
            crc = zlib.crc32(block, crc)
    return crc
