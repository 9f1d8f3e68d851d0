"""Frame: where a picture's result lies in what the model makes, which reaches further on all sides,
and its rows cut out of the bands that the model makes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ldm_dream.data.resize import upsample
from ldm_dream.denoiser import sent
from ldm_dream.upscaling.pictures import Source

STRIP, MIN_STRIP = 2**20, 32  # HR pixels and rows of a strip in which colours and size are set


@dataclass(frozen=True)
class Frame:
    """Where the result lies in what the model makes.

    size: of all that it makes of `source`. edge: pixels of mirrored context at the top and left.
    inner: size of the result in it. enlarged: all of the LR picture at `size`, where it is taken
    whole: for the encoder and for the colour fix.
    """

    source: Source
    size: tuple[int, int]
    edge: int
    inner: tuple[int, int]
    enlarged: Tensor | None = None

    def whole(self, device: torch.device) -> Frame:
        """With what is enlarged, on the device."""
        lr = sent(self.source.whole(self.source.size), device)
        return replace(self, enlarged=upsample(lr, self.size))

    def strips(self, height: int) -> list[slice]:
        """All rows of a result of `height` rows, in strips that hold about STRIP pixels here."""
        most = max(MIN_STRIP, STRIP // self.inner[1]) * height // self.inner[0]
        step = max(1, most)
        return [slice(top, min(top + step, height)) for top in range(0, height, step)]

    def crop(self, seen: Tensor) -> Tensor:
        """The result in a view of all that the model makes, of any resolution."""
        parts = (
            slice(self.edge * n // whole, -(-(self.edge + length) * n // whole))
            for length, whole, n in zip(self.inner, self.size, seen.shape[-2:])
        )
        return seen[(..., *parts)]

    def pairs(
        self, bands: Iterator[Tensor], wants: Iterable[slice]
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """bands: rows of all that the model makes. wants: rows of the result, downwards -> these
        rows of it, and of the enlarged LR picture, [B, 3, h, W].
        """
        columns = slice(self.edge, self.edge + self.inner[1])
        moved = [slice(r.start + self.edge, r.stop + self.edge) for r in wants]
        for rows, sr in zip(moved, cut_anew(bands, moved)):
            yield sr[..., columns], self._base(rows, columns, sr.device)

    def _base(self, rows: slice, columns: slice, device: torch.device) -> Tensor:
        if self.enlarged is not None:
            return self.enlarged[..., rows, columns]
        return sent(self.source.part(self.size, rows, columns).clamp(-1, 1), device)


def cut_anew(bands: Iterator[Tensor], wants: Iterable[slice]) -> Iterator[Tensor]:
    """Bands of rows, [..., h, W], from row 0 on -> the rows of each of `wants`, which go downwards
    and may overlap.
    """
    held: list[tuple[int, Tensor]] = []  # what is still needed, and the row where it begins
    bottom = 0
    for want in wants:
        while bottom < want.stop:
            # copies, since a few rows that are needed would keep the whole band
            held = [(max(y, want.start), _rows(x, y, want).clone()) for y, x in held]
            held.append((bottom, next(bands)))
            bottom += held[-1][1].shape[-2]
        yield torch.cat([_rows(x, y, want) for y, x in held], -2)


def _rows(x: Tensor, top: int, want: slice) -> Tensor:
    """Those of `want` that are in x, whose first row is `top`."""
    return x[..., max(0, want.start - top) : max(0, want.stop - top), :]
