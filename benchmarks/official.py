"""The official training step, written anew in plain tensor operations: the rival of our step.

What DREAM's code does on top of SR3's (arXiv 2312.00210, Algorithm 3): contiguous tensors; the
network in eval mode and without gradient, then in training mode; an L1 loss summed and divided by
the number of elements; Adam; no EMA. It is published eager and in fp32; `step_variants.py` also runs
it under bf16 autocast and compiled, as one does today without changing it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm_dream.networks.base import Network
from ldm_dream.networks.layers import Dropout, GroupNorm, LastConv2d
from ldm_dream.process import Process


class PlainGroupNorm(nn.GroupNorm):
    """torch's own group norm, then in plain operations what ours has inside."""

    def forward(
        self, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None
    ) -> Tensor:
        h = super().forward(x)
        if scale is not None and shift is not None:
            h = h * (1 + scale[:, :, None, None]) + shift[:, :, None, None]
        return F.silu(h) if self.silu else h


PLAIN = {GroupNorm: PlainGroupNorm, Dropout: nn.Dropout, LastConv2d: nn.Conv2d}


def plain(network: Network) -> Network:
    """The same network with the same weights, its parts those of torch.nn and contiguous."""
    network = copy.deepcopy(network).to(memory_format=torch.contiguous_format)
    for module in network.modules():
        module.__class__ = PLAIN.get(type(module), type(module))
    return network


class Drawn(NamedTuple):
    """One batch, with the steps and the noise drawn for it. z0, z_lr, eps [B,C,h,w]; t [B]."""

    z0: Tensor
    z_lr: Tensor
    t: Tensor
    eps: Tensor


def official_loss(
    denoise: Callable[[Tensor], Tensor],
    network: nn.Module,
    process: Process,
    batch: Drawn,
    p: float | None,
) -> Tensor:
    """Scalar. denoise(z_t): what `network` returns at the batch's steps, a prediction of eps as
    published. p: DREAM's power, None = without DREAM.
    """
    z0, z_lr, t, eps = batch
    a, b, s = process.a(t), process.b(t), process.s(t)
    z_t = a * z0 + b * z_lr + s * eps
    target = eps
    if p is not None:
        network.eval()
        with torch.no_grad():
            eps_hat = denoise(z_t)
        network.train()
        z_t, target = rectified(z_t, eps, eps_hat, s, process.weight(t) ** p)
    return mean_l1(denoise(z_t), target)


def rectified(
    z_t: Tensor, eps: Tensor, eps_hat: Tensor, s: Tensor, lam: Tensor
) -> tuple[Tensor, Tensor]:
    """-> z_t and target. Tensors [B,C,h,w], factors [B,1,1,1]."""
    delta = (eps - eps_hat) * lam
    return z_t + s * delta, eps + delta


def mean_l1(output: Tensor, target: Tensor) -> Tensor:
    return F.l1_loss(output, target, reduction="sum") / target.numel()
