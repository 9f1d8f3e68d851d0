"""TAESD, the tiny autoencoders of that name, complete in this file. Imported, never trained.

Symbols: x images [B,3,H,W] in [-1,1]; z latents [B,C,H/8,W/8].
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ldm_dream.config.autoencoder import TAESDConfig
from ldm_dream.networks.base import Autoencoder


class TAESD(Autoencoder):
    """Tiny autoencoder of the TAESD family (github.com/madebyollin/taesd @2a1b414; MIT), key for
    key. No codebook; 8x down.

    64 channels throughout; the published nets work on [0, 1], these borders on [-1, 1]. Local but
    for TAEF2's group norms.
    """

    factor = 8
    bound = None

    def __init__(self, cfg: TAESDConfig):
        super().__init__()
        self.channels, self.latent_scale = cfg.latent_channels, cfg.latent_scale
        width, inner = 64, PooledTAESDBlock if cfg.group_norm_branch else TAESDBlock

        def blocks(kind: type[TAESDBlock] = TAESDBlock) -> list[TAESDBlock]:
            return [kind(width) for _ in range(3)]

        def down() -> nn.Module:
            return nn.Conv2d(width, width, 3, stride=2, padding=1, bias=False)

        def up() -> list[nn.Module]:
            return [nn.Upsample(scale_factor=2), nn.Conv2d(width, width, 3, padding=1, bias=False)]

        self.encoder = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1), TAESDBlock(width), down(), *blocks(), down(), *blocks(), down(), *blocks(inner),
            nn.Conv2d(width, cfg.latent_channels, 3, padding=1),
        )  # fmt: skip
        self.decoder = nn.Sequential(
            SoftClamp(), nn.Conv2d(cfg.latent_channels, width, 3, padding=1), nn.ReLU(), *blocks(inner), *up(), *blocks(), *up(),
            *blocks(), *up(), TAESDBlock(width), nn.Conv2d(width, 3, 3, padding=1),
        )  # fmt: skip

    def encode(self, x: Tensor) -> Tensor:
        """x [B,3,H,W] in [-1,1], H and W multiples of 8 -> z [B,C,H/8,W/8]."""
        return self.encoder((x + 1) / 2) * self.latent_scale

    def decode(self, z: Tensor) -> Tensor:
        """z [B,C,h,w] -> x [B,3,8h,8w], about [-1,1], not clamped."""
        return self.decoder(z / self.latent_scale) * 2 - 1


class TAESDBlock(nn.Module):
    """relu(x + three convolutions of x); attribute names are the published ones."""

    def __init__(self, width: int):
        super().__init__()
        convs = [nn.Conv2d(width, width, 3, padding=1) for _ in range(3)]
        self.conv = nn.Sequential(convs[0], nn.ReLU(), convs[1], nn.ReLU(), convs[2])

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.conv(x))


class PooledTAESDBlock(TAESDBlock):
    """The same of x + pool(x)."""

    def __init__(self, width: int):
        super().__init__(width)
        wide = 4 * width
        self.pool = nn.Sequential(
            nn.Conv2d(width, wide, 1, bias=False),
            nn.GroupNorm(4, wide),
            nn.ReLU(),
            nn.Conv2d(wide, width, 1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + self.pool(x))


class SoftClamp(nn.Module):
    """3 tanh(x / 3): latents stay within about [-3, 3]."""

    def forward(self, x: Tensor) -> Tensor:
        return 3 * (x / 3).tanh()
