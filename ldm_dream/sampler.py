"""Samplers: from the prior's noise down to z0, as functions of a `denoise` callable over any
process.

Every step has z0_hat and eps_hat from one network call and goes from t to u = t_prev (at the end
-1, the clean end):
    ancestral     z_u = posterior mean(z0_hat, z_t) + sigma n                       DDPM Algorithm 2; SR3, guided-diffusion
    resshift      the same on ResidualShift                                         ResShift, Eq. 7
    ddim          z_u = a_u z0_hat + b_u z_lr + sqrt(s_u^2 - sigma^2) eps_hat + sigma n, sigma = eta times the ancestral one
                                                                                    arXiv
                                                                                    2010.02502, Eq.
                                                                                    12
    dpm-solver++  z_u = (s_u/s_t) z_t + (a_u - a_t s_u/s_t) D                       arXiv 2211.01095, Alg. 2 (2M, midpoint)
                  D = z0_hat + h / (2 h_before) (z0_hat - z0_hat_before), h = step in log(a/s)
                  D = z0_hat at the first and the last step
With `clip` the ancestral mean and D use the clipped z0_hat; ddim clips z0_hat and keeps the
network's own eps_hat (as diffusers). Symbols as in process.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dream_kernels import q_sample, sampler_step
from ldm_dream.errors import UserError
from ldm_dream.process import Denoise, Process, Regression, ResidualShift, like

KINDS = ("ancestral", "ddim", "dpm-solver++", "resshift")
VARIANCES = ("posterior", "forward")

Noise = Callable[
    [int], Tensor
]  # k = 0: the prior's noise, k = 1 ..: that of the k-th step; unit variance, shaped as z_lr


class SamplerError(UserError, ValueError):
    """A sampler, a number of steps or a source of noise that does not fit."""


class Step(NamedTuple):
    t: int  # the step done
    z0_hat: Tensor  # its estimate of z0 [B,C,h,w], clipped if asked
    z_t: Tensor  # where it led: z at the next step of the list; at the end z0


def sample(
    denoise: Denoise,
    process: Process,
    z_lr: Tensor,
    cond: Tensor,
    *,
    prediction: str,
    kind: str,
    steps: int | Sequence[int] | None = None,
    eta: float = 0.0,
    noise: Noise | None = None,
    generator: torch.Generator | None = None,
    clip: float | None = None,
    variance: str = "posterior",
) -> Tensor:
    """-> z0 [B,C,h,w] on z_lr's device. z_lr also gives shape, dtype and device of the noise.

    prediction: what denoise returns, "eps", "z0" or "v". kind: see KINDS. steps: see `timesteps`.
    eta: in [0,1], used by ddim: 0 deterministic, 1 ancestral variance.
    noise: a field by number (tiles share one) | generator: seeds it | neither: torch's global
    generator. Both: SamplerError. clip: bound of |z0_hat|; pixel systems clip to 1, latents are not
    clipped. variance: of the ancestral kinds, "posterior" ("fixed small") or "forward" (beta,
    "fixed large").
    """
    for step in sample_steps(
        denoise,
        process,
        z_lr,
        cond,
        prediction=prediction,
        kind=kind,
        steps=steps,
        eta=eta,
        noise=noise,
        generator=generator,
        clip=clip,
        variance=variance,
    ):
        z0 = step.z_t
    return z0


@torch.no_grad()
def sample_steps(
    denoise: Denoise,
    process: Process,
    z_lr: Tensor,
    cond: Tensor,
    *,
    prediction: str,
    kind: str,
    steps: int | Sequence[int] | None = None,
    eta: float = 0.0,
    noise: Noise | None = None,
    generator: torch.Generator | None = None,
    clip: float | None = None,
    variance: str = "posterior",
) -> Iterator[Step]:
    """The trajectory of `sample`, a Step after each network call."""
    _check(process, kind, eta, variance)
    noise = _noise(noise, generator, z_lr)
    path = timesteps(process, steps)
    z_t, before = process.prior(z_lr, noise(0)), None
    for k, (t, t_prev) in enumerate(zip(path, [*path[1:], -1])):
        at = torch.full((len(z_t),), t, device=z_t.device)
        output = denoise(z_t, at, cond)
        z0_hat = process.to_z0(output, z_t, z_lr, at, prediction)
        eps_hat = process.to_eps(output, z_t, z_lr, at, prediction)
        if clip is not None:
            z0_hat = z0_hat.clamp(-clip, clip)

        here, there = (
            torch.tensor([t]),
            torch.tensor([t_prev]),
        )  # on the CPU: coefficients in float64, no wait for the device
        sigma2 = torch.zeros(1, 1, 1, 1, dtype=torch.float64)
        if kind == "ddim":
            sigma2 = eta**2 * process.posterior_variance(here, there)
            mean = q_sample(
                z0_hat,
                z_lr,
                eps_hat,
                *(like(f, z_t) for f in _ddim_factors(process, there, sigma2)),
            )
            z_t = mean + like(sigma2.sqrt(), mean) * noise(k + 1) if sigma2.item() > 0 else mean
        else:
            estimate = z0_hat
            if kind == "dpm-solver++":
                z0_factor, z_factor = _solver_factors(process, here, there)
                if before is not None and t_prev != -1:
                    estimate = _extrapolate(process, z0_hat, *before, here, there)
                before = z0_hat, here
            else:
                z0_factor, z_factor = process.posterior_factors(here, there)
                if (
                    t_prev != -1
                ):  # the forward variance is not 0 at the clean end, where nothing is added
                    sigma2 = (
                        process.posterior_variance
                        if variance == "posterior"
                        else process.forward_variance
                    )(here, there)
            added = noise(k + 1) if sigma2.item() > 0 else z_t  # whose factor is 0
            z_t = sampler_step(
                z_t, estimate, added, *(like(f, z_t) for f in (z_factor, z0_factor, sigma2.sqrt()))
            )
        yield Step(t, z0_hat, z_t)


def timesteps(process: Process, steps: int | Sequence[int] | None) -> list[int]:
    """Indices to visit, descending. None: all. n: T - 1 down to 0, evenly spaced and rounded half
    up (n = 1: T - 1 alone). A sequence: these. Raises SamplerError for a number outside 1 .. T or a
    sequence that does not descend within 0 .. T-1.
    """
    last = process.num_timesteps - 1
    if steps is None:
        return list(range(last, -1, -1))
    if isinstance(steps, int):
        if not 1 <= steps <= last + 1:
            raise SamplerError(
                f"steps={steps} is not possible; this process has {last + 1} steps, choose 1 to {last + 1}."
            )
        gaps = max(steps - 1, 1)
        return [last - (2 * i * last + gaps) // (2 * gaps) for i in range(steps)]
    path = list(steps)
    if not path or path[0] > last or path[-1] < 0 or any(t <= u for t, u in zip(path, path[1:])):
        raise SamplerError(
            f"steps={path} is not possible; give indices that descend within {last} .. 0."
        )
    return path


def _ddim_factors(process: Process, u: Tensor, sigma2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    a, b, s = (f(u, torch.float64) for f in (process.a, process.b, process.s))
    return a, b, (s**2 - sigma2).sqrt()


def _solver_factors(process: Process, t: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """Of z0 and z_t."""
    # e^-h of the paper is (a_t s_u) / (a_u s_t): written as ratios it holds at a_t = 0 (Flow) and
    # at s_u = 0 (the clean end) too
    ratio = process.s(u, torch.float64) / process.s(t, torch.float64)
    return process.a(u, torch.float64) - process.a(t, torch.float64) * ratio, ratio


def _extrapolate(
    process: Process, z0: Tensor, z0_before: Tensor, t_before: Tensor, t: Tensor, u: Tensor
) -> Tensor:
    before, here, there = (
        (process.a(x, torch.float64) / process.s(x, torch.float64)).log() for x in (t_before, t, u)
    )
    return z0 + like((there - here) / (2 * (here - before)), z0) * (
        z0 - z0_before
    )  # h_before = inf after pure noise: first order


def _noise(noise: Noise | None, generator: torch.Generator | None, z_lr: Tensor) -> Noise:
    if noise is not None and generator is not None:
        raise SamplerError(
            "noise and generator are both given; give one of them, or neither for torch's global generator."
        )
    if noise is not None:
        return noise
    device = z_lr.device if generator is None else generator.device
    return lambda k: torch.randn(
        z_lr.shape, generator=generator, device=device, dtype=z_lr.dtype
    ).to(z_lr.device)


def _check(process: Process, kind: str, eta: float, variance: str) -> None:
    if kind not in KINDS:
        raise SamplerError(f"sampler {kind!r} is not known; choose one of {', '.join(KINDS)}.")
    if kind == "resshift" and not isinstance(process, ResidualShift):
        raise SamplerError(
            f"sampler 'resshift' needs the process residual_shift, this is {type(process).__name__}; use 'ancestral' or 'ddim'."
        )
    if kind == "dpm-solver++" and isinstance(process, (ResidualShift, Regression)):
        raise SamplerError(
            "sampler 'dpm-solver++' needs a process without z_lr in its mean; use 'ancestral' or 'ddim' here."
        )
    if not 0 <= eta <= 1:
        raise SamplerError(
            f"eta={eta} is not possible; choose 0 (deterministic) to 1 (ancestral variance)."
        )
    if variance not in VARIANCES:
        raise SamplerError(
            f"variance {variance!r} is not known; choose one of {', '.join(VARIANCES)}."
        )
