"""Blocks that several networks use unchanged: timestep embedding, norms that keep the memory layout, resampling.

Features are [B,C,H,W]; every block here returns channels_last features for channels_last input.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

GROUPS = 32  # of the group norms in the published U-Nets


def timestep_embedding(t: Tensor, width: int, max_period: float = 10_000.0) -> Tensor:
    """t [B] -> float32 [B,width]: cos(t w_i) then sin(t w_i), w_i = max_period ** (-2i/width).

    From DDPM (arXiv 2006.11239), in the order of ADM (arXiv 2105.05233). An odd width ends with a column of zeros.
    """
    half = width // 2
    frequencies = torch.exp(-math.log(max_period) / half * torch.arange(half, dtype=torch.float32, device=t.device))
    angles = t.float()[:, None] * frequencies
    return F.pad(torch.cat([angles.cos(), angles.sin()], 1), (0, width % 2))


class GroupNorm(nn.GroupNorm):
    """Groups over space, eps 1e-5; torch's kernels take the statistics of 16-bit features in fp32."""

    def __init__(self, channels: int, groups: int = GROUPS):
        super().__init__(groups, channels, eps=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        # torch returns contiguous features on CUDA, and fp32 ones under autocast; the next convolution wants neither
        channels_last = x.is_contiguous(memory_format=torch.channels_last)
        return super().forward(x).to(x.dtype, memory_format=torch.channels_last if channels_last else torch.contiguous_format)


class LayerNorm(nn.LayerNorm):
    """Over the channels of each position (NAFNet, arXiv 2204.04676), eps 1e-5: local, so a tile equals its part of the whole."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2).to(x.dtype)  # both permutes are views in channels_last


def make_norm(kind: Literal["group", "layer"], channels: int) -> nn.Module:
    """`kind` of the config -> norm of features with `channels` channels; "group" wants a multiple of 32."""
    return GroupNorm(channels) if kind == "group" else LayerNorm(channels)


class Downsample(nn.Module):
    """Halves the size by a convolution of stride 2 (odd sizes round up); `op` is the published name."""

    def __init__(self, channels: int, out_channels: int):
        super().__init__()
        self.op = nn.Conv2d(channels, out_channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class Upsample(nn.Module):
    """Doubles the size: nearest neighbour, then a convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
