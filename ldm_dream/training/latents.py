"""Training batches with cached latents: a fixed pool of patches, each degraded and encoded once, at
its first visit.

An encoder is not equivariant to flips nor, near borders, to crops, so what is kept is the latent of
the very patch that a sample shows, and its LR patch. The run's first `pool` samples are the pool;
every later round visits the same ones in another order, and reads no picture unless the loss asks
for HR.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ldm_dream.data.pairs import Batch, PairDataset, Request, Samples, permutation, to_float
from ldm_dream.data.resize import size_of, upsample
from ldm_dream.networks.base import Autoencoder


class PoolRequest(NamedTuple):
    """Samples of a batch, and what is to be loaded: those that are new, or all, for their HR."""

    numbers: tuple[int, ...]
    load: Request


class PoolSamples(NamedTuple):
    numbers: tuple[int, ...]
    new: tuple[int, ...]  # numbers of `loaded`, in its order
    loaded: Samples | None  # None: all were visited before


class LatentDataset:
    """A PairDataset whose batches also bring z0 and z_lr [B,C,P/f,P/f]. They are held in main
    memory in half precision. with_hr: batches bring hr too.
    """

    def __init__(self, pairs: PairDataset, autoencoder: Autoencoder, pool: int, with_hr: bool):
        self.pairs, self.autoencoder, self.pool, self.with_hr = pairs, autoencoder, pool, with_hr
        self._asked: set[int] = set()
        # sample number -> lr uint8 [3,P/scale,P/scale], latents [2,C,h,w]
        self._cache: dict[int, tuple[Tensor, Tensor]] = {}

    def __getstate__(self) -> dict:
        """A worker reads pictures and nothing else."""
        return {"pairs": self.pairs, "pool": self.pool, "with_hr": self.with_hr}

    def __len__(self) -> int:
        return len(self.pairs)

    def batch(self, number: int, batch_size: int) -> Batch:
        """As PairDataset.batch, a function of its arguments alone: what was visited before only
        saves time.
        """
        return self.finish(self.load(self.request(number, batch_size)))

    def request(self, number: int, batch_size: int) -> PoolRequest:
        numbers = tuple(
            self._number(n) for n in range(number * batch_size, (number + 1) * batch_size)
        )
        new = dict.fromkeys(n for n in numbers if n not in self._asked)
        self._asked.update(new)
        wanted = numbers if self.with_hr else tuple(new)
        return PoolRequest(numbers, Request(wanted, self.pairs.cfg.patch, bool(new)))

    def load(self, request: PoolRequest) -> PoolSamples:
        numbers, wanted = request
        samples = self.pairs.load(wanted) if wanted.numbers else None
        return PoolSamples(numbers, wanted.numbers, samples)

    def finish(
        self, samples: PoolSamples, place: Callable[[Tensor], Tensor] = lambda x: x
    ) -> Batch:
        new, loaded = samples.new, samples.loaded
        hr, draws = None, ()
        if loaded is not None:
            self.pairs.note_bad(loaded)
            made = [i for i, n in enumerate(new) if n not in self._cache]
            lr = loaded.lr
            if made and lr is None:
                lr = self.pairs.lr_of(loaded, place).cpu()
            for i in made:
                assert lr is not None
                self._cache[new[i]] = self._encoded(loaded.hr[i], lr[i].clone())
            if self.with_hr:
                hr, draws = to_float(place(loaded.hr)), loaded.draws
        kept = [self._cache[n] for n in samples.numbers]
        small = to_float(place(torch.stack([lr for lr, _ in kept])))
        # bf16 autocast stacks no float16
        z0, z_lr = torch.stack([both.float() for _, both in kept]).unbind(1)
        return Batch(hr, small, draws, z0=place(z0), z_lr=place(z_lr))

    def _number(self, n: int) -> int:
        round_, place = divmod(n, self.pool)
        return int(permutation(self.pool, self.pairs.seed, round_)[place])

    @torch.no_grad()
    def _encoded(self, hr: Tensor, lr: Tensor) -> tuple[Tensor, Tensor]:
        """Each sample alone, so that no bit depends on which samples of the batch were new."""
        device = next(self.autoencoder.parameters()).device
        both = torch.cat([to_float(hr[None]), upsample(to_float(lr[None]), size_of(hr))])
        latents = self.autoencoder.encode(both.to(device, memory_format=torch.channels_last))
        return lr, latents.to("cpu", torch.float16)
