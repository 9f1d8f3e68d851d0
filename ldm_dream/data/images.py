"""Pictures on disk <-> arrays and tensors, and the pictures of a folder.

The parts: `image` (one picture in memory), `formats` (the kinds), `header` and `reader` (from disk),
`jpeg` (is it whole), `metadata`, `writer` (to disk).
"""

from __future__ import annotations

import os
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from ldm_dream.data.formats import BY_SUFFIX, MAX_PIXELS, READABLE, SUFFIXES, WRITES
from ldm_dream.data.header import check_header, needs_alpha
from ldm_dream.data.image import Image, ImageError, from_tensor, to_tensor, to_uint8
from ldm_dream.data.reader import image_size, read_image, read_window
from ldm_dream.data.writer import check_quality, check_writable, write_image
from ldm_dream.errors import shown

__all__ = [
    "MAX_PIXELS",
    "SUFFIXES",
    "WRITES",
    "Image",
    "ImageError",
    "Listing",
    "check_header",
    "check_quality",
    "check_writable",
    "find_images",
    "from_tensor",
    "image_size",
    "in_words",
    "kind_left_out",
    "list_images",
    "needs_alpha",
    "read_image",
    "read_window",
    "refuse_address",
    "to_tensor",
    "to_uint8",
    "write_image",
]


_ADDRESS = re.compile(r"(https?|ftp|s3|gs):/", re.I)  # Path makes one slash of two


@dataclass(frozen=True)
class Listing:
    """pictures: sorted. left_out: how many of each other kind, by a few words."""

    pictures: list[Path]
    left_out: dict[str, int]


def find_images(path: str | Path, recursive: bool = False) -> list[Path]:
    """A file -> itself; a folder -> its pictures by suffix, sorted, without hidden files. Raises
    ImageError if there is none.
    """
    return list_images(path, recursive).pictures


def list_images(path: str | Path, recursive: bool = False) -> Listing:
    """As `find_images`, with what it leaves out."""
    path = Path(path)
    if os.path.isfile(path):  # not Path.is_file, which raises for a name that is too long
        return Listing([path], {})
    if not os.path.isdir(path):
        refuse_address(path)
        raise ImageError(f"{shown(path)}: no such file or folder.")
    pictures, (files, left_out) = [], _walked(path, recursive)
    for found in files:
        reason = _left_out(found)
        if reason is None:
            pictures.append(found)
        else:
            left_out[reason] += 1
    listing = Listing(sorted(pictures), dict(sorted(left_out.items())))
    if not pictures:
        where = (
            "the folder and its subfolders hold"
            if recursive
            else "the folder holds (without its subfolders)"
        )
        others = f" (it holds {in_words(listing.left_out)})" if left_out else ""
        raise ImageError(f"{shown(path)}: {where} no picture in {READABLE}{others}.")
    return listing


def refuse_address(path: Path) -> None:
    """Raises ImageError for what is meant as an address of the web: it is not fetched."""
    if _ADDRESS.match(str(path)) and not os.path.exists(path):
        raise ImageError(f"{shown(path)}: addresses are not fetched; give the path of a file.")


def in_words(counts: dict[str, int]) -> str:
    """{"txt": 2, "earlier result": 2} -> "2 txt, 2 earlier results"."""
    plural = ("result", "folder")
    return ", ".join(
        f"{count} {kind}{'s' * (count != 1 and kind.endswith(plural))}"
        for kind, count in counts.items()
    )


def _walked(path: Path, recursive: bool) -> tuple[list[Path], Counter[str]]:
    """What is no folder, and how many folders are not looked into, by a few words. Raises ImageError
    where `path` itself cannot be read.

    Links to folders are not followed: one that leads back up would have no end.
    """
    files, left_out = [], Counter()
    failed: list[OSError] = []
    for name, subfolders, others in os.walk(path, onerror=failed.append):
        folder = Path(name)
        files += [folder / other for other in others]
        if not recursive:
            left_out["subfolder"] += len(subfolders)
            break
        left_out["linked folder"] += sum(os.path.islink(folder / sub) for sub in subfolders)
    for error in failed:
        if Path(error.filename or path) == path:
            raise ImageError(f"{shown(path)}: cannot be read: {error.strerror}.") from None
        left_out["unreadable subfolder"] += 1
    return files, +left_out  # without zeros


def _left_out(path: Path) -> str | None:
    """Why what is no folder is no picture to read; None for one that is."""
    if path.name.startswith("."):
        return "hidden"
    if not os.path.isfile(path):
        return "no file"
    return kind_left_out(path.name)


def kind_left_out(name: str) -> str | None:
    """As which kind a file of this name is left out; None for a picture that is readable here."""
    suffix = os.path.splitext(name)[1].lower()
    if suffix in SUFFIXES:
        return None
    kind = BY_SUFFIX.get(suffix)
    if kind is not None:
        return f"{kind.name} (nothing installed here reads it)"
    return shown(suffix[1:]) or "without a suffix"
