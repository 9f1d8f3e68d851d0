"""A picture through encoder, sampler and decoder in tiles, band by band (`tiling.py`).

    LR -> encode -> z_lr, z_T -> step -> .. -> step -> z0 -> decode -> result

What is in memory at a time: the LR picture in its own depth, and of each stage about a row of
tiles. Enlarged LR pixels, for the encoder and as a condition, are made of it tile by tile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ldm_dream.sampler import Noise, Sampler, Seen, Step, Turn
from ldm_dream.upscaling.pictures import Source
from ldm_dream.upscaling.tiling import Pass, Stage, Tile, Tiles, across, wavefront


class Calls(NamedTuple):
    """The networks, on tensors of any device; all return float32.

    factor: HR pixels a latent pixel. cond_factor: pixels of the condition a latent pixel; None: LR
    pixels as they are. denoise: turn, z_t, z_lr and LR pixels of the condition -> output. device: of
    the results, on which a band and all that is between two steps stays.
    """

    encode: Callable[[Tensor], Tensor]
    denoise: Callable[[Turn, Tensor, Tensor, Tensor], Tensor]
    decode: Callable[[Tensor], Tensor]
    factor: int
    cond_factor: int | None
    device: torch.device


class Latents(NamedTuple):
    """A band between two steps."""

    z_lr: Tensor
    z_t: Tensor
    before: Step | None = None  # where the sampler remembers


@dataclass(frozen=True)
class InTiles:
    """source: its sides are those of the tiles' grid. noise: z_lr of some rows and the first of them
    -> their noise. batch_size: tiles at a time.
    """

    calls: Calls
    source: Source
    tiles: Tiles
    sampler: Sampler
    noise: Callable[[Tensor, int], Noise]
    batch_size: int

    def bands(self) -> Iterator[Tensor]:
        """-> rows of the result at the model's scale, [B, 3, h, W * scale], top to bottom."""
        stages = [
            self._encoding(),
            *map(self._stepping, self.sampler.turns(self.calls.device)),
            self._decoding(),
        ]
        return wavefront(self.tiles, stages)

    def _encoding(self) -> Stage:
        encoder = self._pass(self.calls.encode)
        base = self._enlarged(self.calls.factor)

        def stage(i: int, _: Sequence[Latents]) -> Latents:
            z_lr = encoder.band(i, lambda tile: base(tile).clamp(-1, 1))
            noise = self.noise(z_lr, self.tiles.bands[i].start)
            return Latents(z_lr, self.sampler.process.prior(z_lr, noise(0)))

        return stage

    def _stepping(self, turn: Turn) -> Stage:
        denoiser = self._pass(lambda *parts: self.calls.denoise(turn, *parts))
        lr = self._enlarged(self.calls.cond_factor)

        def stage(i: int, bands: Sequence[Latents]) -> Latents:
            z_t = across(self.tiles, [band.z_t for band in bands])
            z_lr = across(self.tiles, [band.z_lr for band in bands])
            output, here = denoiser.band(i, z_t, z_lr, lr), bands[0]
            noise = self.noise(here.z_lr, self.tiles.bands[i].start)
            seen = Seen(output, here.z_t, here.z_lr, here.before)
            step = self.sampler.step(turn, seen, noise)
            return Latents(here.z_lr, step.z_t, step if self.sampler.remembers else None)

        return stage

    def _decoding(self) -> Stage:
        decoder = self._pass(self.calls.decode)

        def stage(i: int, bands: Sequence[Latents]) -> Tensor:
            return decoder.band(i, across(self.tiles, [band.z_t for band in bands]))

        return stage

    def _pass(self, fn: Callable[..., Tensor]) -> Pass:
        return Pass(self.tiles, fn, self.batch_size, self.source.count)

    def _enlarged(self, ratio: int | None) -> Callable[[Tile], Tensor]:
        """Cuts tiles out of LR made `ratio` times the latent's size; None: out of LR as it is."""
        grid = self.tiles.height, self.tiles.width
        size = self.source.size if ratio is None else (grid[0] * ratio, grid[1] * ratio)

        def cut(tile: Tile) -> Tensor:
            rows, columns = (
                slice(part.start * n // whole, part.stop * n // whole)
                for part, n, whole in zip((tile.rows, tile.columns), size, grid)
            )
            return self.source.one(tile.picture).part(size, rows, columns)

        return cut
