"""Which autoencoders exist: `autoencoder.kind` of a config -> module with `encode()` and
`decode()`.
"""

from __future__ import annotations

from torch import Tensor, nn

from ldm_dream.config.model import AutoencoderConfig, TAESDConfig, VQGANConfig
from ldm_dream.networks.taesd import TAESD
from ldm_dream.networks.vqgan import VQGAN


def build_autoencoder(cfg: AutoencoderConfig) -> nn.Module:
    """Autoencoder with random weights; `checkpoint.load_autoencoder` fills in the pretrained ones."""
    if isinstance(cfg, VQGANConfig):
        return VQGAN(cfg)
    return TAESD(cfg) if isinstance(cfg, TAESDConfig) else Pixel()


class Pixel(nn.Module):
    """Identity: latents are pixels."""

    factor = 1
    channels = 3
    bound = 1.0  # |z| of a picture: samplers clip to it

    def encode(self, x: Tensor) -> Tensor:
        return x

    def decode(self, z: Tensor) -> Tensor:
        return z
