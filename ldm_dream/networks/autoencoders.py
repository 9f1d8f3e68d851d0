"""Which autoencoders exist: `autoencoder.kind` of a config -> class."""

from __future__ import annotations

from torch import Tensor

from ldm_dream.config.autoencoder import AutoencoderConfig, TAESDConfig, VQGANConfig
from ldm_dream.networks.base import Autoencoder
from ldm_dream.networks.taesd import TAESD
from ldm_dream.networks.vqgan import VQGAN


def build_autoencoder(cfg: AutoencoderConfig) -> Autoencoder:
    """Autoencoder with random weights; `model_folder.load_autoencoder` fills in the pretrained ones."""
    if isinstance(cfg, VQGANConfig):
        return VQGAN(cfg)
    return TAESD(cfg) if isinstance(cfg, TAESDConfig) else Pixel()


class Pixel(Autoencoder):
    """Identity: latents are pixels."""

    factor = 1
    channels = 3
    bound = 1.0

    def encode(self, x: Tensor) -> Tensor:
        return x

    def decode(self, z: Tensor) -> Tensor:
        return z
