"""The pieces of pictures that patches need: of pictures kept decoded, or decoded as far as needed.

Decoded pictures lie in one area of memory that all processes share which load data for a run.

A picture's first visit reads it whole, so a broken file is found whichever piece is asked for: which
samples a run sees does not depend on who reads what. From then on it is kept or, where the area is
full, read down to the last row of the piece. A file that is repaired when it is read whole may not be
readable in part; it is read whole each time.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.reduction import DupFd

import numpy as np
from torch import Tensor

from ldm_dream.data.image import ImageError
from ldm_dream.data.memory import GIB, mapped, new_area
from ldm_dream.data.sources import DataError, Files
from ldm_dream.errors import shown

_NEW, _READ, _KEPT = (
    0,
    1,
    2,
)  # states of a picture: not visited, was read whole, its pixels are here


@dataclass(frozen=True)
class Piece:
    """pixels: uint8 [3,h,w], from row `top` and column `left` of a picture on."""

    pixels: Tensor
    top: int = 0
    left: int = 0

    def cut(self, rows: slice, columns: slice) -> Tensor:
        """By rows and columns of the picture, in here -> [3,h,w]."""
        top, left = self.top, self.left
        return self.pixels[
            :, rows.start - top : rows.stop - top, columns.start - left : columns.stop - left
        ]


class Pieces:
    """Pieces of pictures by their place among those in use: files[used[place]].

    sizes: [n, 2], (height, width) by place. room: bytes in which pictures are kept, in their order. A copy
    in a process that this one starts shares what is kept.
    """

    def __init__(self, files: Files, used: Sequence[int], sizes: np.ndarray, room: int):
        self.files, self.used, self.sizes = files, used, sizes
        ends = np.concatenate([[0], np.cumsum(3 * sizes.prod(1))])
        self.keeps = int(np.searchsorted(ends, room, side="right")) - 1
        self._starts = len(sizes) + ends
        self._size = int(self._starts[self.keeps])
        self._open(new_area(self._size))

    def piece(self, place: int, rows: slice, columns: slice) -> Piece:
        """At least these rows and columns, which lie in the picture. Raises ImageError."""
        state = os.pread(self._area, 1, place)[0]
        if state == _KEPT:
            return Piece(self._pixels(place))
        if state == _READ:
            window = self._window(place, rows, columns)
            if window is not None:
                return Piece(window, rows.start, columns.start)
        return Piece(self._whole(place))

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_memory": None, "_area": DupFd(self._area)}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._open(state["_area"].detach())

    def _open(self, area: int) -> None:
        weakref.finalize(self, os.close, area)
        self._area = area
        try:
            self._memory = mapped(area, self._size)
        except OSError as error:
            raise DataError(
                f"data.keep_gib: {self._size / GIB:.1f} GiB cannot be reserved "
                f"({error.strerror}); lower it."
            ) from None

    def _pixels(self, place: int) -> Tensor:
        """Where a picture is kept, uint8 [3,H,W]."""
        start, stop = map(int, self._starts[place : place + 2])
        return self._memory[start:stop].view(*self.sizes[place].tolist(), 3).permute(2, 0, 1)

    def _window(self, place: int, rows: slice, columns: slice) -> Tensor | None:
        """None where only the whole picture can tell."""
        try:
            return self.files.window(self.used[place], rows, columns)
        except ImageError:
            return None

    def _whole(self, place: int) -> Tensor:
        pixels = self.files.read(self.used[place])
        found, known = tuple(pixels.shape[-2:]), tuple(self.sizes[place].tolist())
        if found != known:
            found, known = (f"{width}x{height}" for height, width in (found, known))
            raise ImageError(
                f"{shown(self.files.path(self.used[place]))}: is {found}, but {known} when the run began."
            )
        if place < self.keeps:
            self._pixels(place).copy_(pixels)
        # by a system call: another process that sees the state sees the pixels that came before it
        os.pwrite(self._area, bytes([_KEPT if place < self.keeps else _READ]), place)
        return pixels
