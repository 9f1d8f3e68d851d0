"""Which result, and which LR picture, belongs to which original: by name, checked before any score.

The rule: a partner has the name of its original, or that name and one ending, the same for the
whole folder: the one that is given, else the only one that fits every original and looks like an
ending (`_x4`, `-sr`, or DIV2K's `x4`). The extension may differ; where two originals differ by
nothing else (a.png, a.jpg), it tells their partners apart. What can be read in two ways is refused,
but for LR pictures, whose size tells: of those the bare name comes first.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from ldm_dream.data.images import find_images, image_size
from ldm_dream.errors import UserError

LOOKS_LIKE_AN_ENDING = re.compile(r"x\d+(\.\d+)?|[^0-9A-Za-z].*", re.DOTALL)
RULE = "they are matched by name, or by name and one ending that all share, such as _x4 or x4"


class PairingError(UserError, ValueError):
    """Folders whose pictures cannot be matched; its text is complete for the user."""


class Partners(NamedTuple):
    """What a folder holds for some originals."""

    files: dict[Path, Path]  # original -> its partner
    ending: str  # behind the name of every original
    spare: int  # pictures of the folder that belong to none of them


def find_partners(
    originals: list[Path], folder: Path, ending: str | None = None, bare_first: bool = False
) -> Partners:
    """The pictures of `folder` that belong to `originals`, by the rule above. ending: as given by
    the user, None to find it. bare_first: a name with an ending beside the bare one is no matter.
    Raises PairingError for one that is missing or not certain.
    """
    found = find_images(folder)
    by_stem: dict[str, list[Path]] = {}
    for path in found:
        by_stem.setdefault(path.stem, []).append(path)
    if ending is None:
        ending = _only_ending(originals, by_stem, folder)
        if not ending and not bare_first:
            _refuse_both(originals, by_stem, folder)
    missing = [path for path in originals if path.stem + ending not in by_stem]
    if missing:
        raise PairingError(
            f"{folder}: no picture named {missing[0].stem}{ending} for {missing[0]}, and so for "
            f"{len(missing)} of {len(originals)}; {RULE}. Give --suffix for another ending of the "
            "results, or --match to score a part."
        )
    files = {path: _of_extension(path, by_stem[path.stem + ending]) for path in originals}
    _refuse_shared(files)
    return Partners(files, ending, len(found) - len(files))


def check_sizes(
    sr: Mapping[Path, Path] | None, lr: Mapping[Path, Path] | None, scale: int, files: list[Path]
) -> None:
    """From the headers: a result has the size of its original, or of the original cut to multiples
    of `scale`; an LR picture has that over `scale`. Raises PairingError.
    """
    for path in files:
        whole = image_size(path)
        cut = tuple(side // scale * scale for side in whole)
        if not all(cut):
            raise PairingError(f"{path}: is {_size(whole)}, less than the scale {scale}.")
        result = image_size(sr[path]) if sr else cut
        if sr and result not in (whole, cut):
            raise PairingError(
                f"{path}: is {_size(whole)} and its result {_size(result)} ({sr[path]}); the "
                "result must have its size."
            )
        small = image_size(lr[path]) if lr else (0, 0)
        if lr and tuple(side * scale for side in small) != cut:
            raise PairingError(
                f"{path}: {_size(cut)} is not {scale} times its LR picture {_size(small)} "
                f"({lr[path]}); give the --scale of the two."
            )


def _only_ending(originals: list[Path], by_stem: Iterable[str], folder: Path) -> str:
    """The one that fits all; "" where the bare name does or where nothing fits."""
    first, *others = (path.stem for path in originals)
    endings = {stem.removeprefix(first) for stem in by_stem if stem.startswith(first)}
    fitting = [
        ending
        for ending in sorted(endings)
        if (not ending or LOOKS_LIKE_AN_ENDING.fullmatch(ending))
        and all(stem + ending in by_stem for stem in others)
    ]
    if len(fitting) > 1 and "" not in fitting:
        raise PairingError(
            f"{folder}: its names end in {' and in '.join(fitting)}; say which are the results by "
            f"--suffix {fitting[0]}, or give each its own folder."
        )
    return fitting[0] if len(fitting) == 1 else ""


def _refuse_both(originals: list[Path], by_stem: Iterable[str], folder: Path) -> None:
    """Raises PairingError where both the bare name of an original and that with an ending are there."""
    bare = {path.stem for path in originals}.intersection(by_stem)
    for stem in sorted(set(by_stem) - bare):
        for end in range(1, len(stem)):
            first, ending = stem[:end], stem[end:]
            if first in bare and LOOKS_LIKE_AN_ENDING.fullmatch(ending):
                raise PairingError(
                    f"{folder}: holds both {first} and {stem}; say which are the results by --suffix "
                    f"{ending} or --suffix '', or give each its own folder."
                )


def _of_extension(original: Path, found: list[Path]) -> Path:
    """Of partners that differ by nothing but their extension: the only one, else the original's."""
    if len(found) == 1:
        return found[0]
    for same in (lambda x: x, str.lower):
        own = [path for path in found if same(path.suffix) == same(original.suffix)]
        if len(own) == 1:
            return own[0]
    names = " and ".join(path.name for path in found)
    raise PairingError(
        f"{original}: {found[0].parent} holds {names} for it; take away all but one."
    )


def _refuse_shared(files: Mapping[Path, Path]) -> None:
    twice = next((path for path, n in Counter(files.values()).items() if n > 1), None)
    if twice:
        names = " and of ".join(path.name for path, partner in files.items() if partner == twice)
        raise PairingError(
            f"{twice}: may belong to each of {names}; give it the extension of its original."
        )


def _size(sides: Iterable[int]) -> str:
    """(height, width) -> WxH"""
    return "x".join(map(str, reversed(tuple(sides))))
