"""Variants of DREAM's loss, for configs in latents whose process has whole steps. Each says which z_t
the network is trained at instead of the true one, how much a sample counts, or what is added.

All train on the pair (z_t', z0): the noise that these two imply is what an eps or v prediction learns,
as in DREAM's Eq. 14. A step of the sampler is an ancestral one, from a step of the process to the next.

    python -m benchmarks.variant_losses NAME CONFIG [options of train]

trains a config with one of `LOSSES`.
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
from ldm_dream.denoiser import Denoiser, Inputs, sent
from ldm_dream.loss import DiffusionLoss, as_in_sampling
from ldm_dream.process import Numbers
from ldm_dream.training import diffusion

GAMMA = 5.0  # of min-SNR
MORE = 0.1  # noise that `perturbed` adds


@dataclass(frozen=True)
class Batch:
    """What a variant knows: z_t, the true one at t [B]; eps, its noise. generator: for more random
    numbers, on the host.
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

    @property
    def last(self) -> int:
        """The noisiest step."""
        return self.denoiser.process.num_timesteps - 1

    def noise(self) -> Tensor:
        return sent(torch.randn(self.z0.shape, generator=self.generator), self.z0.device)

    @torch.no_grad()
    def estimate(self, z: Tensor, t: Tensor, samples: Tensor) -> tuple[Tensor, Tensor]:
        """(z0_hat, eps_hat) of these samples (int64 [n]) as sampling has them: z at t, [n,..]."""
        denoiser, process = self.denoiser, self.denoiser.process
        inputs = denoiser.at(t, self.inputs.of(samples))
        with as_in_sampling(denoiser.modules, z.device.type, self.dream.estimate_precision):
            output = denoiser(z, t, inputs)
        about = z, inputs.z_lr, inputs.numbers, denoiser.prediction
        return process.to_z0(output, *about), process.to_eps(output, *about)

    def stepped(self, z: Tensor, t: int, samples: Tensor) -> Tensor:
        """Where the sampler leads these samples, from z at t to t - 1."""
        here, there = (torch.full((len(samples),), n, device=z.device) for n in (t, t - 1))
        z0_hat, _ = self.estimate(z, here, samples)
        mean, variance = self.denoiser.process.posterior(z0_hat, z, here, there)
        return mean + variance.sqrt() * self.noise()[samples]


# --------------------------------------------------------------------------------- which z_t: -> z_t'


def plain(batch: Batch) -> Tensor:
    return batch.z_t


def dream(batch: Batch) -> Tensor:
    """Eq. 15 with p = 1."""
    return _moved(batch, batch.at.weight)


def everywhere(batch: Batch) -> Tensor:
    """DREAM with p = 0: the whole way at every step."""
    return _moved(batch, torch.ones_like(batch.at.weight))


def coin(batch: Batch) -> Tensor:
    """The whole way or none; DREAM's strength is the chance."""
    chance = torch.rand(len(batch.z0), generator=batch.generator)
    return _moved(batch, (chance < batch.at.weight.flatten().cpu()).float().view(-1, 1, 1, 1))


def share(batch: Batch) -> Tensor:
    """The strength is the noise's share of a z0 + s eps, s / sqrt(a^2 + s^2): the same function of
    a / s for every process. For DDPM that is DREAM's own.
    """
    a, s = batch.at.a, batch.at.s
    return _moved(batch, s / (a * a + s * s).sqrt())


def _moved(batch: Batch, lam: Tensor) -> Tensor:
    """Eq. 15. lam: [B,1,1,1]; no estimate is made where it is 0."""
    samples = lam.flatten().nonzero().flatten().to(batch.t.device)
    if not len(samples):
        return batch.z_t
    _, eps_hat = batch.estimate(batch.z_t[samples], batch.t[samples], samples)
    error = torch.zeros_like(batch.eps)
    error[samples] = batch.eps[samples] - eps_hat.to(error.dtype)
    return batch.z_t + batch.at.s * sent(lam, error.device) * error


def one_step(batch: Batch) -> Tensor:
    """Where one step of the sampler leads from the true z of the step before; true at the first."""
    z_t = batch.z_t.clone()
    for t in range(1, batch.last + 1):
        samples = (batch.t == t - 1).nonzero().flatten()
        if len(samples):
            at = batch.denoiser.numbers(torch.full_like(samples, t), z_t)
            z0, z_lr, noise = (x[samples] for x in (batch.z0, batch.inputs.z_lr, batch.noise()))
            z_t[samples] = batch.stepped(q_sample(z0, z_lr, noise, at.a, at.b, at.s), t, samples)
    return z_t


def rollout(batch: Batch) -> Tensor:
    """Where the sampler has come from its start."""
    z = batch.denoiser.process.prior(batch.inputs.z_lr, batch.eps)
    for t in range(batch.last, 0, -1):
        samples = (batch.t < t).nonzero().flatten()
        if len(samples):
            z = z.clone()
            z[samples] = batch.stepped(z[samples], t, samples)
    return z


def perturbed(batch: Batch) -> Tensor:
    """A tenth more noise, which nobody estimated and eps does not hold (arXiv 2301.11706): a control."""
    return batch.z_t + MORE * batch.at.s * batch.noise()


# ------------------------------------------------------------------------ how much a sample counts: [B]


def min_snr(batch: Batch) -> Tensor:
    """min(SNR, 5) on the squared error of z0, SNR = a^2 / s^2 (arXiv 2303.09556): here its root on the
    error, with mean 1 over the steps. What z_lr tells is not counted, so a residual shift hardly
    trains its first step.
    """

    def weight(at: Numbers) -> Tensor:
        snr = (at.a / at.s).square()
        of_output = {"z0": 1, "eps": snr, "v": snr + 1}[batch.denoiser.prediction]
        return (snr.clamp(max=GAMMA) / of_output).sqrt().flatten()

    every = batch.denoiser.numbers(torch.arange(batch.last + 1), batch.z0)
    return weight(batch.at) / weight(every).mean()


# -------------------------------------------------------------------------------- what is added: [B]


def low_frequencies(batch: Batch, z0_hat: Tensor) -> Tensor:
    """The error of means over 4x4 places, which drifts in sampling (after ReflexFlow, arXiv
    2512.04904); times a, as an eps prediction's z0_hat holds 1 / a.
    """
    return F.avg_pool2d(batch.at.a * (z0_hat - batch.z0), 4).abs().flatten(1).mean(1)


@dataclass(frozen=True)
class Variant:
    rectify: Callable[[Batch], Tensor] = plain
    weigh: Callable[[Batch], Tensor] | None = None
    add: Callable[[Batch, Tensor], Tensor] | None = None
    keeps_noise: bool = False  # what is learnt is eps, not what z_t' implies


LOSSES = {
    "plain": Variant(),
    "DREAM": Variant(dream),
    "DREAM, p = 0": Variant(everywhere),
    "coin": Variant(coin),
    "share": Variant(share),
    "one step": Variant(one_step),
    "rollout": Variant(rollout),
    "perturbed": Variant(perturbed, keeps_noise=True),
    "min-SNR": Variant(weigh=min_snr),
    "DREAM, low frequencies": Variant(dream, add=low_frequencies),
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
    """As `loss.diffusion_loss`. Of `dream` only `kind` and `estimate_precision` count."""
    inputs = denoiser.at(t, inputs)
    at = inputs.numbers
    z_t = q_sample(z0, inputs.z_lr, eps, at.a, at.b, at.s)
    generator = torch.Generator().manual_seed(int(eps.view(torch.int32).sum()) & 0x7FFFFFFF)
    batch = Batch(denoiser, z0, inputs, sent(t, z0.device), eps, z_t, generator, dream)
    z_t = variant.rectify(batch)
    output = denoiser(z_t, t, inputs)
    z0_hat = denoiser.process.to_z0(output, z_t, inputs.z_lr, at, denoiser.prediction)
    noise = eps if variant.keeps_noise else (z_t - at.a * z0 - at.b * inputs.z_lr) / at.s
    loss = dream_loss(
        output, noise, None, None, z0, at.a, at.s, prediction=denoiser.prediction, kind=dream.kind
    )
    if variant.weigh:
        loss = loss * variant.weigh(batch)
    if variant.add:
        loss = loss + variant.add(batch, z0_hat)
    return DiffusionLoss(loss, z0_hat)


def main(words: list[str]) -> None:
    name, *others = words
    diffusion.diffusion_loss = partial(variant_loss, LOSSES[name])
    train.main(others)


if __name__ == "__main__":
    main(sys.argv[1:])
