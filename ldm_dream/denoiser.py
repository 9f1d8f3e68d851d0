"""What the network is told about the low-resolution picture; training and upscaling must build it
alike, so both do it here.

Symbols: z_lr = latent of the upsampled LR picture; k = `network.cond_factor`, the size of the
condition over that of z_t.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ldm_dream.config.run import DiffusionRun
from ldm_dream.data.resize import imresize_to


def build_cond(run: DiffusionRun, lr: Tensor, z_lr: Tensor) -> Tensor:
    """LR [B, 3, H, W] in [-1, 1] and z_lr [B, C, h, w] -> the parts of `run.condition` side by
    side, [B, Cc, h * k, w * k].

    A part of another size is brought to that grid by bicubic (SR3 in pixel space sees the enlarged
    LR picture). Where k is None (IDM) the network takes the LR picture as it is.
    """
    if run.network.cond_factor is None:
        return lr
    size = (z_lr.shape[-2] * run.network.cond_factor, z_lr.shape[-1] * run.network.cond_factor)
    parts = [{"lr": lr, "z_lr": z_lr}[name] for name in run.condition]
    nothing = z_lr.new_empty(len(z_lr), 0, *size)
    return torch.cat(
        [
            nothing,
            *(part if part.shape[-2:] == size else imresize_to(part, *size) for part in parts),
        ],
        1,
    )
