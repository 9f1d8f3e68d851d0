"""Training batches with cached latents: a fixed pool of patches, each degraded and encoded once, at
its first visit.

An encoder is not equivariant to flips nor, near borders, to crops, so what is kept is the latent of
the very patch that a sample shows, and its LR patch. The run's first `pool` samples are the pool;
every later round visits the same ones in another order.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ldm_dream.data.blind import to_levels
from ldm_dream.data.pairs import Batch, PairDataset, permutation, to_float
from ldm_dream.data.resize import size_of, upsample
from ldm_dream.networks.base import Autoencoder


class LatentDataset:
    """A PairDataset whose batches also bring z0 and z_lr [B,C,P/f,P/f]. They are held in main
    memory in half precision.
    """

    def __init__(self, pairs: PairDataset, autoencoder: Autoencoder, pool: int):
        self.pairs, self.autoencoder, self.pool = pairs, autoencoder, pool
        # sample number -> lr uint8 [3,P/scale,P/scale], latents [2,C,h,w]
        self._cache: dict[int, tuple[Tensor, Tensor]] = {}

    def __len__(self) -> int:
        return len(self.pairs)

    def batch(self, number: int, batch_size: int) -> Batch:
        """As PairDataset.batch, a function of its arguments alone: what was visited before only
        saves time.
        """
        numbers = [self._number(n) for n in range(number * batch_size, (number + 1) * batch_size)]
        kept = [self._cache.get(n) or self._make(n) for n in numbers]
        lr = to_float(torch.stack([lr for lr, _ in kept]))
        # bf16 autocast stacks no float16
        z0, z_lr = torch.stack([latents.float() for _, latents in kept]).unbind(1)
        return replace(self.pairs.samples(numbers, lr=lr), z0=z0, z_lr=z_lr)

    def _number(self, n: int) -> int:
        round_, place = divmod(n, self.pool)
        return int(permutation(self.pool, self.pairs.seed, round_)[place])

    @torch.no_grad()
    def _make(self, n: int) -> tuple[Tensor, Tensor]:
        """Made alone, so that no bit depends on which samples of the batch were new."""
        sample = self.pairs.samples([n])
        device = next(self.autoencoder.parameters()).device
        both = torch.cat([sample.hr, upsample(sample.lr, size_of(sample.hr))])
        latents = self.autoencoder.encode(both.to(device, memory_format=torch.channels_last)).to(
            "cpu", torch.float16
        )
        self._cache[n] = to_levels((sample.lr[0] + 1) / 2), latents
        return self._cache[n]
