"""Test pictures of the benchmarks that train: enlarged by a model, and their scores."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldm_dream.config.run import DiffusionRun
from ldm_dream.data.images import from_tensor
from ldm_dream.errors import UserError
from ldm_dream.upscaling.upscaler import Upscaler

from .peer_methods import SCALE
from .peer_scores import Found, Scorer

PIXELS = 24 * 128 * 128  # HR pixels of a batch, at the most
Pairs = list[tuple[str, Tensor, Tensor]]  # as of `validation_pairs`


def check_comparable(config: str, run: DiffusionRun, pairs: Pairs) -> None:
    """Raises UserError for what would fail, or say nothing, hours later."""
    if len(pairs) < 2:
        raise UserError("an interval needs 2 pictures or more; name more, or a larger --limit.")
    if run.scale != SCALE:
        raise UserError(f"{config}: scale is {run.scale}; the scores are for {SCALE}.")


def batches(pairs: Pairs) -> Iterator[Pairs]:
    """Neighbours that are taken together; noise is the same for every picture."""
    area = math.prod(pairs[0][1].shape[-2:])
    count = max(1, PIXELS // area)
    for first in range(0, len(pairs), count):
        yield pairs[first : first + count]


def enlarged(upscaler: Upscaler, pairs: Pairs, **options: Any) -> list[np.ndarray]:
    """uint8 [H,W,3] each, without a colour fix. Pairs are of one size. options: of the upscaler."""
    made: list[np.ndarray] = []
    for few in batches(pairs):
        lr = torch.cat([lr for _, _, lr in few])
        results = upscaler((lr + 1) / 2, color_fix="none", **options) * 2 - 1
        made += [from_tensor(one[None]) for one in results]
    return made


def scores(
    scorer: Scorer, pictures: list[np.ndarray], pairs: Pairs
) -> dict[str, float | list[float]]:
    found = Found()
    for sr, (_, hr, lr) in zip(pictures, pairs):
        scorer.add(found, sr, from_tensor(hr), from_tensor(lr))
    return scorer.metrics(found)
