"""Which pictures go into which sets."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar

from ldm_dream.preparing.recipe import Options, Part, PrepareError, Recipe
from ldm_dream.preparing.sources import Entry, ZippedLmdb

Item = TypeVar("Item")


@dataclass(frozen=True)
class Planned:
    """A set to make. chosen: name -> picture, by name. found: how many there were to choose from."""

    part: Part
    chosen: dict[str, Entry]
    found: int


def evenly_spaced(items: list[Item], count: int) -> list[Item]:
    """`count` of the items, or all, from the first on and equally far apart."""
    if count >= len(items):
        return items
    return [items[number * len(items) // count] for number in range(count)]


def plan(recipe: Recipe, entries: Iterable[Entry], options: Options) -> list[Planned]:
    """The sets for which there are pictures. Raises PrepareError where there are none at all."""
    entries = list(entries)
    parts = recipe.parts(options)
    sets = [planned for part in parts if (planned := _planned(part, entries, options)).chosen]
    if not sets:
        archives = ", ".join(dict.fromkeys(part.archive for part in parts))
        raise PrepareError(
            f"none of {len(entries)} pictures is of {recipe.name}: give {archives}, from "
            f"{recipe.page}, with --from."
        )
    return sets


def _planned(part: Part, entries: list[Entry], options: Options) -> Planned:
    """Of pictures of one name the first counts: a folder and its archive may both be given."""
    found: dict[str, Entry] = {}
    for entry in entries:
        if not isinstance(entry, ZippedLmdb) and (name := part.name_of(entry.path)):
            found.setdefault(name, entry)
    names = sorted(found)
    if part.share:
        held_out = evenly_spaced(names, options.eval_count)
        names = held_out if part.share == "held out" else sorted({*names} - {*held_out})
    most = options.limit or part.limit or len(names)
    return Planned(part, {name: found[name] for name in evenly_spaced(names, most)}, len(names))
