"""Validation of a run: PSNR-Y, SSIM and LPIPS over the validation pairs, and a picture grid to look at."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .data.images import Image, from_tensor, write_image
from .metrics import psnr, ssim

GRID_ROWS = 4


@torch.no_grad()
def validate(objective, pairs: list[tuple[str, Tensor, Tensor]], lpips: nn.Module | None, device, grid: Path, seed: int) -> dict:
    """Means over `pairs`: `val/psnr_y` (dB, 4 pixels of border cut), `val/ssim_y`, `val/lpips`. LR | result | HR go to `grid`."""
    rows, totals = [], {"val/psnr_y": [], "val/ssim_y": []} | ({"val/lpips": []} if lpips is not None else {})
    for i, (_, hr, lr) in enumerate(pairs):
        generator = torch.Generator(device).manual_seed(seed + i)
        sr = objective.evaluate(hr.to(device), lr.to(device), generator).float().clamp(-1, 1).cpu()
        ours, truth = from_tensor(sr), from_tensor(hr)
        totals["val/psnr_y"].append(psnr(ours, truth, channel="y", crop_border=4))
        totals["val/ssim_y"].append(ssim(ours, truth, channel="y", crop_border=4))
        if lpips is not None:
            totals["val/lpips"].append(float(lpips(sr.to(device), hr.to(device)).float()))
        if len(rows) < GRID_ROWS:
            shown = F.interpolate(lr, size=hr.shape[-2:], mode="nearest")
            rows.append(np.concatenate([from_tensor(shown), ours, truth], axis=1))
    width = max(row.shape[1] for row in rows)
    padded = [np.pad(row, ((0, 4), (0, width - row.shape[1]), (0, 0)), constant_values=255) for row in rows]
    grid.parent.mkdir(parents=True, exist_ok=True)
    write_image(grid, Image(np.concatenate(padded)))
    return {key: float(np.mean(values)) for key, values in totals.items()}
