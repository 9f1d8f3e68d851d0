"""Validation pairs: whole test pictures, cut at the centre."""

from __future__ import annotations

import logging
import os

import numpy as np
from torch import Tensor

from ldm_dream.config.data import BlindConfig, DataConfig
from ldm_dream.data.blind import degrade_blind
from ldm_dream.data.given import misfit
from ldm_dream.data.overlap import overlap
from ldm_dream.data.pairs import VALIDATION, to_float
from ldm_dream.data.resize import degrade, size_of
from ldm_dream.data.sources import DataError, Files, Part, Pictures
from ldm_dream.errors import shown

log = logging.getLogger(__name__)


def validation_pairs(
    cfg: DataConfig, scale: int, limit: int, crop: int | None, train: Files | None = None
) -> list[tuple[str, Tensor, Tensor]]:
    """(name, hr [1,3,H,W], lr [1,3,H/scale,W/scale]) of up to `limit` pictures of `cfg.val`, or of
    the share `cfg.val_fraction` of `cfg.train`, float32 in [-1, 1].

    The pictures are spread evenly over the sorted files and cut at the centre to at most `crop` HR
    pixels a side, in multiples of 8 * scale; lr is cut from the LR picture where that is given, else
    made from the cut hr, so each pair is a whole test picture. A blind degradation is drawn from the
    place of the picture among the sorted files, whatever the run's seed and `limit`. train: pictures
    of `cfg.train`, where they are listed already. Raises DataError or ImageError: a validation set
    that loses pictures silently cannot be compared.
    """
    if limit == 0 or not cfg.has_validation:
        return []
    unit = 8 * scale
    pictures, indices = _of_val(cfg, train) if cfg.val else _of_fraction(cfg, scale, unit)
    count = min(limit, len(indices))
    chosen = [i * (len(indices) - 1) // max(count - 1, 1) for i in range(count)]
    pairs = []
    for place in chosen:
        index = indices[place]
        hr = pictures.read(index)
        height, width = (min(side, crop or side) // unit * unit for side in size_of(hr))
        if not height or not width:
            raise DataError(
                f"{pictures.name(index)}: smaller than {unit} pixels, the least for validation at "
                f"scale {scale}; remove it from data.val."
            )
        if pictures.lr:
            hr, lr = _given_pair(pictures, index, hr, (height, width), scale)
        else:
            hr = _centre(hr, height, width)
            lr = _made_lr(cfg, hr, scale, index)
        pairs.append((pictures.name(index), to_float(hr), lr))
    return pairs


def _of_val(cfg: DataConfig, train: Files | None) -> tuple[Pictures, list[int]]:
    pictures = Pictures(cfg.val, cfg.exclude, "data.val", cfg.val_lr)
    if cfg.train and os.environ.get("RANK", "0") == "0":  # one process of a run says it
        train = train or Pictures(cfg.train, cfg.exclude, "data.train", says=False)
        if count := overlap(train, pictures):
            log.warning(
                "data.val: %d of its %d pictures are in data.train too, the files or copies of the "
                "same name; figures of validation flatter the model.",
                count, len(pictures),
            )  # fmt: skip
    return pictures, list(range(len(pictures)))


def _of_fraction(cfg: DataConfig, scale: int, unit: int) -> tuple[Pictures, list[int]]:
    """Those that could be trained on, and are large enough to be validated on. Says what is left out."""
    part = Part(cfg.val_fraction, is_val=True)
    pictures = Pictures(cfg.train, cfg.exclude, "data.train", cfg.lr, part, says=False)
    least = max(cfg.patch, unit)
    sizes, unreadable = pictures.sizes(scale)
    for reason in unreadable.values():
        log.warning("%s It is left out of validation.", reason)
    indices = np.flatnonzero(sizes.min(1) >= least).tolist()
    if not indices:
        raise DataError(
            f"data.val_fraction={cfg.val_fraction}: of the {len(pictures)} pictures that it keeps for "
            f"validation none has {least} pixels a side; raise it, or name pictures in data.val."
        )
    if small := len(pictures) - len(indices) - len(unreadable):
        log.warning(
            "data.val_fraction: %d of the %d pictures that it keeps for validation have no %d pixels a "
            "side and are left out.",
            small, len(pictures), least,
        )  # fmt: skip
    return pictures, indices


def _centre(picture: Tensor, height: int, width: int) -> Tensor:
    """[3,H,W] -> [1,3,height,width]"""
    top, left = (picture.shape[-2] - height) // 2, (picture.shape[-1] - width) // 2
    return picture[None, :, top : top + height, left : left + width]


def _made_lr(cfg: DataConfig, hr: Tensor, scale: int, index: int) -> Tensor:
    if isinstance(cfg.degradation, BlindConfig):
        seeds = [(0, VALIDATION, index)]
        return degrade_blind(hr.float() / 255, scale, cfg.degradation, seeds) * 2 - 1
    return to_float(degrade(hr, scale))


def _given_pair(
    pictures: Pictures, index: int, hr: Tensor, size: tuple[int, int], scale: int
) -> tuple[Tensor, Tensor]:
    """-> hr uint8 [1,3,*size], lr float [1,3,*size / scale], of the same place."""
    assert pictures.lr is not None
    lr = pictures.lr.read(index)
    if wrong := misfit(size_of(hr), size_of(lr), scale):
        raise DataError(
            f"{pictures.lr_knob}: {shown(pictures.path(index))} and {shown(pictures.lr.path(index))}: {wrong}."
        )
    low, narrow = (side // scale for side in size_of(hr))
    hr, lr = hr[:, : low * scale, : narrow * scale], lr[:, :low, :narrow]
    height, width = (side // scale for side in size)
    top, left = (low - height) // 2, (narrow - width) // 2
    hr = hr[:, top * scale :, left * scale :][None, :, : size[0], : size[1]]
    return hr, to_float(lr[None, :, top : top + height, left : left + width])
