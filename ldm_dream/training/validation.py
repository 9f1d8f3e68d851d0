"""Validation of a run: PSNR-Y, SSIM and LPIPS over the validation pairs, and a picture grid to look
at.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm_dream.data.images import Image, from_tensor, write_image
from ldm_dream.scoring.metrics import scores
from ldm_dream.training.objective import Objective

GRID_ROWS = 4
BORDER = 4  # pixels cut before PSNR and SSIM


@torch.no_grad()
def validate(
    objective: Objective,
    pairs: list[tuple[str, Tensor, Tensor]],
    lpips: nn.Module | None,
    grid: Path,
    seed: int,
) -> dict[str, float]:
    """Means over `pairs` in the protocol of tools/evaluate.py: `val/psnr_y` (dB), `val/ssim_y`,
    `val/lpips`.

    A grid LR | result | HR goes to `grid`.
    """
    shown, found = [], []
    device = next(objective.model.parameters()).device
    for i, (_, hr, lr) in enumerate(pairs):
        generator = torch.Generator(device).manual_seed(seed + i)
        sr = objective.evaluate(hr.to(device), lr.to(device), generator).float().clamp(-1, 1).cpu()
        ours, truth = from_tensor(sr), from_tensor(hr)
        with torch.autocast(device.type, enabled=False):
            found.append(scores(ours, truth, BORDER, lpips))
        if len(shown) < GRID_ROWS:
            small = F.interpolate(lr, size=hr.shape[-2:], mode="nearest")
            shown.append(np.concatenate([from_tensor(small), ours, truth], axis=1))
    width = max(row.shape[1] for row in shown)
    padded = [
        np.pad(row, ((0, 4), (0, width - row.shape[1]), (0, 0)), constant_values=255)
        for row in shown
    ]
    write_image(grid, Image(np.concatenate(padded)))
    return {
        f"val/{key}": float(np.mean([row[key] for row in found]))
        for key in ("psnr_y", "ssim_y", "lpips")
        if key in found[0]
    }
