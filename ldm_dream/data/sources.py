"""The pictures that a config names, by number: of folders, lists, LMDBs, and single files; with the
LR pictures that it gives for them.

    entry -> place -> listing (`listing.py`) -> chosen and sorted -> headers (`scan.py`) -> pixels
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ldm_dream.config.places import place_of
from ldm_dream.data import lmdb_store
from ldm_dream.data.given import misfit, partners, refuse_shared
from ldm_dream.data.images import (
    ImageError,
    image_size,
    in_words,
    read_image,
    read_window,
    to_uint8,
)
from ldm_dream.data.listing import (
    BYTES,
    DataError,
    Identity,
    Listing,
    list_place,
    matching,
    narrowed,
    without_suffix,
)
from ldm_dream.data.scan import DEPTH, HEIGHT, WIDTH, Headers, read_headers
from ldm_dream.errors import shown

log = logging.getLogger(__name__)

Lists = Callable[[Path], Listing]
LR_KNOBS = {"data.train": "data.lr", "data.val": "data.val_lr"}


class Part(NamedTuple):
    """The pictures that are kept for validation, a share of all, or the others."""

    fraction: float
    is_val: bool


class Files:
    """Pictures of listings by number, 0 .. len - 1. rows: int64 [n, 2], listing and row in there."""

    def __init__(self, listings: list[Listing], rows: np.ndarray):
        self._listings, self._rows = listings, rows
        self.entry = rows[:, 0]
        self.names = [listings[entry].names[row] for entry, row in rows.tolist()]
        self.stats = np.zeros((len(rows), 4), np.int64)
        for entry, listing in enumerate(listings):
            self.stats[self.entry == entry] = listing.stats[rows[self.entry == entry, 1]]
        self._lmdbs = [listing.place if listing.is_lmdb else None for listing in listings]
        self._roots = [listing.root for listing in listings]
        self._elsewhere = [listing.elsewhere for listing in listings]

    def __getstate__(self) -> dict[str, Any]:
        """A worker reads pictures and lists none."""
        return self.__dict__ | {"_listings": [], "stats": None}

    def __len__(self) -> int:
        return len(self.names)

    def path(self, index: int) -> str:
        """Of its file; of an LMDB's picture it is a name for messages."""
        entry, row = self._rows[index]
        elsewhere = self._elsewhere[entry]
        return elsewhere[row] if elsewhere else self._roots[entry] + self.names[index]

    def name(self, index: int) -> str:
        """For messages, and to name results: without folders and suffix."""
        return without_suffix(self._file_name(index))

    def read(self, index: int) -> Tensor:
        """-> uint8 [3,H,W]; grey becomes three equal channels, 16 bits become 8. Raises ImageError."""
        pixels = read_image(self.path(index), content=self.content(index)).pixels
        return torch.from_numpy(to_uint8(pixels)).permute(2, 0, 1)

    def window(self, index: int, rows: slice, columns: slice) -> Tensor | None:
        """That part of what `read` gives, without decoding more than needed; None where the whole
        picture is needed for it. Damage elsewhere is not seen. Raises ImageError.
        """
        pixels = read_window(self.path(index), rows, columns, self.content(index))
        return None if pixels is None else torch.from_numpy(to_uint8(pixels)).permute(2, 0, 1)

    def size(self, index: int) -> tuple[int, int]:
        """(height, width), from the header. Raises ImageError."""
        return image_size(self.path(index), self.content(index))

    def content(self, index: int) -> bytes | None:
        """The encoded picture where it is in an LMDB; None where `path` names a file. Raises
        ImageError.
        """
        lmdb = self._lmdbs[self.entry[index]]
        if lmdb is None:
            return None
        try:
            return lmdb_store.read(lmdb, self.names[index])
        except lmdb_store.LmdbError as error:
            raise ImageError(str(error)) from None

    def headers(self) -> Headers:
        """Of all of them, kept from one start to the next."""
        table, unreadable = np.zeros((len(self), 3), np.int64), {}
        for entry, listing in enumerate(self._listings):
            mine = np.flatnonzero(self.entry == entry)
            found = read_headers(listing, self._rows[mine, 1].tolist())
            table[mine] = found.table
            unreadable |= {int(mine[i]): reason for i, reason in found.unreadable.items()}
        return Headers(table, dict(sorted(unreadable.items())))

    def lines(self, indices: list[int]) -> list[str]:
        """Name and size in bytes of each of these."""
        sizes = self.stats[indices, BYTES].tolist()
        return [f"{self._file_name(i)} {size}\n" for i, size in zip(indices, sizes)]

    def identities(self) -> list[Identity]:
        """What is equal where two names lead to one picture."""
        of_listings = [listing.identities() for listing in self._listings]
        return [of_listings[entry][row] for entry, row in self._rows.tolist()]

    def _file_name(self, index: int) -> str:
        return os.path.basename(self.names[index])


class Pictures(Files):
    """Pictures by number, sorted by their paths. A file that several names lead to is one picture, by
    its name in the first entry that has it; with given LR pictures, each pair is. Raises DataError.

    entries: what the config names, under `knob` (data.train or data.val). exclude: a picture whose path, as written in the
    config, contains one of these texts is left out. given: entries of LR pictures, one for each of
    `entries`; `lr` then has them by the same numbers. part: of the pictures, None for all. says: what is left
    out is said.
    """

    def __init__(
        self,
        entries: tuple[str, ...],
        exclude: tuple[str, ...],
        knob: str,
        given: tuple[str, ...] = (),
        part: Part | None = None,
        says: bool = True,
    ):
        self.entries = entries
        if not entries:
            raise DataError(
                f"{knob}: no folder is given; set it to a list of folders with pictures."
            )
        self.knob, self.lr_knob = knob, LR_KNOBS[knob]
        listed = functools.cache(list_place)  # a place that several patterns name is listed once
        listings = [_listed(entry, listed, knob) for entry in entries]
        hr = Files(listings, _chosen(listings, exclude, knob))
        lr = self._given(hr, given, listed) if given else None
        files = hr.identities()
        of_lr = lr.identities() if lr else []
        pairs = list(zip(files, of_lr)) if lr else files
        taken, first_names = _once(hr, files, pairs)
        if says:
            _say_what_is_left_out(entries, listings, knob)
            _say_doubles(len(hr) - len(taken), knob)
        if lr:
            refuse_shared(
                [files[i] for i in taken],
                [of_lr[i] for i in taken],
                lambda pair: (hr.path(taken[pair]), lr.path(taken[pair])),
                self.lr_knob,
            )
        if part is not None:
            taken = _of_part(taken, first_names, part)
        if not taken:
            raise DataError(
                f"{knob}: all its pictures are kept for validation; add pictures, or set a smaller data.val_fraction."
            )
        super().__init__(listings, hr._rows[taken])
        self.lr = Files(lr._listings, lr._rows[taken]) if lr else None

    def sizes(self, scale: int) -> tuple[np.ndarray, dict[int, str]]:
        """-> (height, width) of each, int64 [n, 2], zeros of those whose header, or that of their LR
        picture, cannot be read; and why. Says how many have more than 8 bits. Raises DataError where
        an LR picture is not of that scale.
        """
        headers = self.headers()
        table, unreadable = headers.table.copy(), headers.unreadable
        if self.lr:
            of_lr = self.lr.headers()
            unreadable = dict(sorted((of_lr.unreadable | unreadable).items()))
            self._refuse_misfits(table, of_lr.table, scale)
            table[:, DEPTH] = np.maximum(table[:, DEPTH], of_lr.table[:, DEPTH])
        if deep := int((table[:, DEPTH] > 1).sum()):
            log.warning(
                "%s: %d of %d pictures have more than 8 bits a channel; they are used as 8 bits.",
                self.knob, deep, len(self),
            )  # fmt: skip
        table[list(unreadable)] = 0
        return table[:, [HEIGHT, WIDTH]], unreadable

    def _refuse_misfits(self, hr: np.ndarray, lr: np.ndarray, scale: int) -> None:
        assert self.lr is not None
        wrong = {}
        for index, (high, low) in enumerate(zip(hr.tolist(), lr.tolist())):
            if high[HEIGHT] and low[HEIGHT] and (reason := misfit(high[:2], low[:2], scale)):
                wrong[index] = reason
        for index, reason in wrong.items():
            raise DataError(
                f"{self.lr_knob}: {len(wrong)} of {len(self)} pairs do not fit, such as "
                f"{shown(self.path(index))} and {shown(self.lr.path(index))}: {reason}."
            )

    def fingerprint(self, indices: list[int]) -> dict[str, int | str]:
        """How many these are, and the digest of their names and sizes in bytes, in order; of their LR
        pictures too.
        """
        lines = self.lines(indices) + (self.lr.lines(indices) if self.lr else [])
        found = hashlib.sha256(os.fsencode("".join(lines)))
        return {"count": len(indices), "sha256": found.hexdigest()}

    def counts(self, indices: list[int]) -> dict[str, int]:
        """Entry -> how many of these pictures it holds. One that several hold counts for the first."""
        counts = dict.fromkeys(self.entries, 0)
        for entry in self.entry[indices].tolist():
            counts[self.entries[entry]] += 1
        return counts

    def _given(self, hr: Files, entries: tuple[str, ...], listed: Lists) -> Files:
        """The LR pictures of `hr`, by the same numbers."""
        listings = [_listed(entry, listed, self.lr_knob) for entry in entries]
        rows = np.empty_like(hr._rows)
        for entry, (high, low) in enumerate(zip(hr._listings, listings)):
            mine = hr.entry == entry
            rows[mine, 0] = entry
            rows[mine, 1] = partners(high, hr._rows[mine, 1].tolist(), low, self.lr_knob)
        return Files(listings, rows)


def _listed(entry: str, listed: Lists, knob: str) -> Listing:
    place, pattern = place_of(entry)
    if pattern:
        place, pattern = narrowed(place, pattern)
    try:
        listing = listed(place)
        return matching(listing, pattern) if pattern else listing
    except DataError as error:
        raise DataError(f"{knob}: {error}") from None


def _say_what_is_left_out(entries: tuple[str, ...], listings: list[Listing], knob: str) -> None:
    for entry, listing in zip(entries, listings):
        if listing.left_out:
            log.warning(
                "%s: %s also holds %s; not used.", knob, shown(entry), in_words(listing.left_out)
            )


def _say_doubles(count: int, knob: str) -> None:
    if count:
        log.warning(
            "%s: %d names lead to pictures that have another name here; each is taken once.",
            knob, count,
        )  # fmt: skip


def _chosen(listings: list[Listing], exclude: tuple[str, ...], knob: str) -> np.ndarray:
    """int64 [n, 2], listing and row of each path once, sorted by path."""
    places = [(entry, row) for entry, of in enumerate(listings) for row in range(len(of.names))]
    found = {listings[entry].path(row): (entry, row) for entry, row in reversed(places)}
    kept = [path for path in found if not any(text in path for text in exclude)]
    if not kept:
        raise DataError(
            f"{knob}: all {len(found)} pictures are left out by data.exclude={list(exclude)}."
        )
    kept.sort(key=lambda path: path.replace("/", "\0"))  # folder by folder
    return np.array([found[path] for path in kept], np.int64)


def _once(hr: Files, files: list[Identity], pairs: Sequence[Any]) -> tuple[list[int], list[str]]:
    """-> numbers of the pictures, each of `pairs` once; and for each of them the first name of its HR
    file. files: identities of `hr`; pairs: those, or each with that of its LR picture.
    """
    first_file, first_pair = {}, {}
    for i in np.argsort(hr.entry, kind="stable").tolist():
        first_file.setdefault(files[i], i)
        first_pair.setdefault(pairs[i], i)
    taken = sorted(first_pair.values())
    return taken, [hr.names[first_file[files[i]]] for i in taken]


def _of_part(taken: list[int], names: list[str], part: Part) -> list[int]:
    """By the digest of each picture's name below its place, so that a picture stays where it is when
    others are added; at least one is for validation.
    """
    digests = [hashlib.sha256(os.fsencode(name)).digest()[:8] for name in names]
    most = max(int(part.fraction * 2**64).to_bytes(8, "big"), min(digests))
    return [i for i, digest in zip(taken, digests) if (digest <= most) == part.is_val]
