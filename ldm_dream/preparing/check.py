"""What is there of a recipe and what is missing, in lines for the user. Writes nothing."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from ldm_dream.preparing.job import open_set
from ldm_dream.preparing.plan import plan
from ldm_dream.preparing.recipe import Options, Part, PrepareError, Recipe
from ldm_dream.preparing.recipes import RECIPES
from ldm_dream.preparing.sources import Entry, ZippedLmdb, find_entries

SHARE_OF_RAW = 0.55  # a PNG in a folder over its raw pixels, measured on photos


def about_all() -> list[str]:
    """Every recipe: its page, its terms, the sets that it makes and the configs that want them."""
    lines = []
    for recipe in RECIPES.values():
        lines += [f"{recipe.name}: {recipe.title}", *_page(recipe)]
        for part in recipe.parts(Options()):
            lines.append(f"    {part.output}  from {part.archive}{_wanted_by(part)}")
    return lines


def check(
    recipe: Recipe, places: Iterable[Path], out: Path, options: Options, as_lmdb: bool
) -> tuple[list[str], bool]:
    """-> lines, and whether every set that is not optional is whole or can be made. Raises
    PrepareError.
    """
    entries = find_entries([place for place in places if place.exists()], recipe.archives)
    try:
        planned = {each.part.output: each for each in plan(recipe, entries, options)}
    except PrepareError:
        planned = {}
    lines, is_complete, needed = [f"{recipe.name}: {recipe.title}", *_page(recipe)], True, 0.0
    for part in recipe.parts(options):
        target, here = open_set(recipe, part, out, as_lmdb), planned.get(part.output)
        pictures = sum(len(made) for made in target.done.values())
        still = len(here.chosen.keys() - target.done.keys()) if here else 0
        lines.append(f"{target.place}{_wanted_by(part)}")
        zipped = _database_of(part, entries)
        if here:
            lines.append(
                f"    source: {here.found:,} pictures{_of(part)}, {len(here.chosen):,} wanted"
            )
        elif zipped:
            count = part.count or 0
            still = max(0, min(count, options.limit or count) - len(target.done))
            needed += zipped.size if still else 0
            lines.append(f"    source: {zipped.file}, to be unpacked ({zipped.size / 1e9:.1f} GB)")
        elif not pictures:
            is_complete = is_complete and part.optional
            kind = "not there, and not needed" if part.optional else "missing"
            lines.append(f"    source: {kind}: {part.archive}")
        bytes_each = 3e6 * part.megapixels * (1 if target.is_lmdb else SHARE_OF_RAW)
        needed += still * bytes_each
        lines.append(f"    made: {pictures:,} pictures")
        if still:
            lines.append(f"    to do: {still:,} pictures, about {still * bytes_each / 1e9:.2f} GB")
    free = shutil.disk_usage(next(at for at in (out, *out.absolute().parents) if at.exists())).free
    lines.append(f"space: about {needed / 1e9:.1f} GB needed, {free / 1e9:.1f} GB free at {out}")
    return lines, is_complete and needed < free


def _page(recipe: Recipe) -> list[str]:
    return [f"    get it at {recipe.page}", f"    terms: {recipe.terms}"]


def _wanted_by(part: Part) -> str:
    return f"  (wanted by {', '.join(part.configs)})" if part.configs else ""


def _of(part: Part) -> str:
    return f" of {part.count:,}" if part.count and not part.share else ""


def _database_of(part: Part, entries: list[Entry]) -> ZippedLmdb | None:
    zipped = (entry for entry in entries if isinstance(entry, ZippedLmdb))
    return next((entry for entry in zipped if part.name_of(f"{entry.path}/x")), None)
