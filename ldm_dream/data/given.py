"""Given LR pictures: which belongs to which HR picture, by their names, and whether their sizes fit.

A pair has the same name below its two places, but for the suffix; or, where a place has a pattern,
the same text for its `{}`: `scans/{}_HR` and `scans/{}_LR4`.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Sequence

from ldm_dream.data.listing import DataError, Identity, Listing
from ldm_dream.errors import shown


def partners(hr: Listing, rows: list[int], lr: Listing, knob: str) -> list[int]:
    """The rows of `lr` that belong to these rows of `hr`. Raises DataError for an HR picture that has
    none, or more than one.
    """
    by_key: dict[str, list[int]] = defaultdict(list)
    for row, key in enumerate(lr.keys):
        by_key[key].append(row)
    found = [_of_suffix(lr, by_key.get(hr.keys[row], []), hr.names[row]) for row in rows]
    lost = [row for row, those in zip(rows, found) if not those]
    if lost:
        raise DataError(
            f"{knob}: {len(lost)} of {len(rows)} pictures of {shown(hr.place)} have no LR picture in "
            f"{shown(lr.place)}, such as {shown(hr.names[lost[0]])}; add those, or leave the pictures "
            "out by data.exclude."
        )
    for row, those in zip(rows, found):
        if len(those) > 1:
            names = ", ".join(shown(lr.names[i]) for i in those)
            raise DataError(
                f"{knob}: {shown(hr.names[row])} has several LR pictures in {shown(lr.place)}: {names}; "
                "leave one there."
            )
    return [those[0] for those in found]


def refuse_shared(
    hr: Sequence[Identity],
    lr: Sequence[Identity],
    paths: Callable[[int], tuple[str, str]],
    knob: str,
) -> None:
    """Raises DataError for a picture that would be its own LR picture, and for an LR picture of two HR
    pictures. paths: HR and LR picture of a pair, for messages.
    """
    first: dict[Identity, int] = {}
    for pair, (high, low) in enumerate(zip(hr, lr)):
        if high == low:
            raise DataError(
                f"{knob}: {shown(paths(pair)[0])} would be its own LR picture; name another place, or "
                "tell the names apart, as by FOLDER/{}_HR and FOLDER/{}_LR."
            )
        other = first.setdefault(low, pair)
        if hr[other] != high:
            one, two, shared = paths(other)[0], paths(pair)[0], paths(pair)[1]
            raise DataError(
                f"{knob}: {shown(one)} and {shown(two)} have one LR picture, {shown(shared)}; each needs "
                "its own, so give that, or leave one of the two out by data.exclude."
            )


def _of_suffix(lr: Listing, rows: list[int], name: str) -> list[int]:
    """Of LR pictures of one name, the one with the suffix of the HR picture, if there is one."""
    suffix = os.path.splitext(name)[1]
    same = [row for row in rows if os.path.splitext(lr.names[row])[1] == suffix]
    return same if len(same) == 1 else rows


def misfit(hr: Sequence[int], lr: Sequence[int], scale: int) -> str | None:
    """What is wrong with the sizes (height, width) of a pair, if anything. HR that is no multiple of
    the scale is cut at its right and lower border, and LR likewise.
    """
    if all(low in (high // scale, -(-high // scale)) for high, low in zip(hr, lr)):
        return None
    (high, wide), (low, narrow) = hr, lr
    return (
        f"HR has {wide}x{high} pixels and LR {narrow}x{low}; at scale {scale} LR has "
        f"{wide // scale}x{high // scale}"
    )
