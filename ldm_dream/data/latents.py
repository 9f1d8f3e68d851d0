"""Training batches with cached latents: a fixed pool of patches, each encoded once, at its first visit.

An encoder is not equivariant to flips nor, near borders, to crops, so what is kept is the latent of the very patch that a sample
shows. The run's first `pool` samples are the pool; every later round visits the same ones in another order.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ldm_dream.condition import upsample

from .pairs import Batch, PairDataset, permutation


class LatentDataset:
    """A PairDataset whose batches also bring z0 and z_lr [B,C,P/f,P/f]. They are held in main memory in half precision."""

    def __init__(self, pairs: PairDataset, autoencoder: nn.Module, pool: int):
        self.pairs, self.autoencoder, self.pool = pairs, autoencoder, pool
        self._cache: dict[int, Tensor] = {}  # [2,C,h,w] by sample number

    def __len__(self) -> int:
        return len(self.pairs)

    def batch(self, number: int, batch_size: int) -> Batch:
        """As PairDataset.batch, a function of its arguments alone: what was visited before only saves time."""
        numbers = [self._number(n) for n in range(number * batch_size, (number + 1) * batch_size)]
        batch = self.pairs.samples(numbers)
        latents = [self._latents(n, batch.hr[i : i + 1], batch.lr[i : i + 1]) for i, n in enumerate(numbers)]
        z0, z_lr = torch.stack(latents).unbind(1)
        return Batch(batch.hr, batch.lr, batch.draws, z0, z_lr)

    def _number(self, n: int) -> int:
        round_, place = divmod(n, self.pool)
        return int(permutation(self.pool, self.pairs.seed, round_)[place])

    @torch.no_grad()
    def _latents(self, n: int, hr: Tensor, lr: Tensor) -> Tensor:
        """Encoded alone, so that no bit depends on which samples of the batch were new."""
        if n not in self._cache:
            device = next(self.autoencoder.parameters()).device
            both = torch.cat([hr, upsample(lr, self.pairs.scale)]).to(device, memory_format=torch.channels_last)
            self._cache[n] = self.autoencoder.encode(both).to("cpu", torch.float16)
        return self._cache[n].float()
