"""Denoiser: a network as the loss and the samplers call it, at steps of a process.

    inputs = denoiser.prepare(lr, z_lr)      once for a picture
    output = denoiser(z_t, t, inputs)        at every step

Training and upscaling build what the network receives beside z_t alike, since both do it here: the
condition from the LR picture and its latent, z_t as the process scales it, and t as the network
wants it. Networks come in as arguments; this file knows none by name: what it calls of them is in
`networks/base.py`.

Symbols: z_lr = latent of the enlarged LR picture; k = `network.cond_factor`, the size of the
condition over that of z_t.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ldm_dream.data.resize import imresize_to, size_of
from ldm_dream.networks.base import Network
from ldm_dream.process import Process


@dataclass(frozen=True)
class Inputs:
    """What a network receives beside z_t. The same at every step but for `emb`. All are [B, ...]."""

    z_lr: Tensor
    features: tuple[Tensor, ...]  # of the condition, by `network.prepare`; in tiles itself
    emb: Tensor | None = None  # of the step, where `Denoiser.at` has made it for several passes

    def __getitem__(self, samples: slice | Tensor) -> Inputs:
        return self._map(lambda x: x[samples])

    def to(self, *args: Any, **kwargs: Any) -> Inputs:
        """As Tensor.to."""
        return self._map(lambda x: x.to(*args, **kwargs))

    def _map(self, f: Callable[[Tensor], Tensor]) -> Inputs:
        features = tuple(f(x) for x in self.features)
        return Inputs(f(self.z_lr), features, None if self.emb is None else f(self.emb))


class Denoiser:
    """`network` at the steps of `process`.

    condition: parts of what the network sees, "lr" (LR pixels) and "z_lr", in their order.
    prediction: what the network returns, "eps", "z0" or "v".
    call: how its forward pass is reached, where that is not the network itself (several processes,
    CUDA graphs).
    """

    def __init__(
        self,
        network: Network,
        process: Process,
        condition: Sequence[str],
        prediction: str,
        call: Callable[..., Tensor] | None = None,
    ):
        self.network, self.process = network, process
        self.condition, self.prediction = tuple(condition), prediction
        self.call: Callable[..., Tensor] = network if call is None else call

    def prepare(self, lr: Tensor, z_lr: Tensor) -> Inputs:
        """LR [B,3,H,W] in [-1,1] and z_lr [B,C,h,w] -> the inputs for a z_t that is as large."""
        return Inputs(z_lr, self.network.prepare(self.cond(lr, z_lr), size_of(z_lr)))

    def cond(self, lr: Tensor, z_lr: Tensor) -> Tensor:
        """The parts of `condition` side by side, [B,Cc,h*k,w*k]; where k is None (IDM) LR as it is.

        A part of another size is brought to that grid by bicubic: SR3 sees the enlarged LR picture.
        """
        k = self.network.cond_factor
        if k is None:
            return lr
        size = (z_lr.shape[-2] * k, z_lr.shape[-1] * k)
        parts = [{"lr": lr, "z_lr": z_lr}[name] for name in self.condition]
        nothing = z_lr.new_empty(len(z_lr), 0, *size)
        resized = (part if part.shape[-2:] == size else imresize_to(part, *size) for part in parts)
        return torch.cat([nothing, *resized], 1)

    def embed(self, t: Tensor) -> Tensor:
        """Indices t [B] of the process -> what the network's blocks receive of them, [B,E]."""
        return self.network.embed(self.process.model_t(t, self.network.sees_noise_level))

    def at(self, t: Tensor, inputs: Inputs) -> Inputs:
        """`inputs` with the embedding of t, so that passes at the same t share it."""
        return replace(inputs, emb=self.embed(t))

    def __call__(self, z_t: Tensor, t: Tensor, inputs: Inputs) -> Tensor:
        """z_t [B,C,h,w] at indices t [B] -> the network's output [B,Cout,h,w]."""
        emb = self.embed(t) if inputs.emb is None else inputs.emb
        return self.call(self.process.model_input(z_t, t), emb, *inputs.features)
