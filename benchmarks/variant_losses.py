"""Variants of DREAM: each says which z_t the network is trained at instead of the true one, in place
of `loss.estimate` and its blend, or how much a sample counts. All train on the pair (z_t', z0): the
noise that these two imply is what an eps or v prediction learns, as in DREAM's Eq. 14.

    python -m benchmarks.variant_losses NAME CONFIG [options of train]

trains a config with one of `VARIANTS` as its loss.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from dream_kernels import dream_loss, q_sample
from ldm_dream.commands import train
from ldm_dream.config.process import Dream
from ldm_dream.denoiser import Denoiser, Inputs
from ldm_dream.loss import DiffusionLoss, as_in_sampling, estimate
from ldm_dream.process import Numbers
from ldm_dream.training import diffusion


@dataclass(frozen=True)
class Batch:
    """What a variant knows. z_t: the true one, at t [B]; eps its noise; random: [B,..] of any
    shape, drawn anew at each call from numbers that this batch decides.
    """

    denoiser: Denoiser
    z0: Tensor
    inputs: Inputs
    t: Tensor
    eps: Tensor
    z_t: Tensor
    generator: torch.Generator
    dream: Dream

    @property
    def at(self) -> Numbers:
        return self.inputs.numbers

    def noise(self) -> Tensor:
        return torch.randn(self.z0.shape, generator=self.generator)

    def chance(self) -> Tensor:
        return torch.rand(len(self.z0), 1, 1, 1, generator=self.generator)

    def truth(self, t: Tensor) -> Tensor:
        """The true z at other steps, of fresh noise."""
        at = self.denoiser.numbers(t, self.z0)
        return q_sample(self.z0, self.inputs.z_lr, self.noise(), at.a, at.b, at.s)

    @torch.no_grad()
    def estimated(self, z: Tensor, t: Tensor) -> Tensor:
        """z0_hat at z, as sampling has it."""
        denoiser, inputs = self.denoiser, self.denoiser.at(t, self.inputs)
        with as_in_sampling(denoiser.modules, z.device.type, self.dream.estimate_precision):
            output = denoiser(z, t, inputs)
        z_lr, at = inputs.z_lr, inputs.numbers
        return denoiser.process.to_z0(output, z, z_lr, at, denoiser.prediction).to(z.dtype)

    def stepped(self, z: Tensor, t: Tensor, u: Tensor) -> Tensor:
        """One ancestral step of the sampler, from z at t to the less noisy u."""
        mean, variance = self.denoiser.process.posterior(self.estimated(z, t), z, t, u)
        return mean + variance.sqrt() * self.noise()


Rectify = Callable[[Batch], Tensor]  # -> z_t'


def plain(batch: Batch) -> Tensor:
    return batch.z_t


def blend(batch: Batch, lam: Callable[[Batch, Tensor], Tensor] = lambda batch, lam: lam) -> Tensor:
    """DREAM (Eq. 15). lam: of DREAM's own another one."""
    own = batch.dream.model_copy(update={"strength": 1.0})
    found = estimate(batch.denoiser, batch.z_t, batch.t, batch.inputs, own)
    if found is None:
        return batch.z_t
    eps_hat, of_dream = found
    return batch.z_t + batch.at.s * lam(batch, of_dream) * (batch.eps - eps_hat)


def coin(batch: Batch, lam: Tensor) -> Tensor:
    """All or nothing, with lam as the chance."""
    return (batch.chance() < lam).to(lam.dtype)


def share(batch: Batch, lam: Tensor) -> Tensor:
    """The noise's share of z_t, the same function of a / s for every process; DDPM's is DREAM's own."""
    a, s = batch.at.a, batch.at.s
    return s / (a * a + s * s).sqrt()


def everywhere(batch: Batch, lam: Tensor) -> Tensor:
    """DREAM's p = 0."""
    return torch.ones_like(lam)


def one_step(batch: Batch) -> Tensor:
    """Where one step of the sampler leads from the true z of the step before (the paper's footnote 1)."""
    before = (batch.t + 1).clamp(max=batch.denoiser.process.num_timesteps - 1)
    led = batch.stepped(batch.truth(before), before, batch.t)
    return torch.where((before > batch.t).view(-1, 1, 1, 1), led, batch.z_t)


def rollout(batch: Batch) -> Tensor:
    """Where the sampler leads from its start, through every step of the process."""
    process = batch.denoiser.process
    z = process.prior(batch.inputs.z_lr, batch.noise())
    found = batch.z_t
    for last in range(process.num_timesteps - 1, 0, -1):
        t, u = torch.full_like(batch.t, last), torch.full_like(batch.t, last - 1)
        z = batch.stepped(z, t, u)
        found = torch.where((batch.t == last - 1).view(-1, 1, 1, 1), z, found)
    return found


def perturbed(batch: Batch) -> Tensor:
    """A tenth more noise, which nobody estimated (arXiv 2301.11706): a control."""
    return batch.z_t + 0.1 * batch.at.s * batch.noise()


def min_snr(batch: Batch) -> Tensor:
    """[B]: how much a sample counts, min(a^2 / s^2, 5) of z0's error (arXiv 2303.09556), with mean 1
    over the steps.
    """

    def weight(at: Numbers) -> Tensor:
        return (at.a / at.s).square().clamp(max=5.0).flatten()

    process = batch.denoiser.process
    every = batch.denoiser.numbers(torch.arange(process.num_timesteps), batch.z0)
    return weight(batch.at) / weight(every).mean()


def equally(batch: Batch) -> Tensor:
    return torch.ones(len(batch.z0))


def low_frequencies(z0_hat: Tensor, z0: Tensor) -> Tensor:
    """[B]: L1 of what is wider than four places, which drifts in sampling (after ReflexFlow, arXiv
    2512.04904).
    """
    return F.avg_pool2d(z0_hat - z0, 4).abs().flatten(1).mean(1)


def nothing(z0_hat: Tensor, z0: Tensor) -> Tensor:
    return torch.zeros(len(z0))


@dataclass(frozen=True)
class Variant:
    rectify: Rectify = plain
    weigh: Callable[[Batch], Tensor] = equally
    also: Callable[[Tensor, Tensor], Tensor] = nothing  # a term more


VARIANTS = {
    "plain": Variant(),
    "DREAM": Variant(blend),
    "DREAM, p = 0": Variant(partial(blend, lam=everywhere)),
    "coin": Variant(partial(blend, lam=coin)),
    "share": Variant(partial(blend, lam=share)),
    "one step": Variant(one_step),
    "rollout": Variant(rollout),
    "perturbed": Variant(perturbed),
    "min-SNR": Variant(weigh=min_snr),
    "DREAM, min-SNR": Variant(blend, weigh=min_snr),
    "low frequencies": Variant(blend, also=low_frequencies),
}


def variant_loss(
    variant: Variant,
    denoiser: Denoiser,
    z0: Tensor,
    inputs: Inputs,
    t: Tensor,
    eps: Tensor,
    dream: Dream,
) -> DiffusionLoss:
    """As `loss.diffusion_loss`, on a CPU."""
    inputs = denoiser.at(t, inputs)
    at = inputs.numbers
    z_t = q_sample(z0, inputs.z_lr, eps, at.a, at.b, at.s)
    # more random numbers than the loss is given: of a seed that these decide
    generator = torch.Generator().manual_seed(int(eps.view(torch.int32).sum()) & 0x7FFFFFFF)
    batch = Batch(denoiser, z0, inputs, t, eps, z_t, generator, dream)
    z_t = variant.rectify(batch)
    output = denoiser(z_t, t, inputs)
    z0_hat = denoiser.process.to_z0(output, z_t, inputs.z_lr, at, denoiser.prediction)
    implied = (z_t - at.a * z0 - at.b * inputs.z_lr) / at.s
    loss = dream_loss(
        output, implied, None, None, z0, at.a, at.s, prediction=denoiser.prediction, kind=dream.kind
    )
    return DiffusionLoss(loss * variant.weigh(batch) + variant.also(z0_hat, z0), z0_hat)


def main(words: list[str]) -> None:
    name, *others = words
    diffusion.diffusion_loss = partial(variant_loss, VARIANTS[name])
    train.main(others)


if __name__ == "__main__":
    main(sys.argv[1:])
