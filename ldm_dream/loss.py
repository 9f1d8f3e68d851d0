"""The training loss: plain diffusion and DREAM (CVPR 2024, arXiv 2312.00210), over any process and
prediction type.

DREAM first asks the network what it would say (no gradient, no dropout), then trains it on a z_t
moved towards that answer, so that training meets the inputs of sampling: Algorithm 3, with Eq. 14
and 15 written for every process z_t = a z0 + b z_lr + s eps:

    eps_hat = to_eps(denoiser(z_t, t, inputs))
    lam     = strength * weight(t) ** p                p = 1 DREAM, p = 0 DRM, strength = 0 plain
    z_t'    = z_t + s lam (eps - eps_hat)                                                    Eq. 15
    target  = eps + lam (eps - eps_hat)                of eps; z0 stays z0; v = a target - s z0  14

The z0 that (z_t', target) imply is still z0: all prediction types train on one and the same
rectified pair. The target is never stored: dream_kernels makes it where the loss needs it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dream_kernels import dream_loss, dream_rectify, q_sample
from ldm_dream.config.process import Dream
from ldm_dream.denoiser import Denoiser, Inputs, sent
from ldm_dream.process import Numbers, wide

# prediction that the kernels do not know -> |error of the output| / |error of its z0| at one z_t
ERRORS: dict[str, Callable[[Numbers], Tensor]] = {
    "residual": lambda at: torch.ones_like(at.a),
    "eps_scale": lambda at: at.a,
    "flow": lambda at: (at.a + at.s) / at.s,
}
POWERS = {"l1": 1, "l2": 2, "huber": 1}  # of such a factor; huber's is 1 (config/fits.py)


class DiffusionLoss(NamedTuple):
    loss: Tensor  # [B], mean over C, h, w
    z0_hat: Tensor  # [B,C,h,w] with gradient: what perceptual terms decode


def diffusion_loss(
    denoiser: Denoiser, z0: Tensor, inputs: Inputs, t: Tensor, eps: Tensor, dream: Dream
) -> DiffusionLoss:
    """One batch. z0, eps: [B,C,h,w]; t: [B] of indices, on the host, which then waits for no
    device. Raises ValueError for an output of another shape.
    """
    process, prediction = denoiser.process, denoiser.prediction
    inputs = denoiser.at(t, inputs)
    at = inputs.numbers
    z_t = q_sample(z0.to(wide(z0.dtype)), inputs.z_lr, eps, at.a, at.b, at.s)
    eps_hat = lam = None
    if estimated := estimate(denoiser, z_t, t, inputs, dream):
        eps_hat, lam = estimated
        z_t = dream_rectify(z_t, eps, eps_hat, at.s, lam)  # Eq. 15
    output = _of_shape(z0, denoiser(z_t, t, inputs))
    z0_hat = process.to_z0(output, z_t, inputs.z_lr, at, prediction)
    if error := ERRORS.get(prediction):  # z_t' and its target imply z0, whatever is said
        loss = dream_loss(z0_hat, z0=z0, prediction="z0", kind=dream.kind)
        return DiffusionLoss(loss * error(at).flatten() ** POWERS[dream.kind], z0_hat)
    loss = dream_loss(  # Eq. 14
        output, eps, eps_hat, lam, z0, at.a, at.s, prediction=prediction, kind=dream.kind
    )
    return DiffusionLoss(loss, z0_hat)


@torch.no_grad()
def estimate(
    denoiser: Denoiser, z_t: Tensor, t: Tensor, inputs: Inputs, dream: Dream
) -> tuple[Tensor, Tensor] | None:
    """DREAM's extra pass -> (eps_hat [B,C,h,w], lam [B,1,1,1]), without gradient.

    None where nothing is to be rectified. Samples whose lam is below `dream.min_lam`, or a * lam
    below `dream.min_shift`, stay as they are: their lam is 0, and their eps_hat counts for nothing.
    """
    if dream.strength == 0:
        return None
    process, prediction, device = denoiser.process, denoiser.prediction, z_t.device
    inputs = denoiser.at(t, inputs) if inputs.at is None else inputs
    lam = dream.strength * process.weight(t) ** dream.p
    # made before the pass: among what the pass leaves free it would break up that memory
    eps_hat, moved = torch.zeros_like(z_t), None
    if dream.min_lam > 0 or dream.min_shift > 0:
        enough = (lam >= dream.min_lam) & (process.a(t) * lam >= dream.min_shift)
        moved, lam = with_extra_pass(lam, enough, device)
        if not len(moved):
            return None
        t, moved = t[moved], sent(moved, device)
        z_t, inputs = z_t.index_select(0, moved), inputs.of(moved)
    with as_in_sampling(denoiser.modules, device.type, dream.estimate_precision):
        output = _of_shape(z_t, denoiser(z_t, t, inputs))
        found = process.to_eps(output, z_t, inputs.z_lr, inputs.numbers, prediction)
        found = found.to(eps_hat.dtype)
    if moved is None:
        eps_hat.copy_(found)
    else:
        eps_hat.index_copy_(0, moved, found)
    return eps_hat, sent(lam, device)


def with_extra_pass(lam: Tensor, enough: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """lam, enough (bool): [B,1,1,1], where t is -> samples of the extra pass, int64 [n], and lam with
    0 where it is not enough.

    Where passes are compiled, which is not on a CPU, n is a number of whole quarters of the batch,
    so that there are four shapes and not one for each count.
    """
    kept, total = torch.where(enough, lam, 0), len(lam)
    chosen = kept.flatten().nonzero().flatten()
    if len(chosen) and device.type != "cpu":
        quarters = -(-4 * len(chosen) // total)
        others = (kept.flatten() == 0).nonzero().flatten()
        chosen = torch.cat([chosen, others[: -(-quarters * total // 4) - len(chosen)]])
    return chosen, kept


@contextmanager
def as_in_sampling(modules: Sequence[nn.Module], device: str, precision: str) -> Iterator[None]:
    """eval mode inside; after it every one of a network's modules has its own flag back, even after
    an exception.

    precision: "bf16" rounds the pass of a run that trains in fp32, "same" leaves it. On a CPU the
    pass is never compiled: that makes inference no faster, only its start slower.
    """
    # autocast already on: one cast of the weights serves both passes; else they are freed at once
    same = torch.is_autocast_enabled(device)
    dtype = torch.get_autocast_dtype(device) if same else torch.bfloat16
    cast = torch.autocast(device, dtype, enabled=same or precision == "bf16", cache_enabled=same)
    eager = torch.compiler.set_stance("force_eager") if device == "cpu" else nullcontext()
    trained = [module for module in modules if module.training]
    try:
        _set_training(trained, False)
        with cast, eager:
            yield
    finally:
        _set_training(trained, True)
        if not _casts_keep_gradients():
            torch.clear_autocast_cache()


def _set_training(modules: Sequence[nn.Module], training: bool) -> None:
    """A module's flag is a plain attribute; nn.Module's own way of setting one takes ten times as
    long.
    """
    for module in modules:
        module.__dict__["training"] = training


def _of_shape(target: Tensor, output: Tensor) -> Tensor:
    """`output`, unless it is of another shape: a single channel would broadcast without a word."""
    got, wanted = tuple(output.shape), tuple(target.shape)
    if got != wanted:
        raise ValueError(
            f"the network returned {got}, the target is {wanted}; set network.out_channels."
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
