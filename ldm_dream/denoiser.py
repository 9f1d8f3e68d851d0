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

import torch
from torch import Tensor

from ldm_dream.data.resize import imresize_to, size_of
from ldm_dream.networks.base import Network
from ldm_dream.process import Numbers, Process, wide


@dataclass(frozen=True)
class Inputs:
    """What a network receives beside z_t; all are [B, ...]. The same at every step but for `at` and
    `emb`, which `Denoiser.at` makes for several passes at one step.
    """

    z_lr: Tensor
    features: tuple[Tensor, ...]  # of the condition, by `network.prepare`; in tiles itself
    at: Numbers | None = None
    emb: Tensor | None = None

    @property
    def numbers(self) -> Numbers:
        """`at`, of inputs that `Denoiser.at` has made."""
        assert self.at is not None
        return self.at

    def of(self, samples: Tensor) -> Inputs:
        """Of some samples, int64 [n] on their device."""
        features = tuple(x.index_select(0, samples) for x in self.features)
        at = None if self.at is None else self.at.of(samples)
        emb = None if self.emb is None else self.emb.index_select(0, samples)
        return Inputs(self.z_lr.index_select(0, samples), features, at, emb)


class Denoiser:
    """`network` at the steps of `process`.

    condition: parts of what the network sees, "lr" (LR pixels) and "z_lr", in their order.
    prediction: what the network returns, a key of `process.PREDICTIONS`.
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
        # a walk through a network takes longer than what a step does with them
        self.modules = tuple(network.modules())

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

    def embed(self, at: Numbers) -> Tensor:
        """-> what the network's blocks receive of the step, [B,E]."""
        return self.network.embed(at.told)

    def numbers(self, t: Tensor, z: Tensor) -> Numbers:
        """Of indices t [B], which are on z's device or on the host, for z."""
        at = self.process.at(t, wide(z.dtype), self.network.sees_noise_level)
        return Numbers(sent(at.rows, z.device))

    def at(self, t: Tensor, inputs: Inputs) -> Inputs:
        """`inputs` with what t makes of them, so that passes at the same t share it."""
        at = self.numbers(t, inputs.z_lr)
        return replace(inputs, at=at, emb=self.embed(at))

    def __call__(self, z_t: Tensor, t: Tensor, inputs: Inputs) -> Tensor:
        """z_t [B,C,h,w] at indices t [B] -> the network's output [B,Cout,h,w]. inputs: of `at`, or
        of any step.
        """
        at, emb = inputs.at, inputs.emb
        at = self.numbers(t, z_t) if at is None else at
        emb = self.embed(at) if emb is None else emb
        return self.call(self.process.model_input(z_t, at), emb, *inputs.features)


def sent(x: Tensor, device: torch.device) -> Tensor:
    """x on `device`. From the host by way of pinned memory, so that the host goes on at once."""
    if x.device == device:
        return x
    if device.type == "cuda" and x.device.type == "cpu":
        x = x.pin_memory()
    return x.to(device, non_blocking=True)
