"""Samplers: from the prior's noise down to z0, over any process.

`sample_steps` walks; `Sampler` makes one step of a walk from what the network answered; each sampler
is one such step, from z_t to z at a less noisy index u, written side by side. What they know at a
step (`Now`): z0_hat and eps_hat, from one network call.

Symbols as in process.py; u = -1 is the clean end; n = fresh noise of unit variance.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dream_kernels import q_sample
from ldm_dream.config.model import Sampling
from ldm_dream.denoiser import Denoiser, Inputs
from ldm_dream.errors import UserError
from ldm_dream.process import Process, like

# k = 0: the prior's noise, k = 1 ..: that of the k-th step; unit variance, shaped as z_lr
Noise = Callable[[int], Tensor]


class SamplerError(UserError, ValueError):
    """A sampler or a number of steps that does not fit the process."""


class Step(NamedTuple):
    """A step that was done."""

    t: int
    z0_hat: Tensor  # its estimate of z0 [B,C,h,w], clipped if asked
    z_t: Tensor  # where it led: z at the next index; at the end z0


class Seen(NamedTuple):
    """What a step starts from; all of the same positions."""

    output: Tensor  # of the network at z_t
    z_t: Tensor
    z_lr: Tensor
    before: Step | None  # None at the first step, or where the sampler does not remember


class Now(NamedTuple):
    """What a sampler has to step from. t, u: int64 [1] on the CPU, so coefficients are float64 and
    nobody waits for the device.
    """

    t: Tensor
    u: Tensor
    z_t: Tensor
    z_lr: Tensor
    z0_hat: Tensor  # clipped if asked
    eps_hat: Callable[[], Tensor]  # the network's own
    noise: Callable[[], Tensor]  # called only where noise is added

    @property
    def is_last(self) -> bool:
        return int(self.u) == -1


class Turn(NamedTuple):
    """The k-th step of a run, from index t to u; u = -1 is the clean end."""

    k: int
    t: int
    u: int


@dataclass(frozen=True)
class Sampler:
    """One run of `sampling` over `process`, step by step: all but the network calls.

    Every position of z is stepped by itself, so a caller may step a part of a picture before
    another.
    clip: bound of |z0_hat|; pixel systems clip to 1, latents are not clipped. With it the ancestral
    mean and the solver use the clipped z0_hat; ddim keeps the network's own eps_hat (as diffusers).
    """

    process: Process
    prediction: str
    sampling: Sampling
    clip: float | None = None

    @property
    def remembers(self) -> bool:
        """Whether a step uses the one before it."""
        return self.sampling.kind == "dpm-solver++"

    def turns(self) -> list[Turn]:
        """The steps, in their order. Raises SamplerError."""
        path = plan(self.process, self.sampling)
        return [Turn(k, t, u) for k, (t, u) in enumerate(zip(path, [*path[1:], -1]))]

    def step(self, turn: Turn, seen: Seen, noise: Noise) -> Step:
        """From z_t at turn.t to z at turn.u."""
        output, z_t, z_lr, before = seen
        at = torch.full((len(z_t),), turn.t, device=z_t.device)
        z0_hat = self.process.to_z0(output, z_t, z_lr, at, self.prediction)
        eps_hat = partial(self.process.to_eps, output, z_t, z_lr, at, self.prediction)
        if self.clip is not None:
            z0_hat = z0_hat.clamp(-self.clip, self.clip)
        here, there = torch.tensor([turn.t]), torch.tensor([turn.u])
        now = Now(here, there, z_t, z_lr, z0_hat, eps_hat, partial(noise, turn.k + 1))
        z_u = SAMPLERS[self.sampling.kind](self.process, now, before, self.sampling)
        return Step(turn.t, z0_hat, z_u)


@torch.no_grad()
def sample_steps(
    denoiser: Denoiser, inputs: Inputs, sampling: Sampling, noise: Noise, clip: float | None = None
) -> Iterator[Step]:
    """A Step after each network call; the last one's z_t is z0. `inputs.z_lr` gives the shape.

    clip: as of `Sampler`. Raises SamplerError.
    """
    sampler = Sampler(denoiser.process, denoiser.prediction, sampling, clip)
    z_t, before = denoiser.process.prior(inputs.z_lr, noise(0)), None
    for turn in sampler.turns():
        output = denoiser(z_t, torch.full((len(z_t),), turn.t, device=z_t.device), inputs)
        before = sampler.step(turn, Seen(output, z_t, inputs.z_lr, before), noise)
        z_t = before.z_t
        yield before


def sample(
    denoiser: Denoiser, inputs: Inputs, sampling: Sampling, noise: Noise, clip: float | None = None
) -> Tensor:
    """-> z0 [B,C,h,w] on z_lr's device; arguments as of `sample_steps`."""
    *_, last = sample_steps(denoiser, inputs, sampling, noise, clip)
    return last.z_t


# -------------------------------------------------------------------------- one step of each sampler


def ancestral(process: Process, now: Now, before: Step | None, sampling: Sampling) -> Tensor:
    """z_u = posterior mean(z0_hat, z_t) + sigma n.

    DDPM, Algorithm 2 (SR3, guided-diffusion); on ResidualShift it is ResShift's Eq. 7.
    """
    z0_factor, z_factor = process.posterior_factors(now.t, now.u)
    # the forward variance is not 0 at the clean end, where nothing is added
    forward = sampling.variance == "forward" and not now.is_last
    sigma2 = (process.forward_variance if forward else process.posterior_variance)(now.t, now.u)
    return _step(now, now.z0_hat, z_factor, z0_factor, sigma2.sqrt())


def ddim(process: Process, now: Now, before: Step | None, sampling: Sampling) -> Tensor:
    """z_u = a_u z0_hat + b_u z_lr + sqrt(s_u^2 - sigma^2) eps_hat + sigma n.

    sigma = eta times the ancestral one (DDIM, arXiv 2010.02502, Eq. 12).
    """
    a, b, s = (f(now.u, torch.float64) for f in (process.a, process.b, process.s))
    sigma2 = sampling.eta**2 * process.posterior_variance(now.t, now.u)
    factors = (like(f, now.z_t) for f in (a, b, (s**2 - sigma2).sqrt()))
    mean = q_sample(now.z0_hat, now.z_lr, now.eps_hat(), *factors)
    return mean + like(sigma2.sqrt(), mean) * now.noise() if sigma2.item() > 0 else mean


def dpm_solver(process: Process, now: Now, before: Step | None, sampling: Sampling) -> Tensor:
    """z_u = (s_u/s_t) z_t + (a_u - a_t s_u/s_t) D        DPM-Solver++ 2M (arXiv 2211.01095, Alg. 2)

    D = z0_hat + h / (2 h_before) (z0_hat - z0_hat_before), h = step in log(a/s); D = z0_hat at the
    first and the last step.
    """
    # e^-h of the paper is (a_t s_u) / (a_u s_t): as ratios it holds at a_t = 0 (Flow) and at
    # s_u = 0 (the clean end) too
    a, s = (lambda t: process.a(t, torch.float64)), (lambda t: process.s(t, torch.float64))
    ratio = s(now.u) / s(now.t)
    estimate = now.z0_hat
    if before is not None and not now.is_last:
        indices = (torch.tensor([before.t]), now.t, now.u)
        earlier, here, there = ((a(t) / s(t)).log() for t in indices)
        # h_before is infinite after pure noise: first order
        slope = like((there - here) / (2 * (here - earlier)), estimate)
        estimate = estimate + slope * (now.z0_hat - before.z0_hat)
    return _step(now, estimate, ratio, a(now.u) - a(now.t) * ratio, torch.zeros_like(ratio))


SAMPLERS = {
    "ancestral": ancestral,
    "resshift": ancestral,  # its published name
    "ddim": ddim,
    "dpm-solver++": dpm_solver,
}


def _step(now: Now, z0_hat: Tensor, z_factor: Tensor, z0_factor: Tensor, sigma: Tensor) -> Tensor:
    """z_factor z_t + z0_factor z0_hat + sigma n."""
    noise = now.noise() if sigma.item() > 0 else now.z_t  # whose factor is 0
    factors = (like(f, now.z_t) for f in (z_factor, z0_factor, sigma))
    return q_sample(now.z_t, z0_hat, noise, *factors)


# --------------------------------------------------------------------------------------- which steps


def plan(process: Process, sampling: Sampling) -> list[int]:
    """`timesteps` of `sampling`; raises SamplerError also for a sampler that the process lacks."""
    if sampling.kind not in process.samplers:
        raise SamplerError(
            f"sampler {sampling.kind!r} does not fit {type(process).__name__}; "
            f"use one of {', '.join(process.samplers)}."
        )
    return timesteps(process, sampling.steps)


def timesteps(process: Process, steps: int | Sequence[int] | None) -> list[int]:
    """Indices to visit, descending. None: all. n: T - 1 down to 0, evenly spaced and rounded half
    up (n = 1: T - 1 alone). A sequence: these. Raises SamplerError for a number outside 1 .. T or
    a sequence that does not descend within 0 .. T-1.
    """
    last = process.num_timesteps - 1
    if steps is None:
        return list(range(last, -1, -1))
    if isinstance(steps, int):
        if not 1 <= steps <= last + 1:
            raise SamplerError(
                f"steps={steps} is not possible; this process has {last + 1} steps, "
                f"choose 1 to {last + 1}."
            )
        gaps = max(steps - 1, 1)
        return [last - (2 * i * last + gaps) // (2 * gaps) for i in range(steps)]
    path = list(steps)
    if not path or path[0] > last or path[-1] < 0 or any(t <= u for t, u in zip(path, path[1:])):
        raise SamplerError(
            f"steps={path} is not possible; give indices that descend within {last} .. 0."
        )
    return path


# -------------------------------------------------------------------------------------------- noise


def gaussian(z_lr: Tensor, generator: torch.Generator | None = None) -> Noise:
    """Noise shaped as z_lr, in its dtype and on its device; None: torch's global generator."""
    device = z_lr.device if generator is None else generator.device
    return lambda k: torch.randn(
        z_lr.shape, generator=generator, device=device, dtype=z_lr.dtype
    ).to(z_lr.device)


def seeded(seed: int, z_lr: Tensor, top: int = 0) -> Noise:
    """Noise shaped as z_lr, a function of (seed, k, channel, y, x) and the width; `top` is the row
    of the picture at which z_lr begins.

    Drawn on the CPU row by row, hence the same numbers on every device, for every tile and batch
    size, for every part of the picture, and for each picture of a batch.
    """
    channels, height, width = z_lr.shape[1:]
    generator = torch.Generator()

    def row(k: int, y: int) -> Tensor:
        # mixes, so that (0, 1) and (1, 0) have nothing in common
        state = np.random.SeedSequence((seed, k, y)).generate_state(1, np.uint64)
        generator.manual_seed(int(state[0]))
        return torch.randn(channels, width, generator=generator)

    def noise(k: int) -> Tensor:
        rows = [row(k, y) for y in range(top, top + height)]
        return torch.stack(rows, 1).to(z_lr).expand_as(z_lr)

    return noise
