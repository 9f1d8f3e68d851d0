"""The U-Net of SR3 (Saharia et al. 2021, arXiv 2104.07636), which DREAM's pixel-space experiments
use, complete in this file.

Architecture as in the public re-implementation that DREAM builds on (github.com/jinxinzhou/DREAM
@27a2f7f, sr3/): the network receives the noise level a = sqrt(abar) itself, not a timestep, and the
condition is concatenated BEFORE z_t.

    cond, z_t -> conv -> levels of residual blocks, with attention at some sizes, halved between
    levels -> middle -> mirror

Symbols: B batch; C channels of z_t; Cc of the condition; h, w size of z_t in pixels; level l has
channels inner * mult[l].
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ldm_dream.config.networks import SR3Config
from ldm_dream.networks.base import Network
from ldm_dream.networks.layers import (
    Attention,
    Dropout,
    EmbeddingMLP,
    GroupNorm,
    LastConv2d,
    Upsample,
    noise_level_embedding,
    of_size,
    pad_to_multiple,
)


class SR3Net(Network):
    """At the config's defaults the published 16 -> 128 face network with 97,807,491 parameters."""

    sees_noise_level = True
    cond_factor = 1

    def __init__(self, cfg: SR3Config):
        super().__init__()
        self.repeated_blocks = (Block,)
        self.multiple = self.align = 2 ** (len(cfg.channel_mult) - 1)
        self.inner = cfg.model_channels
        self.noise_level_mlp = EmbeddingMLP(cfg.model_channels, cfg.model_channels)
        sizes = [cfg.image_size >> level for level in range(len(cfg.channel_mult))]
        widths = [cfg.model_channels * mult for mult in cfg.channel_mult]
        width = cfg.model_channels
        self.downs = nn.ModuleList(
            [nn.Conv2d(cfg.cond_channels + cfg.in_channels, width, 3, padding=1)]
        )
        skips = [width]
        for level, (size, out) in enumerate(zip(sizes, widths)):
            for _ in range(cfg.num_res_blocks):
                self.downs.append(
                    Block(cfg, width, out, attention=size in cfg.attention_resolutions)
                )
                width = out
                skips.append(width)
            if level < len(sizes) - 1:
                self.downs.append(Downsample(width))
                skips.append(width)
        self.mid = nn.ModuleList(
            [Block(cfg, width, width, attention=True), Block(cfg, width, width, attention=False)]
        )
        self.ups = nn.ModuleList()
        for level, (size, out) in reversed(list(enumerate(zip(sizes, widths)))):
            for _ in range(cfg.num_res_blocks + 1):
                self.ups.append(
                    Block(
                        cfg, width + skips.pop(), out, attention=size in cfg.attention_resolutions
                    )
                )
                width = out
            if level > 0:
                self.ups.append(Upsample(width))
        self.norm_out = GroupNorm(width, cfg.norm_groups, silu=True)
        self.conv_out = LastConv2d(width, cfg.out_channels, 3, padding=1)
        orthogonal(self)

    def embed(self, t: Tensor) -> Tensor:
        """t [B], noise level sqrt(abar) in [0,1] -> what every block receives of it, [B,E]."""
        return self.noise_level_mlp(noise_level_embedding(t, self.inner))

    def prepare(self, cond: Tensor, size: tuple[int, int]) -> tuple[Tensor]:
        """cond [B,Cc,h,w] for a z_t of `size` (h, w) -> what `forward` takes of it."""
        return (of_size(cond, size),)

    def forward(self, z_t: Tensor, emb: Tensor, cond: Tensor) -> Tensor:
        """z_t [B,C,h,w], emb [B,E], cond [B,Cc,h,w] -> [B,Cout,h,w]; any h and w."""
        height, width = z_t.shape[-2:]
        x = pad_to_multiple(torch.cat([cond.to(z_t.dtype), z_t], 1), self.multiple)
        skips = []
        for layer in self.downs:
            x = layer(x, emb) if isinstance(layer, Block) else layer(x)
            skips.append(x)
        for layer in self.mid:
            x = layer(x, emb)
        for layer in self.ups:
            x = layer(torch.cat([x, skips.pop()], 1), emb) if isinstance(layer, Block) else layer(x)
        return self.conv_out(self.norm_out(x))[..., :height, :width].to(z_t.dtype)


class Block(nn.Module):
    """x + conv(dropout(silu(norm(conv(silu(norm(x))) + W emb)))), then attention if this size has
    it.
    """

    def __init__(self, cfg: SR3Config, channels: int, out_channels: int, attention: bool):
        super().__init__()
        self.norm1 = GroupNorm(channels, cfg.norm_groups, silu=True)
        self.conv1 = nn.Conv2d(channels, out_channels, 3, padding=1)
        self.noise = nn.Linear(cfg.model_channels, out_channels)
        self.norm2 = GroupNorm(out_channels, cfg.norm_groups, silu=True)
        self.dropout = Dropout(cfg.dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.res_conv = (
            nn.Conv2d(channels, out_channels, 1) if channels != out_channels else nn.Identity()
        )
        self.attn = Attention(out_channels, cfg.norm_groups) if attention else nn.Identity()

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        shift = self.noise(emb)
        h = self.conv1(self.norm1(x))
        h = h + shift[:, :, None, None].to(h.dtype)
        h = self.conv2(self.dropout(self.norm2(h)))
        return self.attn(h + self.res_conv(x))


class Downsample(nn.Module):
    """Halves the size by a convolution of stride 2 (odd sizes round up)."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


def orthogonal(network: nn.Module) -> None:
    """Orthogonal weights and zero biases, with which the published networks begin their training."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.orthogonal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
