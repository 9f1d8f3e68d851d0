"""Writing: a file or a folder is whole or not there, and what was not written here is not removed.

Everything is written to a draft beside its place, synced, and renamed. A draft's name is short and
says which process writes it, so a draft whose process is gone is known and removed. Every folder
written here holds `SHA256SUMS`, the digests of its files as `sha256sum -c` reads them.
"""

from __future__ import annotations

import ctypes
import errno
import itertools
import logging
import os
import re
import shutil
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ldm_dream.digests import SUMS, digest, read_sums
from ldm_dream.errors import UserError
from ldm_dream.processes import HOST, is_running

log = logging.getLogger(__name__)

OF_A_RUN = "history.jsonl"  # by which a run folder is known
OF_A_SET = ".prepared.jsonl"  # by which a folder of prepared pictures is known


class WriteError(UserError, OSError):
    """A place that cannot or must not be written to; its text is complete for the user."""


# ------------------------------------------------------------------------- before the work begins


def check_outputs(outputs: Iterable[Path], inputs: Iterable[Path]) -> None:
    """Raises WriteError unless every output file can be written, and none of them is an input or a
    link to one. Makes the folders that are missing.
    """
    with _sentences():
        read = {_identity(path): path for path in inputs if path.exists()}
        for path in outputs:
            if path.is_dir():
                raise WriteError(f"{path}: is a folder; name a file to write.")
            if path.exists() and not path.is_file():
                raise WriteError(f"{path}: is no regular file; name another.")
            if path.exists() and (source := read.get(_identity(path))):
                also = "" if source == path else f" (by the name {source})"
                raise WriteError(
                    f"{path}: is an input{also} and would be lost; name another output."
                )
            make_folder(path.parent)


def check_place(folder: Path) -> None:
    """Raises WriteError unless `folder` is there and can be written to, or can be made. Writes
    nothing.
    """
    with _sentences():
        there = folder
        while not os.path.lexists(there):
            there = there.parent
        if not there.is_dir():
            raise WriteError(f"{there}: a file stands where a folder is needed.")
        if not os.access(there, os.W_OK | os.X_OK):
            raise WriteError(f"{there}: this folder may not be written to; name another.")


def make_folder(folder: Path) -> None:
    """Make a folder that files can be written to. Raises WriteError."""
    check_place(folder)
    with _sentences():
        folder.mkdir(parents=True, exist_ok=True)


def check_folder(folder: Path, holds: str, inputs: Iterable[Path] = ()) -> None:
    """Raises WriteError unless `folder` is new or empty, or an earlier one of the kind that is to be
    written, known by a file that it `holds`, with nothing in it that is not as `whole_folder` wrote
    it. A folder of a training run, and one with an input in it, is none.
    """
    with _sentences():
        if folder.exists() and not folder.is_dir():
            raise WriteError(f"{folder}: is a file; name a folder to write.")
        whole = folder.resolve()
        if (whole.parent / OF_A_RUN).is_file() or (whole.parents[0].parent / OF_A_RUN).is_file():
            raise WriteError(f"{folder}: belongs to a training run; name another folder.")
        for path in inputs:
            if path.resolve().is_relative_to(whole):
                raise WriteError(f"{folder}: holds {path}, which is read; name another folder.")
        foreign = _not_ours(folder)
        if not foreign and folder.is_dir() and not (folder / holds).is_file():
            foreign = next((path.name for path in sorted(folder.iterdir())), None)
        if foreign:
            raise WriteError(
                f"{folder}: holds {foreign}, which was not written here; "
                "name a new folder, or move that away."
            )
        make_folder(whole.parent)


@contextmanager
def _sentences() -> Iterator[None]:
    """An OSError of the body becomes a WriteError."""
    try:
        yield
    except WriteError:
        raise
    except OSError as error:
        raise WriteError(f"{error.filename}: cannot be used: {error.strerror}.") from None


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def _not_ours(folder: Path) -> str | None:
    """What of an existing folder is not as `whole_folder` wrote it: a name, or None."""
    if folder.is_symlink():
        return "a link"
    if not folder.exists():
        return None
    if not folder.is_dir():
        return "a file"
    found = {path.relative_to(folder).as_posix(): path for path in _files(folder)}
    sums = read_sums(folder)
    for name, path in sorted(found.items()):
        if name != SUMS and (name not in sums or not path.is_file() or digest(path) != sums[name]):
            return name
    return None


def _files(folder: Path) -> Iterator[Path]:
    """All but folders, links included; an empty folder counts as a file."""
    for path in folder.iterdir():
        if path.is_symlink() or not path.is_dir() or not any(path.iterdir()):
            yield path
        else:
            yield from _files(path)


# ---------------------------------------------------------------------------------------- writing


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A draft to write, which takes the place of `path` when the body is done; of a link, the place
    that it leads to. Raises WriteError.
    """
    place = Path(os.path.realpath(path))
    make_folder(place.parent)
    draft = _draft(place.parent, place.suffix)
    try:
        draft.touch()
        mode = draft.stat().st_mode  # what the user's umask allows
        yield draft
        draft.chmod(mode)  # safetensors makes its files for the owner alone
        _sync(draft)
        os.replace(draft, place)
        _sync(place.parent)
    except OSError as error:
        if isinstance(error, UserError):
            raise
        raise WriteError(f"{path}: cannot be written: {error.strerror or error}.") from error
    finally:
        draft.unlink(missing_ok=True)


def claim_file(path: Path, text: str) -> bool:
    """Make a file that has its text from the first moment on, and that only one process can make; ->
    whether this one did. Not synced: after a crash of the machine it may be empty. Raises WriteError.
    """
    draft = _draft(path.parent, "")
    try:
        draft.write_text(text, encoding="utf-8")
        os.link(draft, path)
    except FileExistsError:  # made here: a file server may lose its answer and ask again
        return draft.stat().st_nlink == 2
    except OSError as error:
        raise WriteError(f"{path}: cannot be written: {error.strerror or error}.") from error
    finally:
        draft.unlink(missing_ok=True)
    return True


def append_line(path: Path, text: str) -> None:
    """Add a line to a log, which may stay half where the disk is full. Raises WriteError."""
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(text + "\n")
    except OSError as error:
        raise WriteError(f"{path}: cannot be written: {error.strerror}.") from error


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A draft folder to fill, which takes the place of `folder` when the body is done; an older one
    stands until then. One that holds what was not written here is moved aside. Raises WriteError.
    """
    folder = Path(os.path.abspath(folder))
    make_folder(folder.parent)
    draft = _draft(folder.parent, "")
    try:
        draft.mkdir()
        yield draft
        files = sorted(path.relative_to(draft).as_posix() for path in _files(draft))
        text = "".join(f"{digest(draft / name)}  {name}\n" for name in files)
        (draft / SUMS).write_text(text, encoding="utf-8")
        mode = (draft / SUMS).stat().st_mode
        for path in (*(draft / name for name in files), draft / SUMS, draft):
            if path.is_file():
                path.chmod(mode)
            _sync(path)
        _place(draft, folder)
    except OSError as error:
        if isinstance(error, UserError):
            raise
        raise WriteError(f"{folder}: cannot be written: {error.strerror or error}.") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def place_folder(built: Path, folder: Path, unsynced: Iterable[str] | None = None) -> None:
    """Give a folder that was filled over several runs its name, which must be free. unsynced: names
    of the files in it that may not be on the disk yet; None: of all. Raises WriteError.
    """
    with _sentences():
        if os.path.lexists(folder):
            raise WriteError(f"{folder}: is there already; name another.")
        names = os.listdir(built) if unsynced is None else unsynced
        for path in (*(built / name for name in names if (built / name).is_file()), built):
            _sync(path)
        built.rename(folder)
        _sync(folder.parent)


def _place(draft: Path, folder: Path) -> None:
    if foreign := _not_ours(folder):
        kept = _free_name(folder, "kept")
        log.warning("%s holds %s, not written here: it is now %s.", folder, foreign, kept.name)
        folder.rename(kept)
    if not folder.exists():
        draft.rename(folder)
    elif not _exchange(draft, folder):
        old = _free_name(folder, "old")
        folder.rename(old)
        try:
            draft.rename(folder)
        except OSError:
            old.rename(folder)
            raise
        shutil.rmtree(old)
    _sync(folder.parent)


def _free_name(folder: Path, word: str) -> Path:
    names = (folder.with_name(f"{folder.name}.{word}-{i}") for i in itertools.count(1))
    return next(name for name in names if not name.exists())


def _exchange(one: Path, other: Path) -> bool:
    """Both names change places at once, so that neither is missing at any time (renameat2 of Linux);
    False where the system or its file system cannot.
    """
    call = getattr(ctypes.CDLL(None), "renameat2", None)
    at_cwd, exchange = -100, 2
    names = os.fsencode(one), os.fsencode(other)
    return call is not None and call(at_cwd, names[0], at_cwd, names[1], exchange) == 0


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:  # some file systems sync files alone
        if not (path.is_dir() and error.errno in (errno.EINVAL, errno.ENOTSUP)):
            raise
    finally:
        os.close(handle)


# ----------------------------------------------------------------------------------------- drafts

_DRAFT = re.compile(
    r"\.draft-(?P<host>[0-9a-f]{8})-(?P<process>\d+)-\d+(\.\w{1,8})?"
    r"|\.step-\d+\.(?P<earlier>\d+)\.tmp"  # of earlier versions
)
WEEK = 7 * 24 * 3600  # seconds after which a draft of another machine is no longer written to
_numbers = itertools.count()
_swept: set[Path] = set()
_sweeping = threading.Lock()


def _draft(folder: Path, suffix: str) -> Path:
    """A new name in `folder`; what killed processes left there is removed at the first time."""
    with _sweeping, _sentences():  # another thread's draft is made when that is over
        if folder not in _swept:
            _swept.add(folder)
            for path in folder.iterdir():
                if (found := _DRAFT.fullmatch(path.name)) and _is_stale(path, found):
                    _remove(path)
    suffix = suffix if re.fullmatch(r"\.\w{1,8}", suffix) else ""
    return folder / f".draft-{HOST}-{os.getpid()}-{next(_numbers)}{suffix}"


def remove_drafts() -> None:
    """Those of this process, which is about to end in the middle of writing."""
    own = f".draft-{HOST}-{os.getpid()}-"
    for folder in list(_swept):  # other threads still add to it
        for path in folder.glob(f"{own}*"):
            _remove(path)


def _is_stale(path: Path, found: re.Match) -> bool:
    if found["host"] not in (None, HOST):
        return time.time() - path.lstat().st_mtime > WEEK
    process = int(found["process"] or found["earlier"])
    return process == os.getpid() or not is_running(process)  # none of this one's is open yet


def _remove(path: Path) -> None:
    """Unless another process does, or it belongs to another user."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()
