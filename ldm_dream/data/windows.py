"""Blind degradation of patches: each with its neighbours in the picture, where the tensors are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from ldm_dream.config.data import DataConfig
from ldm_dream.data.blind import degrade_as_planned, mirrored, to_levels
from ldm_dream.data.blind_plan import Plan
from ldm_dream.data.machine import cores

# LR pixels around a patch that are degraded with it: as far as the final sinc filter reaches
MARGIN = 10
JPEG_BLOCK = 16  # LR pixels a side of what JPEG with 4:2:0 treats as one
ENOUGH = 8  # cores of a training process, from which its workers degrade in time


def degrades_on_device(cfg: DataConfig, device: str) -> bool:
    """Whether the training process degrades, on its device (`cuda`, `cpu`), and not its workers.

    Samples are degraded one by one, in about 450 small launches each, so the training thread would
    spend tenths of a second on a batch of 64. Workers cost it nothing, where there are enough.
    """
    if cfg.degrade_on is not None:
        return cfg.degrade_on == "device"
    return device == "cuda" and cores() < ENOUGH and not cfg.has_webp


@dataclass(frozen=True)
class Windows:
    """Patches before their degradation. pixels: uint8 [B,3,S,S], HR; corners: of each LR patch in its
    LR window; plans: what is to be done to each.
    """

    pixels: Tensor
    corners: tuple[tuple[int, int], ...]
    plans: Sequence[Plan]

    def pin_memory(self) -> Windows:
        return replace(self, pixels=self.pixels.pin_memory())

    def degraded(self, pixels: Tensor, side: int) -> list[Tensor]:
        """LR patches uint8 [3,side,side], not yet turned. pixels: those here, on any device."""
        lr = degrade_as_planned(pixels.float() / 255, self.plans)
        cut = (x[:, y : y + side, x0 : x0 + side] for x, (y, x0) in zip(lr, self.corners))
        return [to_levels(patch) for patch in cut]


def window_of(
    top: int, left: int, side: int, scale: int, size: tuple[int, int]
) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
    """Rows and columns [S] of the HR picture with which the patch of `side` LR pixels at `top`, `left`
    is degraded, and its corner in there in LR pixels. size: (height, width) of the picture.

    There are at least MARGIN LR pixels around the patch: real neighbours inside the picture, its
    mirror image outside. S is the same for all patches, so a batch is one tensor. Windows begin on
    the JPEG blocks of the whole picture, so that the borders of blocks lie anywhere in a patch.
    """
    first, second = ((at - MARGIN) // JPEG_BLOCK * JPEG_BLOCK for at in (top, left))
    length = side + 2 * MARGIN + JPEG_BLOCK - 1
    rows, columns = (
        mirrored(at * scale, (at + length) * scale, pixels)
        for at, pixels in zip((first, second), size)
    )
    return (rows, columns), (top - first, left - second)
