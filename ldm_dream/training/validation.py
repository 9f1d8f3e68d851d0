"""Validation of a run: PSNR-Y, SSIM and LPIPS over the validation pairs, and a picture grid to look
at.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ldm_dream.data.images import Image, from_tensor, write_image
from ldm_dream.scoring.metrics import scores
from ldm_dream.training import distributed
from ldm_dream.training.signals import Stop, StoppedAtOnce
from ldm_dream.training.trainer import Trainer

GAP = 4  # pixels below a row of a grid
GRID_ROWS = 4
BORDER = 4  # pixels cut before PSNR and SSIM

Pair = tuple[str, Tensor, Tensor]


class Judged(NamedTuple):
    """Figures of one pair, and its row of the grid where it has one."""

    figures: dict[str, float]
    row: np.ndarray | None
    features: tuple[Tensor, Tensor] | None  # of result and original, for the distance of the sets


@torch.no_grad()
def validate(trainer: Trainer, pairs: list[Pair], grid: Path, stop: Stop) -> dict[str, float]:
    """Means over `pairs` in the protocol of `ldm-dream evaluate`: `val/psnr_y` (dB), `val/ssim_y`,
    `val/lpips`, and `val/distance` of the sets; the same in every process. Each judges its share, in
    batches of equal size. Raises StoppedAtOnce, in every process, where a signal came to one of them.

    A grid LR | result | HR goes to `grid`.
    """
    rank, cfg = trainer.rank, trainer.run.train
    pixels = cfg.batch_size * trainer.run.data.patch**2  # as many as a step of training has
    shares = (range(number, len(pairs), rank.world) for number in range(rank.world))
    batches = [list(_batches(pairs, share, pixels)) for share in shares]
    mine = batches[rank.number]
    judged: dict[int, Judged] = {}
    for number in range(max(map(len, batches))):
        # a size that training did not meet is not worth a compilation
        stance = partial(torch.compiler.set_stance, "eager_on_recompile")
        with suppress(StoppedAtOnce), stop.at_once(), stance():
            if number < len(mine):
                judged |= _judge(trainer, pairs, mine[number])
        if distributed.anywhere(torch.tensor(stop.signal is not None)):
            raise StoppedAtOnce
    for share in distributed.gathered(judged):
        judged |= share
    found = [judged[i] for i in range(len(pairs))]
    if rank.is_first:
        write_grid(grid, [one.row for one in found if one.row is not None])
    keys = [key for key in ("psnr_y", "ssim_y", "lpips") if key in found[0].figures]
    means = {f"val/{key}": float(np.mean([one.figures[key] for one in found])) for key in keys}
    sets = [one.features for one in found if one.features]
    if trainer.distance and len(sets) > 1:
        sr, hr = (torch.stack(side) for side in zip(*sets))
        means["val/distance"] = trainer.distance.compare(sr, hr)[trainer.distance.name]
    return means


def _batches(pairs: list[Pair], numbers: Sequence[int], pixels: int) -> Iterator[tuple[int, ...]]:
    """Numbers of neighbours of equal size; together they have `pixels` HR pixels at the most, or are
    one.
    """
    for shape, group in groupby(numbers, key=lambda i: pairs[i][1].shape):
        alike, batch_size = tuple(group), max(1, pixels // (shape[-2] * shape[-1]))
        for first in range(0, len(alike), batch_size):
            yield alike[first : first + batch_size]


def _judge(trainer: Trainer, pairs: list[Pair], numbers: tuple[int, ...]) -> dict[int, Judged]:
    device = trainer.device
    _, hrs, lrs = zip(*(pairs[i] for i in numbers))
    hr, lr = torch.cat(hrs).to(device), torch.cat(lrs).to(device)
    # a picture's noise is its own, whatever it is batched with
    generators = [torch.Generator(device).manual_seed(trainer.run.seed + i) for i in numbers]
    sr = trainer.objective.evaluate(hr, lr, generators).float().clamp(-1, 1).cpu()
    found = {}
    for place, i in enumerate(numbers):
        _, truth, small = pairs[i]
        ours, wanted = from_tensor(sr[place : place + 1]), from_tensor(truth)
        with torch.autocast(device.type, enabled=False):
            figures = scores(ours, wanted, BORDER, trainer.perceptual.get("lpips"))
        row = None
        if i < GRID_ROWS:
            shown = F.interpolate(small, size=truth.shape[-2:], mode="nearest")
            row = np.concatenate([from_tensor(shown), ours, wanted], axis=1)
        features = None
        if measure := trainer.distance:
            features = measure.features(ours), measure.features(wanted)
        found[i] = Judged(figures, row, features)
    return found


def write_grid(path: Path, rows: list[np.ndarray]) -> None:
    """Rows of pictures, uint8 [H,W,3] each, one below the other with GAP white pixels."""
    width = max(row.shape[1] for row in rows)
    padded = [
        np.pad(row, ((0, GAP), (0, width - row.shape[1]), (0, 0)), constant_values=255)
        for row in rows
    ]
    write_image(path, Image(np.concatenate(padded)))
