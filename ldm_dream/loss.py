"""The training loss: plain diffusion and DREAM (CVPR 2024, arXiv 2312.00210), over any process and
prediction type.

DREAM first asks the network what it would say (no gradient, no dropout), then trains it on a z_t
moved towards that answer, so that training meets the inputs of sampling. Algorithm 3, with Eq.
14-15 written for every process z_t = a z0 + b z_lr + s eps:
    eps_hat = to_eps(denoise(z_t, t, cond))
    lam     = strength * weight(t) ** p                       p = 1 DREAM, p = 0 DRM, strength = 0 plain diffusion
    z_t'    = z_t + s lam (eps - eps_hat)
    target  = eps + lam (eps - eps_hat)                       of eps; z0 stays z0; v = a target - s z0
The z0 that (z_t', target) imply is still z0: the three prediction types train on one and the same
rectified pair. The target is never stored: dream_kernels makes it where the loss needs it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dream_kernels import dream_loss, dream_rectify, q_sample
from ldm_dream.process import Denoise, Process, check_prediction


class DiffusionLoss(NamedTuple):
    loss: Tensor  # [B], mean over C, h, w
    z0_hat: Tensor  # [B,C,h,w] with gradient: what perceptual terms decode


def diffusion_loss(
    denoise: Denoise,
    process: Process,
    z0: Tensor,
    z_lr: Tensor,
    cond: Tensor,
    t: Tensor,
    eps: Tensor,
    *,
    prediction: str,
    kind: str = "l1",
    strength: float = 0.0,
    p: float = 1.0,
    network: nn.Module | None = None,
    estimator: Denoise | None = None,
    fraction: float = 1.0,
    min_lam: float = 0.0,
) -> DiffusionLoss:
    """One batch. z0, z_lr, eps: [B,C,h,w]; t: int64 [B] of indices; prediction: "eps", "z0" or "v";
    kind: "l1", "l2" or "huber" (square up to 1, straight beyond).

    strength, p, network: see `dream`. estimator: makes the estimate in place of denoise, such as
    the same network in bfloat16. fraction in (0,1]: share of the batch that is rectified, rounded
    up: the samples with the largest lam, which DREAM moves most. min_lam in [0,1]: samples of a
    lower lam are not rectified; where none is left, the extra pass is spared.

    Raises ValueError for an unknown kind or prediction, or an output of another shape.
    """
    check_prediction(prediction)
    wide = torch.promote_types(z0.dtype, torch.float32)
    a, b, s = (factor(t, wide) for factor in (process.a, process.b, process.s))
    z_t = q_sample(z0.to(wide), z_lr, eps, a, b, s)
    eps_hat, lam = estimate(
        estimator or denoise, process, z_t, z_lr, cond, t,
        prediction=prediction, strength=strength, p=p, network=network, fraction=fraction, min_lam=min_lam,
    )  # fmt: skip
    if eps_hat is not None:
        z_t = dream_rectify(z_t, eps, eps_hat, s, lam)
    output = _of_shape(z0, denoise(z_t, t, cond))
    loss = dream_loss(output, eps, eps_hat, lam, z0, a, s, prediction=prediction, kind=kind)
    return DiffusionLoss(loss, process.to_z0(output, z_t, z_lr, t, prediction))


def dream(
    denoise: Denoise,
    process: Process,
    z_t: Tensor,
    z_lr: Tensor,
    cond: Tensor,
    t: Tensor,
    eps: Tensor,
    *,
    prediction: str,
    strength: float,
    p: float,
    network: nn.Module | None = None,
) -> tuple[Tensor, Tensor]:
    """-> (z_t', eps target), Eq. 14-15. strength in [0,1]: 0 returns the inputs and calls nothing.
    p >= 0.

    network: the module behind `denoise`, put into eval mode for the extra pass; None if it has no
    mode to switch.
    """
    eps_hat, lam = estimate(
        denoise,
        process,
        z_t,
        z_lr,
        cond,
        t,
        prediction=prediction,
        strength=strength,
        p=p,
        network=network,
    )
    if eps_hat is None:
        return z_t, eps
    z_t = dream_rectify(z_t, eps, eps_hat, process.s(t), lam)
    return z_t, (eps + lam * (eps - eps_hat)).to(eps.dtype)


def estimate(
    denoise: Denoise,
    process: Process,
    z_t: Tensor,
    z_lr: Tensor,
    cond: Tensor,
    t: Tensor,
    *,
    prediction: str,
    strength: float,
    p: float,
    network: nn.Module | None,
    fraction: float = 1.0,
    min_lam: float = 0.0,
) -> tuple[Tensor, Tensor] | tuple[None, None]:
    """The extra pass -> (eps_hat [B,C,h,w], lam [B,1,1,1]) without gradient; (None, None) where
    nothing is to be rectified.

    Options: see `dream`; fraction, min_lam: see `diffusion_loss`. Of samples left out lam is 0, and
    eps_hat counts for nothing.
    """
    if not 0 <= strength <= 1:
        raise ValueError(
            f"strength={strength} is not possible; choose 0 (plain diffusion) to 1 (DREAM)."
        )
    if not 0 <= p < math.inf:
        raise ValueError(
            f"p={p} is not possible; choose a finite number from 0 up, and strength=0 for plain diffusion."
        )
    if not 0 < fraction <= 1:
        raise ValueError(
            f"fraction={fraction} is not possible; choose above 0, at most 1; strength=0 is plain diffusion."
        )
    if not 0 <= min_lam <= 1:
        raise ValueError(
            f"min_lam={min_lam} is not possible; choose 0 (all samples) to 1 (those of lam = 1)."
        )
    if strength == 0:
        return None, None
    lam = strength * process.weight(t) ** p
    eps_hat = torch.zeros_like(
        z_t
    )  # made before the pass: among what the pass leaves free it would break up that memory
    moved = slice(None)
    if fraction < 1 or min_lam > 0:
        moved = lam.flatten().argsort(descending=True, stable=True)[: math.ceil(fraction * len(t))]
        moved = moved[lam.flatten()[moved] >= min_lam]
        if len(moved) == 0:
            return None, None
        z_t, z_lr, cond, t = (x[moved] for x in (z_t, z_lr, cond, t))
        lam = torch.zeros_like(lam).index_copy(0, moved, lam[moved])
    with torch.no_grad(), evaluating(network):
        output = _of_shape(z_t, denoise(z_t, t, cond))
        eps_hat[moved] = process.to_eps(output, z_t, z_lr, t, prediction).to(eps_hat.dtype)
    if not _casts_keep_gradients():
        torch.clear_autocast_cache()
    return eps_hat, lam


def _of_shape(target: Tensor, output: Tensor) -> Tensor:
    """`output`, unless it is of another shape: a single channel would broadcast without a word."""
    got, wanted = tuple(output.shape), tuple(target.shape)
    if got != wanted:
        raise ValueError(
            f"denoise returned {got}, the target is {wanted}; set network.out_channels."
        )
    return output


@functools.cache
def _casts_keep_gradients() -> bool:
    """Whether weights that autocast has cast without gradient, and cached, get one from a later
    pass: not so in torch 2.9.
    """
    weight, x = torch.zeros(1, 1, requires_grad=True), torch.zeros(1, 1)
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=True):
        with torch.no_grad():
            F.linear(x, weight)
        with torch.enable_grad():
            return F.linear(x, weight).requires_grad


@contextmanager
def evaluating(network: nn.Module | None) -> Iterator[None]:
    """eval mode inside; after it every module has its own flag back, whatever the mix was and even
    after an exception.
    """
    modules = [] if network is None else list(network.modules())
    flags = [module.training for module in modules]
    if network is not None:
        network.eval()
    try:
        yield
    finally:
        for module, training in zip(modules, flags):
            module.training = training
