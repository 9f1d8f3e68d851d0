"""LDM-SR's denoiser: the U-Net of latent-diffusion's `bsr_sr` (LDM, arXiv 2112.10752; the U-Net of
ADM, arXiv 2105.05233).

Levels of residual blocks, each of them followed by global attention at the sizes the config names;
the middle always attends. The condition, as large as z_t, is concatenated after it. Parameter names
and shapes are the published ones.

Symbols: x features [B,C,H,W]; emb what blocks receive of the timestep; N = H*W tokens; h heads of
d channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ldm_dream.config.networks import LDMConfig
from ldm_dream.networks.base import Network
from ldm_dream.networks.layers import (
    Downsample,
    Dropout,
    EmbeddingMLP,
    LastConv2d,
    Upsample,
    make_norm,
    norm_silu,
    of_size,
    pad_to_multiple,
    timestep_embedding,
    zeroed,
)


class LDMNet(Network):
    """U-Net; at the config's defaults LDM-SR's with 113,622,563 parameters."""

    sees_noise_level = False
    cond_factor = 1

    def __init__(self, cfg: LDMConfig):
        super().__init__()
        self.repeated_blocks = (ResBlock, Attention)
        self.model_channels = cfg.model_channels
        self.multiple = self.align = 2 ** (len(cfg.channel_mult) - 1)
        self.time_embed = EmbeddingMLP(cfg.model_channels, 4 * cfg.model_channels)

        width, skips, last = cfg.model_channels, [cfg.model_channels], len(cfg.channel_mult) - 1
        self.input_blocks = nn.ModuleList(
            [Stage([nn.Conv2d(cfg.in_channels + cfg.cond_channels, width, 3, padding=1)])]
        )
        for level, mult in enumerate(cfg.channel_mult):
            for _ in range(cfg.num_res_blocks):
                self.input_blocks.append(
                    Stage(_blocks(cfg, level, width, cfg.model_channels * mult))
                )
                width = cfg.model_channels * mult
                skips.append(width)
            if level < last:
                self.input_blocks.append(Stage([Downsample(width, width)]))
                skips.append(width)

        self.middle_block = Stage(
            [ResBlock(cfg, width, width), Attention(cfg, width), ResBlock(cfg, width, width)]
        )

        self.output_blocks = nn.ModuleList()
        for level, mult in reversed(list(enumerate(cfg.channel_mult))):
            for i in range(cfg.num_res_blocks + 1):
                stage = Stage(_blocks(cfg, level, width + skips.pop(), cfg.model_channels * mult))
                width = cfg.model_channels * mult
                if i == cfg.num_res_blocks and level > 0:
                    stage.append(Upsample(width))
                self.output_blocks.append(stage)
        self.out = nn.Sequential(
            *norm_silu(cfg.norm, width), zeroed(LastConv2d(width, cfg.out_channels, 3, padding=1))
        )

    def embed(self, t: Tensor) -> Tensor:
        """t [B], step of the original schedule -> what every block receives of it, [B,E]."""
        return self.time_embed(timestep_embedding(t, self.model_channels))

    def prepare(self, cond: Tensor, size: tuple[int, int]) -> tuple[Tensor]:
        """cond [B,Cc,h,w] for a z_t of `size` (h, w) -> what `forward` takes of it."""
        return (of_size(cond, size),)

    def forward(self, z_t: Tensor, emb: Tensor, cond: Tensor) -> Tensor:
        """z_t [B,C,h,w], emb [B,E], cond [B,Cc,h,w] -> [B,Cout,h,w] like z_t.

        Any h and w: they are padded to a multiple of `self.multiple` (reflected; replicated where
        too small) and cropped again.
        """
        height, width = z_t.shape[-2:]
        x = pad_to_multiple(torch.cat([z_t, cond.to(z_t.dtype)], 1), self.multiple)
        skips = []
        for stage in self.input_blocks:
            x = stage(x, emb)
            skips.append(x)
        x = self.middle_block(x, emb)
        for stage in self.output_blocks:
            x = stage(torch.cat([x, skips.pop()], 1), emb)
        return self.out(x)[..., :height, :width].to(z_t.dtype)


class Stage(nn.ModuleList):
    """Layers in a row, of which only the residual blocks see the timestep."""

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        for layer in self:
            x = layer(x, emb) if isinstance(layer, ResBlock) else layer(x)
        return x


class ResBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x))) + shift(t)))); the last convolution starts at zero."""

    def __init__(self, cfg: LDMConfig, channels: int, out_channels: int):
        super().__init__()
        self.in_layers = nn.Sequential(
            *norm_silu(cfg.norm, channels), nn.Conv2d(channels, out_channels, 3, padding=1)
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(4 * cfg.model_channels, out_channels))
        self.out_layers = nn.Sequential(
            *norm_silu(cfg.norm, out_channels),
            Dropout(cfg.dropout),
            zeroed(nn.Conv2d(out_channels, out_channels, 3, padding=1)),
        )
        self.skip_connection = (
            nn.Conv2d(channels, out_channels, 1) if channels != out_channels else nn.Identity()
        )

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        shift = self.emb_layers(emb)
        h = self.in_layers(x)
        h = h + shift[:, :, None, None].to(h.dtype)
        return self.skip_connection(x) + self.out_layers(h)


class Attention(nn.Module):
    """x + proj(softmax(q k' / sqrt(d)) v) over all positions; the projection starts at zero.

    The weights are 1x1 Conv1d, as published, and applied as linear maps of tokens, which
    channels_last features are already.
    """

    def __init__(self, cfg: LDMConfig, channels: int):
        super().__init__()
        self.heads = channels // cfg.num_head_channels
        self.norm = make_norm(cfg.norm, channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)  # rows: head by head its q, its k, its v
        self.proj_out = zeroed(nn.Conv1d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        tokens = rearrange(self.norm(x), "b c h w -> b (h w) c")
        qkv = F.linear(tokens, self.qkv.weight.squeeze(2), self.qkv.bias)
        q, k, v = rearrange(qkv, "b n (h part d) -> part b h n d", h=self.heads, part=3)
        tokens = rearrange(F.scaled_dot_product_attention(q, k, v), "b h n d -> b n (h d)")
        tokens = F.linear(tokens, self.proj_out.weight.squeeze(2), self.proj_out.bias)
        return x + rearrange(tokens, "b (h w) c -> b c h w", h=x.shape[2])


def _blocks(cfg: LDMConfig, level: int, channels: int, out_channels: int) -> list[nn.Module]:
    """A residual block and, at the sizes the config names, attention."""
    blocks: list[nn.Module] = [ResBlock(cfg, channels, out_channels)]
    if cfg.image_size >> level in cfg.attention_resolutions:
        blocks.append(Attention(cfg, out_channels))
    return blocks
