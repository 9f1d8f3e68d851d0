"""Numbers about a trained autoencoder that its users need."""

from __future__ import annotations

import torch
from torch import Tensor

from ldm_dream.config.run import AutoencoderRun
from ldm_dream.data.pairs import PairDataset
from ldm_dream.networks.autoencoders import build_autoencoder

BATCHES = 16


@torch.no_grad()
def latent_scale(run: AutoencoderRun, state: dict[str, Tensor]) -> float:
    """1 / std of the unscaled latents over 16 training batches, so that a process meets about unit
    variance.
    """
    unscaled = run.autoencoder.model_copy(update={"latent_scale": 1.0})
    autoencoder = build_autoencoder(unscaled).eval()
    autoencoder.load_state_dict(state)
    data = PairDataset(run.data, 1, run.seed)
    latents = [autoencoder.encode(data.batch(i, run.train.batch_size).hr) for i in range(BATCHES)]
    return round(1 / torch.cat(latents).std().item(), 4)
