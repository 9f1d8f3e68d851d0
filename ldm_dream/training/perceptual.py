"""LPIPS as a loss. AlexNet begins with an 11x11 convolution at every fourth pixel, so LPIPS of patches
that always begin on the same place leaves patterns of four pixels nearly unseen, and a model learns
them. Cuts that begin at random show all of them (E-LPIPS, arXiv 1906.03973, does so for the score).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def lpips_loss(
    lpips: nn.Module, made: Tensor, wanted: Tensor, shift: int, generator: torch.Generator
) -> Tensor:
    """Mean LPIPS of [B,3,H,W] in [-1,1], with `shift` rows and columns left out: so many of them
    before the cut as are drawn, [0, shift], the others behind it. generator: on the host, and used
    only where `shift` is above 0.
    """
    if shift:
        top, left = torch.randint(shift + 1, (2,), generator=generator).tolist()
        height, width = (side - shift for side in made.shape[-2:])
        rows, columns = slice(top, top + height), slice(left, left + width)
        made, wanted = made[..., rows, columns], wanted[..., rows, columns]
    return lpips(made, wanted).mean()
