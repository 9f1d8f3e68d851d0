"""Validation pairs: whole test pictures, cut at the centre."""

from __future__ import annotations

from torch import Tensor

from ldm_dream.config.data import BlindConfig, DataConfig
from ldm_dream.data.blind import degrade_blind
from ldm_dream.data.pairs import VALIDATION, to_float
from ldm_dream.data.resize import degrade
from ldm_dream.data.sources import DataError, Pictures


def validation_pairs(
    cfg: DataConfig, scale: int, limit: int, crop: int | None
) -> list[tuple[str, Tensor, Tensor]]:
    """(name, hr [1,3,H,W], lr [1,3,H/scale,W/scale]) of up to `limit` pictures of `cfg.val`,
    float32 in [-1, 1].

    The pictures are spread evenly over the sorted files and cut at the centre to at most `crop` HR
    pixels a side, in multiples of 8 * scale; lr is made from the cut hr, so each pair is a whole
    test picture. A blind degradation is drawn from the place of the picture among the sorted files,
    whatever the run's seed and `limit`. Raises DataError or ImageError: a validation set that loses
    pictures silently cannot be compared.
    """
    if limit == 0 or not cfg.val:
        return []
    pictures = Pictures(cfg.val, cfg.exclude, "data.val")
    count = min(limit, len(pictures))
    chosen = [i * (len(pictures) - 1) // max(count - 1, 1) for i in range(count)]
    unit = 8 * scale
    pairs = []
    for index in chosen:
        hr = pictures.read(index)
        height, width = (min(side, crop or side) // unit * unit for side in hr.shape[-2:])
        if not height or not width:
            raise DataError(
                f"{pictures.name(index)}: smaller than {unit} pixels, the least for validation at "
                f"scale {scale}; remove it from data.val."
            )
        top, left = (hr.shape[-2] - height) // 2, (hr.shape[-1] - width) // 2
        hr = hr[None, :, top : top + height, left : left + width]
        if isinstance(cfg.degradation, BlindConfig):
            lr = (
                degrade_blind(hr.float() / 255, scale, cfg.degradation, [(0, VALIDATION, index)])
                * 2
                - 1
            )
        else:
            lr = to_float(degrade(hr, scale))
        pairs.append((pictures.name(index), to_float(hr), lr))
    return pairs
