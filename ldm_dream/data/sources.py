"""The pictures that a config names: of folders, searched recursively, and single files."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

import torch
from torch import Tensor

from ldm_dream.data.images import (
    ImageError,
    image_size,
    in_words,
    list_images,
    read_image,
    read_window,
    to_uint8,
)
from ldm_dream.errors import UserError, shown

log = logging.getLogger(__name__)


class DataError(UserError, ValueError):
    """Training data that cannot be used; its text is complete for the user."""


class Pictures:
    """Pictures by number, 0 .. len - 1, sorted by their paths. Raises DataError.

    entries: what the config names, under `knob`. exclude: a picture whose path, as written in the
    config, contains one of these texts is left out.
    """

    def __init__(self, entries: tuple[str, ...], exclude: tuple[str, ...], knob: str):
        self.entries, self.knob = entries, knob
        if not entries:
            raise DataError(
                f"{knob}: no folder is given; set it to a list of folders with pictures."
            )
        try:
            listings = {entry: list_images(entry, recursive=True) for entry in entries}
        except ImageError as error:
            raise DataError(f"{knob}: {error}") from None
        for entry, listing in listings.items():
            if listing.left_out:
                log.warning(
                    "%s: %s also holds %s; not used.",
                    knob, shown(entry), in_words(listing.left_out),
                )  # fmt: skip
        found = {path for listing in listings.values() for path in listing.pictures}
        self.paths = sorted(p for p in found if not any(text in p.as_posix() for text in exclude))
        if not self.paths:
            raise DataError(
                f"{knob}: all {len(found)} pictures are left out by data.exclude={list(exclude)}."
            )

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> str:
        """For messages, and to name results: without folders and suffix."""
        return self.paths[index].stem

    def size(self, index: int) -> tuple[int, int]:
        """(height, width) from the header. Raises ImageError."""
        return image_size(self.paths[index])

    def read(self, index: int) -> Tensor:
        """-> uint8 [3,H,W]. Raises ImageError."""
        return torch.from_numpy(to_uint8(read_image(self.paths[index]).pixels)).permute(2, 0, 1)

    def window(self, index: int, rows: slice, columns: slice) -> Tensor | None:
        """That part of what `read` gives, without decoding more than needed; None where the whole
        picture is needed for it. Damage elsewhere is not seen. Raises ImageError.
        """
        pixels = read_window(self.paths[index], rows, columns)
        return None if pixels is None else torch.from_numpy(to_uint8(pixels)).permute(2, 0, 1)

    def fingerprint(self, indices: list[int]) -> dict[str, int | str]:
        """How many these are, and the digest of their names and sizes in bytes, in order."""
        paths = [self.paths[index] for index in indices]
        lines = (f"{path.name} {path.stat().st_size}\n" for path in paths)
        found = hashlib.sha256("".join(lines).encode(errors="surrogateescape"))
        return {"count": len(indices), "sha256": found.hexdigest()}

    def counts(self, indices: list[int]) -> dict[str, int]:
        """Entry -> how many of these pictures it holds. One that several hold counts for the first."""
        counts = dict.fromkeys(self.entries, 0)
        for index in indices:
            places = {self.paths[index], *self.paths[index].parents}
            counts[next(entry for entry in counts if Path(entry) in places)] += 1
        return counts
