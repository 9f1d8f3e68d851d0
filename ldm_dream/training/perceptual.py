"""LPIPS as a loss, with AlexNet, VGG16 or both: what one network cannot see, the other can.

AlexNet begins with an 11x11 convolution at every fourth pixel, so LPIPS of patches that always begin
on the same place leaves patterns of four pixels nearly unseen, and a model learns them. Cuts that
begin at random show all of them (E-LPIPS, arXiv 1906.03973, does so for the score).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ldm_dream.config.run import WEIGHTS, PerceptualConfig, Run
from ldm_dream.errors import UserError
from ldm_dream.scoring.metrics import load_lpips


def load_networks(run: Run, device: torch.device) -> dict[str, nn.Module]:
    """Knob of the loss -> its network, of all whose weights the run names and uses."""
    wanted = {"lpips", *run.loss.perceptual}  # validation has LPIPS too
    return {
        name: load_lpips(file, net).to(device)
        for name, (net, key) in WEIGHTS.items()
        if name in wanted and (file := getattr(run, key))
    }


class Perceptual:
    """The LPIPS terms of a loss. Raises UserError where a network is missing."""

    def __init__(self, cfg: PerceptualConfig, networks: Mapping[str, nn.Module]):
        if missing := [name for name in cfg.perceptual if name not in networks]:
            raise UserError(f"loss.{missing[0]} is set but {WEIGHTS[missing[0]][1]} is not.")
        self.cfg, self.networks, self.weights = cfg, networks, cfg.perceptual

    def terms(
        self, made: Tensor, wanted: Tensor, generator: torch.Generator
    ) -> dict[str, tuple[float, Tensor]]:
        """Knob -> (weight, mean distance of [B,3,H,W] in [-1,1]), with `lpips_shift` rows and columns
        left out: so many of them before the cut as are drawn, [0, shift], the others behind it.
        generator: on the host, and used only where the shift is above 0.
        """
        if shift := self.cfg.lpips_shift:
            top, left = torch.randint(shift + 1, (2,), generator=generator).tolist()
            height, width = (side - shift for side in made.shape[-2:])
            rows, columns = slice(top, top + height), slice(left, left + width)
            made, wanted = made[..., rows, columns], wanted[..., rows, columns]
        return {
            name: (weight, self.networks[name](made, wanted).mean())
            for name, weight in self.weights.items()
        }
