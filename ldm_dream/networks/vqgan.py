"""VQGAN (Esser et al., CVPR 2021, arXiv 2012.09841), complete in this file, in the layout of LDM's
vq-f4, key for key.

As in ResShift, encode() returns the latent *before* quantisation and decode() looks it up in the
codebook first. Latent scaling lives only in an autoencoder.

Symbols: x images [B,3,H,W] in [-1,1]; h raw latent; z = latent_scale * h, latents [B,C,H/f,W/f]; e
codebook [K,D].
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from dream_kernels import vq_lookup
from ldm_dream.config.autoencoder import VQGANConfig
from ldm_dream.networks.base import Autoencoder
from ldm_dream.networks.layers import GROUPS, GroupNorm, Upsample


class Quantized(NamedTuple):
    h: Tensor  # [B,D,h,w] nearest codes, gradients pass straight through to the input
    indices: Tensor  # [B * h * w * groups] int64, row-major
    codebook_loss: Tensor  # moves codes towards latents: mean |sg(h) - e|^2
    commitment_loss: Tensor  # moves latents towards codes: mean |h - sg(e)|^2


class VQGAN(Autoencoder):
    """VQGAN; at the config's defaults LDM's vq-f4 with 55,322,782 parameters."""

    bound = None

    def __init__(self, cfg: VQGANConfig):
        super().__init__()
        self.factor, self.channels = cfg.factor, cfg.embed_dim
        self.latent_scale, self.quantizes = cfg.latent_scale, cfg.quantize
        self.encoder = Encoder(cfg)
        self.decoder = Decoder(cfg)
        self.quantize = Codebook(cfg.n_embed, cfg.embed_dim // cfg.codebook_groups)
        self.quant_conv = nn.Conv2d(cfg.z_channels, cfg.embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(cfg.embed_dim, cfg.z_channels, 1)

    def encode(self, x: Tensor) -> Tensor:
        """x [B,3,H,W] in [-1,1], H and W multiples of `factor` -> z [B,C,H/f,W/f], before
        quantisation.
        """
        return self.quant_conv(self.encoder(x)) * self.latent_scale

    def decode(self, z: Tensor, quantize: bool | None = None) -> Tensor:
        """z [B,C,h,w] -> x [B,3,h*f,w*f], about [-1,1], not clamped. `quantize=False` skips the
        codebook (config: `quantize`).
        """
        h = z / self.latent_scale
        if self.quantizes if quantize is None else quantize:
            h = self.quantize(h).h
        return self.decoder(self.post_quant_conv(h))

    def forward(self, x: Tensor, quantize: bool = True) -> tuple[Tensor, Quantized | None, Tensor]:
        """The training pass: x -> (reconstruction, what the codebook made of h, None without
        quantising; h).
        """
        h = self.quant_conv(self.encoder(x))
        quantized = self.quantize(h) if quantize else None
        chosen = h if quantized is None else quantized.h
        return self.decoder(self.post_quant_conv(chosen)), quantized, h


class Codebook(nn.Module):
    """Nearest-code lookup (VQ-VAE, arXiv 1711.00937, Eq. 1-3); channels beyond a code's width form
    further groups of it.
    """

    def __init__(self, codes: int, width: int):
        super().__init__()
        first = torch.empty(codes, width).uniform_(-1.0 / codes, 1.0 / codes)
        # nn.Embedding's own normal numbers, drawn on "meta", would import torch's compiler: 1 s
        self.embedding = nn.Embedding.from_pretrained(first, freeze=False)

    def forward(self, h: Tensor) -> Quantized:
        """h [B,D,h,w], D a multiple of the code's width."""
        codes, rows = self.embedding.weight, self.rows(h)
        # what follows teaches the latent alone, the codebook's loss the codes
        indices, nearest = vq_lookup(rows, codes.detach())
        chosen = F.embedding(indices, codes)
        b, d, height, width = h.shape
        nearest = nearest.reshape(b, height, width, d).permute(0, 3, 1, 2).to(h.dtype)
        return Quantized(
            nearest, indices, F.mse_loss(chosen, rows.detach()), F.mse_loss(rows, chosen.detach())
        )

    def rows(self, h: Tensor) -> Tensor:
        """h [B,D,h,w] -> [B * h * w * D/width, width] float32, row-major."""
        return h.permute(0, 2, 3, 1).reshape(-1, self.embedding.weight.shape[1]).float()


# --------------------------------------------------------------------------------- encoder, decoder


def norm(cfg: VQGANConfig, channels: int, silu: bool) -> nn.Module:
    if cfg.norm == "none":
        return nn.SiLU() if silu else nn.Identity()
    return GroupNorm(channels, GROUPS, silu, eps=1e-6)


class ResBlock(nn.Module):
    def __init__(self, cfg: VQGANConfig, cin: int, cout: int):
        super().__init__()
        self.norm1 = norm(cfg, cin, silu=True)
        self.conv1 = nn.Conv2d(cin, cout, 3, padding=1)
        self.norm2 = norm(cfg, cout, silu=True)
        self.conv2 = nn.Conv2d(cout, cout, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(cin, cout, 1) if cin != cout else nn.Identity()
        # without norms the residual branches start at zero, so that depth does not add up variance
        if cfg.norm == "none":
            nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(self.norm1(x))
        h = self.conv2(self.norm2(h))
        return self.nin_shortcut(x) + h


class Attention(nn.Module):
    """Single-head global attention; scaled_dot_product_attention never holds the tokens x tokens
    matrix.
    """

    def __init__(self, cfg: VQGANConfig, channels: int):
        super().__init__()
        self.norm = norm(cfg, channels, silu=False)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        layers = self.q, self.k, self.v
        q, k, v = (rearrange(layer(h), "b c h w -> b 1 (h w) c") for layer in layers)
        tokens = F.scaled_dot_product_attention(q, k, v)
        return x + self.proj_out(rearrange(tokens, "b 1 (h w) c -> b c h w", h=x.shape[2]))


class Downsample(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))  # one-sided zeros, as published


class Level(nn.Module):
    """The blocks of one resolution, each followed by attention where the config asks for it, then
    the resampling.
    """

    def __init__(
        self,
        cfg: VQGANConfig,
        cin: int,
        cout: int,
        blocks: int,
        attention: bool,
        down: bool = False,
        up: bool = False,
    ):
        super().__init__()
        self.block = nn.ModuleList(
            ResBlock(cfg, cin if i == 0 else cout, cout) for i in range(blocks)
        )
        self.attn = nn.ModuleList(Attention(cfg, cout) for _ in range(blocks if attention else 0))
        self.downsample = Downsample(cout) if down else nn.Identity()
        self.upsample = Upsample(cout) if up else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        for i, block in enumerate(self.block):
            x = block(x)
            if self.attn:
                x = self.attn[i](x)
        return self.upsample(self.downsample(x))


class Middle(nn.Module):
    def __init__(self, cfg: VQGANConfig, channels: int):
        super().__init__()
        self.block_1 = ResBlock(cfg, channels, channels)
        self.attn_1 = Attention(cfg, channels) if cfg.mid_attention else nn.Identity()
        self.block_2 = ResBlock(cfg, channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class Encoder(nn.Module):
    def __init__(self, cfg: VQGANConfig):
        super().__init__()
        self.patch = cfg.patch
        self.conv_in = nn.Conv2d(3 * cfg.patch**2, cfg.ch, 3, padding=1)
        self.down = nn.ModuleList()
        channels = cfg.ch
        for i, (mult, blocks) in enumerate(zip(cfg.ch_mult, cfg.blocks)):
            attends, down = cfg.size(i) in cfg.attn_resolutions, i < len(cfg.ch_mult) - 1
            self.down.append(Level(cfg, channels, cfg.ch * mult, blocks, attends, down=down))
            channels = cfg.ch * mult
        self.mid = Middle(cfg, channels)
        self.norm_out = norm(cfg, channels, silu=True)
        self.conv_out = nn.Conv2d(channels, cfg.z_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(F.pixel_unshuffle(x, self.patch))
        for level in self.down:
            x = level(x)
        return self.conv_out(self.norm_out(self.mid(x)))


class Decoder(nn.Module):
    """Mirror of the encoder with one block more a level; `up` is indexed from the highest
    resolution and runs in reverse.
    """

    def __init__(self, cfg: VQGANConfig):
        super().__init__()
        self.patch = cfg.patch
        channels = cfg.ch * cfg.ch_mult[-1]
        self.conv_in = nn.Conv2d(cfg.z_channels, channels, 3, padding=1)
        self.mid = Middle(cfg, channels)
        levels = []
        for i, (mult, blocks) in reversed(list(enumerate(zip(cfg.ch_mult, cfg.blocks)))):
            attends = cfg.size(i) in cfg.attn_resolutions
            levels.insert(0, Level(cfg, channels, cfg.ch * mult, blocks + 1, attends, up=i > 0))
            channels = cfg.ch * mult
        self.up = nn.ModuleList(levels)
        self.norm_out = norm(cfg, channels, silu=True)
        self.conv_out = nn.Conv2d(channels, 3 * cfg.patch**2, 3, padding=1)

    def forward(self, h: Tensor) -> Tensor:
        h = self.mid(self.conv_in(h))
        for level in reversed(self.up):
            h = level(h)
        return F.pixel_shuffle(self.conv_out(self.norm_out(h)), self.patch)
