"""A set of pictures that is being made: a folder of PNGs, or an LMDB.

An interrupted run goes on where it was: the journal, `.prepared.jsonl` in the set, says in its first
line what the set is, then in a line each which pictures of the publisher are done, and which files
came of them. A line is written when its files are whole. A set is built as NAME.unfinished, and has
its own name only when it is whole, so that no training takes a part of it for all.
"""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from ldm_dream.data.lmdb_store import DATA
from ldm_dream.errors import shown, some
from ldm_dream.preparing.lmdb_writer import LmdbWriter, write_meta
from ldm_dream.preparing.pictures import IN_A_FOLDER, IN_AN_LMDB
from ldm_dream.preparing.recipe import PrepareError
from ldm_dream.writing import OF_A_SET, append_line, make_folder, place_folder, whole_file

BATCH_BYTES = 64 * 2**20  # of pictures that wait for the next transaction


class Made(NamedTuple):
    """A picture of a set. data: its PNG, for an LMDB; a folder has it already."""

    name: str
    height: int
    width: int
    data: bytes = b""


Done = dict[str, list[Made]]  # the publisher's picture -> what came of it, perhaps nothing


class PictureSet(ABC):
    """What folders and LMDBs have in common. Raises PrepareError for a place that holds anything
    else. level: of the PNGs' compression. place: of the whole set. unfinished: where pictures are
    added. folder: which of the two is there.
    """

    level: int
    is_lmdb: bool
    unsynced: tuple[str, ...] | None = None  # files that may not be on the disk; None: all

    def __init__(self, place: Path, about: str):
        self.place, self.about = place, about
        self.unfinished = place.with_name(f"{place.name}.unfinished")
        if place.exists() and self.unfinished.exists():
            raise PrepareError(
                f"{shown(place)}: stands beside {shown(self.unfinished)}; remove one of them."
            )
        self.folder = self.unfinished if self.unfinished.exists() else place
        self.done: Done = self._found(_read_journal(self.folder, about))

    @abstractmethod
    def _found(self, journal: Done) -> Done:
        """What of the journal is there."""

    def is_whole(self, planned: Iterable[str]) -> bool:
        return self.place.exists() and self.done.keys() >= set(planned)

    def start(self) -> None:
        if self.place.exists():
            place_folder(self.place, self.unfinished, unsynced=())
        self.folder = self.unfinished
        make_folder(self.folder)
        _write_journal(self.folder, self.about, self.done)

    @abstractmethod
    def add(self, name: str, made: list[Made]) -> None: ...

    def finish(self) -> None:
        """All pictures are added."""
        self.close()
        place_folder(self.unfinished, self.place, self.unsynced)
        self.folder = self.place

    @abstractmethod
    def close(self) -> None:
        """What was added stays."""


class FolderSet(PictureSet):
    """A folder of PNGs."""

    level = IN_A_FOLDER
    is_lmdb = False
    unsynced = (OF_A_SET,)  # the pictures are, one by one, and there may be millions

    def _found(self, journal: Done) -> Done:
        there = set(os.listdir(self.folder)) if self.folder.exists() else set()
        return {
            name: made
            for name, made in journal.items()
            if all(f"{one.name}.png" in there for one in made)
        }

    def add(self, name: str, made: list[Made]) -> None:
        self.done[name] = made
        append_line(self.folder / OF_A_SET, _line(name, made))

    def close(self) -> None:
        """Nothing waits."""


class LmdbSet(PictureSet):
    """An LMDB."""

    level = IN_AN_LMDB
    is_lmdb = True

    def __init__(self, place: Path, about: str):
        super().__init__(place, about)
        self._waiting: Done = {}
        self._bytes = 0
        self._writer: LmdbWriter | None = None

    def _found(self, journal: Done) -> Done:
        return journal if (self.folder / DATA).exists() else {}

    def start(self) -> None:
        super().start()
        self._writer = LmdbWriter(self.folder)

    def add(self, name: str, made: list[Made]) -> None:
        self._waiting[name] = made
        self._bytes += sum(len(one.data) for one in made)
        if self._bytes > BATCH_BYTES:
            self._commit()

    def _commit(self) -> None:
        if self._writer is None or not self._waiting:
            return
        self._writer.put((one.name, one.data) for made in self._waiting.values() for one in made)
        added = {
            name: [one._replace(data=b"") for one in made] for name, made in self._waiting.items()
        }
        lines = "\n".join(_line(name, made) for name, made in added.items())
        append_line(self.folder / OF_A_SET, lines)
        self.done.update(added)
        self._waiting, self._bytes = {}, 0

    def finish(self) -> None:
        self.close()
        sizes = {one.name: (one.height, one.width) for made in self.done.values() for one in made}
        write_meta(self.folder, sizes, self.level)
        super().finish()

    def close(self) -> None:
        if self._writer is None:
            return
        try:
            self._commit()
        finally:
            self._writer.close()
            self._writer = None


def check_holds_only(target: PictureSet, planned: Iterable[str]) -> None:
    """Raises PrepareError where a set holds pictures that are not planned: it would become a mixture
    that no command makes.
    """
    if foreign := sorted(target.done.keys() - set(planned)):
        raise PrepareError(
            f"{shown(target.folder)}: holds {shown(some(foreign, 3))}, not among the pictures to "
            "prepare now; give the archives and options of before, or another folder with -o."
        )


# ---------------------------------------------------------------------------------------- journal


def _line(name: str, made: list[Made]) -> str:
    return json.dumps([name, *(one[:3] for one in made)])


def _write_journal(folder: Path, about: str, done: Done) -> None:
    """Anew, without a last line that was cut."""
    lines = [json.dumps({"set": about}), *(_line(name, made) for name, made in done.items())]
    with whole_file(folder / OF_A_SET) as draft:
        draft.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _read_journal(folder: Path, about: str) -> Done:
    """What is done; nothing for a folder that is new or empty. Raises PrepareError for a folder that
    is no set, or another one.
    """
    if not folder.exists():
        return {}
    file = folder / OF_A_SET
    if not file.is_file():
        others = [name for name in _names(folder) if not name.startswith(".")]
        if others:
            raise PrepareError(
                f"{shown(folder)}: holds {shown(some(others, 3))}, which was not prepared here; "
                "move that away, or name another folder with -o."
            )
        return {}
    first, *lines = file.read_text(encoding="utf-8", errors="replace").split("\n")
    if first != json.dumps({"set": about}):
        raise PrepareError(
            f"{shown(folder)}: was prepared as {shown(first)}, and now it would be {about}; "
            "remove it, or name another folder with -o."
        )
    # behind the last end of line is nothing, or a line that was cut
    journal = (json.loads(line) for line in lines[:-1])
    return {name: [Made(*one) for one in made] for name, *made in journal}


def _names(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise PrepareError(f"{shown(folder)}: is a file; name another folder with -o.")
    return sorted(os.listdir(folder))
