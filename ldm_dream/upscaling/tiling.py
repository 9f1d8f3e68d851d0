"""Overlapped tiles with feathered blending.

Where to blend? Whole pipelines a tile (encode, sample, decode, blend pixels) let neighbours drift
apart: after K steps a pixel depends on what lies K receptive fields away, so the overlap would have
to grow with K. Here z_t is kept for the whole picture and EVERY network call is tiled and blended
(the idea of MultiDiffusion, arXiv 2302.08113): neighbours agree again after each step, and the
overlap has to cover one receptive field only. The price is a whole z_t and noise field in memory, 4
bytes a latent value.

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
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tiles:
    """Square tiles of side `size` over a height x width grid; neighbours share at least `overlap`
    pixels.

    Height, width, size and overlap are multiples of `align`, so every tile starts on a multiple of
    `align` and attention windows lie as in the whole picture. Along an axis shorter than `size`
    tiles are as long as the axis: all tiles have one shape.
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
    def is_whole(self) -> bool:
        return self.size >= max(self.height, self.width)

    def halved(self) -> Tiles | None:
        """The same picture in tiles of about half the side; None if they are as small as the
        overlap allows.
        """
        size = min(self.size, max(self.height, self.width))
        half = max(self.align * math.ceil(size / 2 / self.align), self.overlap + self.align)
        return replace(self, size=half) if half < size else None

    def map(self, fn: Callable[..., Tensor], *inputs: Tensor, batch_size: int = 1) -> Tensor:
        """Blend fn(*tiles): inputs [B, C, height * r, width * r], each with its own r -> [B, C',
        height * q, width * q].

        r is whole, or its inverse divides `align`.

        `fn` gets `batch_size` tiles at a time (of any of the B pictures) and may change channels
        and size (q). What it returns is blended where the first input lives, so `fn` may compute on
        another device.
        """
        rows, columns = self._starts(self.height), self._starts(self.width)
        places = list(
            itertools.product(range(len(inputs[0])), range(len(rows)), range(len(columns)))
        )
        groups = [places[i : i + batch_size] for i in range(0, len(places), batch_size)]

        def made(group: list[tuple[int, int, int]]) -> Tensor:
            tiles = (
                torch.cat([self._cut(x, picture, rows[i], columns[j]) for picture, i, j in group])
                for x in inputs
            )
            return fn(*tiles).to(inputs[0].device)

        result = made(groups[0])  # tells the channels and the size
        q = result.shape[-1] // min(self.size, self.width)
        out = result.new_zeros(len(inputs[0]), result.shape[1], self.height * q, self.width * q)
        row_shares, column_shares = (self._shares(n, q).to(out) for n in (self.height, self.width))
        results = itertools.chain([result], map(made, groups[1:]))
        for group, result in zip(groups, results):
            for (picture, i, j), tile in zip(group, result):
                y, x = rows[i] * q, columns[j] * q
                view = out[picture, :, y : y + tile.shape[-2], x : x + tile.shape[-1]]
                view += tile * row_shares[i][:, None] * column_shares[j]
        return out

    def _cut(self, x: Tensor, picture: int, row: int, column: int) -> Tensor:
        places = zip((row, column), x.shape[-2:], (self.height, self.width))
        rows, columns = (
            slice(start * n // whole, (start + self.size) * n // whole)
            for start, n, whole in places
        )
        return x[picture : picture + 1, :, rows, columns]

    def _starts(self, length: int) -> list[int]:
        if length <= self.size:
            return [0]
        return [
            min(start, length - self.size)
            for start in range(0, length - self.overlap, self.size - self.overlap)
        ]

    def _shares(self, length: int, ratio: int) -> Tensor:
        """[tiles of the axis, tile length * ratio] float64: each tile's share of the blend; at
        every pixel they sum to 1.

        Ramps of sin^2: 0 in the outer 3/8 of the overlap, where the network missed its
        surroundings, 1 past the inner 5/8; two ramps across one overlap sum to 1. Edges of the
        picture have no ramp.
        """
        starts, size = self._starts(length), min(self.size, length) * ratio
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
