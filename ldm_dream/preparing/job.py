"""One run of a recipe: from archives to whole sets and lists of pictures to evaluate on."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ldm_dream.errors import shown
from ldm_dream.preparing.plan import Planned, evenly_spaced, plan
from ldm_dream.preparing.recipe import Options, Part, PrepareError, Recipe
from ldm_dream.preparing.sets import FolderSet, LmdbSet, PictureSet
from ldm_dream.preparing.sources import ZippedLmdb, find_entries, unpacked
from ldm_dream.preparing.work import Result, prepare, tasks_of
from ldm_dream.writing import check_place, whole_file

UNPACKED = ".unpacked"  # where in the output databases out of zips lie, until all is done
_LIST = "# pictures to evaluate on"  # by which a list is known as one of ours


def place_of(part: Part, out: Path, as_lmdb: bool) -> Path:
    """Where a part's set is written. Pictures to evaluate on are always files."""
    ending = ".lmdb" if as_lmdb and not part.is_evaluation else ""
    return out / f"{part.output}{ending}"


def open_set(recipe: Recipe, part: Part, out: Path, as_lmdb: bool) -> PictureSet:
    """Raises PrepareError where something else lies in its place."""
    place, about = place_of(part, out, as_lmdb), f"{recipe.name}, {part.output}, {part.cut}"
    return LmdbSet(place, about) if place.suffix == ".lmdb" else FolderSet(place, about)


def list_of(part: Part, out: Path, options: Options) -> Path:
    """The list of some pictures of a set, beside it."""
    return out / f"{part.output}-eval{options.eval_count}.txt"


@dataclass
class Job:
    """counts: results by status. failures: a line each."""

    sets: list[tuple[Planned, PictureSet]]
    out: Path
    options: Options
    counts: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    @classmethod
    def of(
        cls, recipe: Recipe, places: Iterable[Path], out: Path, options: Options, as_lmdb: bool
    ) -> Job:
        """Raises PrepareError before anything is written, but for databases that are unpacked."""
        check_place(out)
        parts = recipe.parts(options)
        entries = find_entries(places, recipe.archives)
        is_zipped = any(isinstance(entry, ZippedLmdb) for entry in entries)
        for part in parts:
            if part.is_listed:
                _check_list(list_of(part, out, options))
            if is_zipped:
                open_set(recipe, part, out, as_lmdb)  # refused before the long unpacking
        plans = plan(recipe, unpacked(entries, out / UNPACKED), options)
        sets = [(each, open_set(recipe, each.part, out, as_lmdb)) for each in plans]
        return cls(sets, out, options)

    def todo(self) -> int:
        """How many pictures of the publisher are still to be read."""
        return len(tasks_of(self.sets))

    def run(self, workers: int) -> Iterator[Result]:
        """Do all that is to do, and write the lists. Raises PrepareError or WriteError."""
        for result in prepare(self.sets, workers):
            self.counts[result.status] += 1
            if result.status == "failed":
                self.failures.append(f"{shown(result.path)}: {shown(result.reason)}")
            yield result
        for path, target in self._lists().items():
            _write_list(path, target, self.options.eval_count)
        if not self.failures:
            shutil.rmtree(self.out / UNPACKED, ignore_errors=True)

    def summary(self) -> list[str]:
        """A line for each set and list."""
        lines = []
        for planned, target in self.sets:
            pictures = sum(len(made) for made in target.done.values())
            expected, found = planned.part.count, planned.found
            missing = (
                f" (its publisher names {expected:,})" if expected and found < expected else ""
            )
            chosen = len(planned.chosen)
            source = f"{chosen:,} of {found:,}" if chosen < found else f"{found:,}"
            lines.append(f"{target.place}: {pictures:,} pictures, from {source}{missing}")
        return lines + [f"{path}: the pictures to evaluate on" for path in self._lists()]

    def _lists(self) -> dict[Path, PictureSet]:
        return {
            list_of(planned.part, self.out, self.options): target
            for planned, target in self.sets
            if planned.part.is_listed
        }


def _write_list(path: Path, target: PictureSet, count: int) -> None:
    names = sorted(one.name for made in target.done.values() for one in made)
    lines = [f"{target.place.name}/{name}.png" for name in evenly_spaced(names, count)]
    text = "\n".join([f"{_LIST}: {len(lines)} of {len(names)}, evenly spaced by name", *lines])
    with whole_file(path) as draft:
        draft.write_text(text + "\n", encoding="utf-8")


def _check_list(path: Path) -> None:
    if path.exists() and not path.read_text(encoding="utf-8", errors="replace").startswith(_LIST):
        raise PrepareError(f"{shown(path)}: was not written here; move it away.")
