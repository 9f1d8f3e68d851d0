"""Training batches with cached latents: each picture is encoded once in each of its eight symmetries, not once a step.

An encoder is not equivariant to flips, so a flipped patch needs the latent of the flipped picture; all eight are kept, in half
precision, up to a byte budget. What does not fit is encoded again at each visit.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ldm_dream.condition import upsample

from .pairs import Batch, PairDataset, symmetry, to_float

CACHE_BYTES = 6 * 2**30


class LatentDataset:
    """A PairDataset whose batches also bring z0 and z_lr [B,C,P/f,P/f], cut from latents of whole pictures."""

    def __init__(self, pairs: PairDataset, autoencoder: nn.Module):
        self.pairs, self.autoencoder = pairs, autoencoder
        self.factor = autoencoder.factor
        self._cache: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
        self._bytes = 0

    def __len__(self) -> int:
        return len(self.pairs)

    def batch(self, step: int, batch_size: int, rank: int = 0, world: int = 1) -> Batch:
        """As PairDataset.batch, a pure function of its arguments; patches begin at multiples of the autoencoder's factor."""
        first = (step * world + rank) * batch_size
        samples = [self._sample(n) for n in range(first, first + batch_size)]
        hr, lr, z0, z_lr = (torch.stack(parts) for parts in zip(*samples))
        return Batch(to_float(hr), to_float(lr), z0=z0.float(), z_lr=z_lr.float())

    def _sample(self, n: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        draw = self.pairs.draw(n)
        hr, lr = (symmetry(image, draw.symmetry) for image in self.pairs.picture(draw.picture))
        z0, z_lr = self._latents(draw.picture, draw.symmetry, hr, lr)
        scale, patch = self.pairs.scale, self.pairs.cfg.patch
        transposed = bool(draw.symmetry & 4)
        top, left = (draw.left, draw.top) if transposed else (draw.top, draw.left)
        top, left = (corner * scale // self.factor for corner in (top, left))  # in latent pixels

        def cut(x: Tensor, size: int) -> Tensor:
            y0, x0 = top * self.factor * size // patch, left * self.factor * size // patch
            return x[:, y0 : y0 + size, x0 : x0 + size]

        return cut(hr, patch), cut(lr, patch // scale), cut(z0, patch // self.factor), cut(z_lr, patch // self.factor)

    @torch.no_grad()
    def _latents(self, picture: int, which: int, hr: Tensor, lr: Tensor) -> tuple[Tensor, Tensor]:
        if (picture, which) in self._cache:
            return self._cache[picture, which]
        unit = max(self.factor, self.pairs.scale)
        height, width = (side // unit * unit for side in hr.shape[-2:])
        hr, lr = hr[:, :height, :width], lr[:, : height // self.pairs.scale, : width // self.pairs.scale]
        device = next(self.autoencoder.parameters()).device
        both = torch.stack([to_float(hr), upsample(to_float(lr)[None], self.pairs.scale)[0]]).to(device)
        z0, z_lr = self.autoencoder.encode(both).to("cpu", torch.float16)
        if self._bytes + 2 * z0.nbytes <= CACHE_BYTES:
            self._cache[picture, which] = (z0, z_lr)
            self._bytes += 2 * z0.nbytes
        return z0, z_lr
