"""Overlapped tiles with feathered blending, row by row of tiles.

Where to blend? Whole pipelines a tile (encode, sample, decode, blend pixels) let neighbours drift
apart: after K steps a pixel depends on what lies K receptive fields away, so the overlap would have
to grow with K. Here EVERY network call is tiled and blended (the idea of MultiDiffusion, arXiv
2302.08113): neighbours agree again after each step, and the overlap has to cover one receptive
field only.

No pass needs the whole picture at once. A row of tiles is finished down to where the next row
begins (a band), and reaches down into the bands below by its overlap. So `wavefront` lets every
pass follow the one before it at a distance of a row of tiles: the same numbers as whole passes one
after the other, in the memory of a few bands.

Bound, held by tests/upscaling/test_tiling.py: a function that looks no further than 3/8 of the overlap is
reproduced to rounding, and beyond that the error falls with the overlap (x4 model, random local
weights: about tenfold for 8 more LR pixels of tile_pad). Networks with global statistics (group
norm, global attention) see other statistics in a tile than in the whole picture; no overlap removes
that.

Symbols: all sizes are in latent pixels; `align` = side of the network's coarsest attention window
on that grid.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ldm_dream.numbers import sent


class Tile(NamedTuple):
    """Where a tile lies: picture of the batch, rows and columns."""

    picture: int
    rows: slice
    columns: slice


@dataclass(frozen=True)
class Tiles:
    """Tiles of at most `size` x `size` over a height x width grid; neighbours share at least
    `overlap` pixels.

    Height, width, size and overlap are multiples of `align`, so every tile starts on a multiple of
    `align` and attention windows lie as in the whole picture. All tiles have one shape, which is as
    small as their number allows, so that the last of a row does not lie on the one before it.
    """

    height: int
    width: int
    size: int
    overlap: int
    align: int

    @classmethod
    def plan(cls, height: int, width: int, tile: float, pad: float, align: int) -> Tiles:
        """Tiles of about `tile` pixels with a margin of `pad` on each side; both are rounded up to
        whole multiples of `align`.
        """
        overlap = align * math.ceil(2 * pad / align)
        return cls(
            height, width, max(align * math.ceil(tile / align), overlap + align), overlap, align
        )

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) of a tile."""
        return self._side(self.height), self._side(self.width)

    def halved(self) -> Tiles | None:
        """The same picture in tiles of about half the side; None if they are as small as the
        overlap allows.
        """
        size = min(self.size, max(self.height, self.width))
        half = max(self.align * math.ceil(size / 2 / self.align), self.overlap + self.align)
        return replace(self, size=half) if half < size else None

    @property
    def bands(self) -> list[slice]:
        """Rows that are finished by each row of tiles; together all rows."""
        starts = self._starts(self.height)
        return [slice(a, b) for a, b in zip(starts, [*starts[1:], self.height])]

    @property
    def reach(self) -> int:
        """How many bands below its own a row of tiles reaches into, at most."""
        starts = self._starts(self.height)
        return max(
            sum(start < below < start + self.shape[0] for below in starts) for start in starts
        )

    def row(self, i: int, pictures: int) -> list[Tile]:
        """The i-th row of tiles of each picture, left to right."""
        (height, width), top = self.shape, self._starts(self.height)[i]
        return [
            Tile(picture, slice(top, top + height), slice(left, left + width))
            for picture in range(pictures)
            for left in self._starts(self.width)
        ]

    def _side(self, length: int) -> int:
        if length <= self.size:
            return length
        count = math.ceil((length - self.overlap) / (self.size - self.overlap))
        total = length + (count - 1) * self.overlap
        return self.align * -(-total // (count * self.align))

    def _starts(self, length: int) -> list[int]:
        side = self._side(length)
        if length == side:
            return [0]
        steps = range(0, length - self.overlap, side - self.overlap)
        return [min(start, length - side) for start in steps]

    def shares(self, length: int, ratio: int) -> Tensor:
        """[tiles of the axis, tile length * ratio] float64: each tile's share of the blend; at
        every pixel they sum to 1.

        Ramps of sin^2: 0 in the outer 3/8 of the overlap, where the network missed its
        surroundings, 1 past the inner 5/8; two ramps across one overlap sum to 1. Edges of the
        picture have no ramp.
        """
        starts, size = self._starts(length), self._side(length) * ratio
        inside = torch.arange(size, dtype=torch.float64) + 0.5
        shares, total = (
            torch.empty(len(starts), size, dtype=torch.float64),
            torch.zeros(length * ratio, dtype=torch.float64),
        )
        for share, start in zip(shares, starts):
            before = inside if start else torch.full_like(inside, math.inf)
            after = (
                size - inside
                if start * ratio + size < len(total)
                else torch.full_like(inside, math.inf)
            )
            depth = torch.minimum(before, after) / ratio
            # no overlap: a hard cut
            ramp = (depth - self.overlap * 3 / 8) / max(self.overlap / 4, 1e-9)
            share.copy_(torch.sin(ramp.clamp(0, 1) * (math.pi / 2)) ** 2)
            total[start * ratio : start * ratio + size] += share
        for share, start in zip(shares, starts):
            share /= total[start * ratio : start * ratio + size]
        return shares


class Pass:
    """One function over all tiles of a picture, blended: a row of tiles in, a band out.

    fn: parts of the inputs, [n, C, h, w] each -> [n, C', h * q, w * q]; it may change channels and
    size, and compute on any device: its results stay there, and so does the blend. It gets up to
    `batch_size` tiles of a row at a time. Rows come in order. Memory: a row of tiles of what fn
    makes.
    """

    def __init__(self, tiles: Tiles, fn: Callable[..., Tensor], batch_size: int, pictures: int):
        self.tiles, self.fn, self.batch_size, self.pictures = tiles, fn, batch_size, pictures
        self.begun: Tensor | None = None  # what row i - 1 has added to rows of row i
        self.shares: tuple[Tensor, ...] | None = None  # down and across, where the results are

    def band(self, i: int, *inputs: Callable[[Tile], Tensor]) -> Tensor:
        """inputs: each cuts a tile out of something, [1, C, h, w] -> [B, C', band * q, width * q]."""
        row = self.tiles.row(i, self.pictures)
        groups = [row[j : j + self.batch_size] for j in range(0, len(row), self.batch_size)]
        results = (
            self.fn(*(torch.cat([cut(tile) for tile in group]) for cut in inputs))
            for group in groups
        )
        first = next(results)  # tells the channels and the size
        q = first.shape[-1] // self.tiles.shape[1]
        out = self._begin(first, q)
        if self.shares is None:
            sides = self.tiles.height, self.tiles.width
            self.shares = tuple(
                sent(self.tiles.shares(side, q).to(out.dtype), out.device) for side in sides
            )
        down, across = self.shares[0][i, :, None], itertools.cycle(self.shares[1])
        made = (result for group in itertools.chain([first], results) for result in group)
        for tile, result, share in zip(row, made, across):
            view = out[tile.picture, :, :, tile.columns.start * q : tile.columns.stop * q]
            view += result * down * share
        band = self.tiles.bands[i]
        finished = (band.stop - band.start) * q
        self.begun = out[..., finished:, :].clone()
        return out[..., :finished, :]

    def _begin(self, made: Tensor, q: int) -> Tensor:
        height, width = self.tiles.shape[0] * q, self.tiles.width * q
        out = made.new_zeros(self.pictures, made.shape[1], height, width)
        if self.begun is not None:
            out[..., : self.begun.shape[-2], :] = self.begun
        return out


def across(tiles: Tiles, bands: Sequence[Tensor]) -> Callable[[Tile], Tensor]:
    """Cuts tiles of the row that begins where `bands` [B, C, band, width] do."""

    def cut(tile: Tile) -> Tensor:
        pieces = [band[tile.picture : tile.picture + 1, ..., tile.columns] for band in bands]
        return torch.cat(pieces, -2)[..., : tiles.shape[0], :]

    return cut


Stage = Callable[[int, Sequence[Any]], Any]


def wavefront(tiles: Tiles, stages: Sequence[Stage]) -> Iterator[Any]:
    """All stages over the picture, band by band -> the bands of the last one, top to bottom.

    stage(i, bands): bands i, i + 1, .. of the stage before, as far as row i of tiles reaches (none
    for the first stage) -> its band i. Each follows the one before it at that distance.
    """
    count, reach = len(tiles.bands), tiles.reach
    # by each stage, and still needed by the next; before the first one is nothing
    made: list[deque] = [deque() for _ in range(len(stages) + 1)]
    for clock in range(count + reach * (len(stages) - 1)):
        for k, stage in enumerate(stages):
            i = clock - k * reach
            if not 0 <= i < count:
                continue
            made[k + 1].append(stage(i, made[k]))
            if made[k]:
                made[k].popleft()
        while made[-1]:
            yield made[-1].popleft()
