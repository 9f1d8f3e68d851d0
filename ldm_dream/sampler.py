"""Samplers: from the prior's noise down to z0, over any process.

`sample_steps` walks; `Sampler` makes one step of a walk from what the network answered. A sampler is
two functions, written side by side: the factors of all its steps, and one step from z_t to z at a
less noisy index u, made with them. What a step knows (`Now`): z0_hat and eps_hat, from one network
call.

Factors are worked out in float64 on the host before the walk and sent to the device once; whether
noise is added is known then too. So no step waits for the device.

Symbols as in process.py; u = -1 is the clean end; n = fresh noise of unit variance.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from dream_kernels import q_sample
from ldm_dream.config.process import Sampling
from ldm_dream.denoiser import Denoiser, Inputs, sent
from ldm_dream.errors import UserError
from ldm_dream.process import Numbers, Process, wide
from ldm_dream.schedules import karras, spaced

# k = 0: the prior's noise, k = 1 ..: that of the k-th step; unit variance, shaped as z_lr
Noise = Callable[[int], Tensor]

LARGEST_SEED = 2**64 - 1
FEW = 15  # steps of dpm-solver++, as in diffusers: with fewer the last one is of first order


class SamplerError(UserError, ValueError):
    """A sampler or a number of steps that does not fit the process."""


class Path(NamedTuple):
    """From t to u, step by step."""

    t: Tensor  # int64 [steps]: at these the network is asked
    u: Tensor  # int64 [steps]; those of ddim with a spacing of diffusers need not be the next t
    here: Numbers  # of t, float64 on the host
    there: Numbers  # of u


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


class Turn(NamedTuple):
    """The k-th step of a run, from index t."""

    k: int
    t: int
    at: Numbers  # of t
    factors: tuple[Tensor, ...]  # of the sampler, [1,1,1,1] each
    adds_noise: bool


class Now(NamedTuple):
    """What a sampler has to step from."""

    turn: Turn
    z_t: Tensor
    z_lr: Tensor
    before: Step | None
    z0_hat: Tensor  # clipped if asked
    eps_hat: Callable[[], Tensor]  # the network's own
    noise: Callable[[], Tensor]  # called only where noise is added


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

    def turns(self, device: torch.device, dtype: torch.dtype = torch.float32) -> list[Turn]:
        """The steps in their order, with all numbers for a z of `dtype` on `device`. Raises
        SamplerError, and ProcessError for a prediction that fails at one of them.
        """
        path = path_of(self.process, self.sampling)
        asked = path.t.tolist()
        self.process.refuse_blind(self.prediction, asked)
        factors = SAMPLERS[self.sampling.kind].factors(self.process, path, self.sampling)
        adds_noise = (factors[-1] > 0).flatten().tolist()
        table = torch.cat([path.here.rows, *(factor.view(1, -1) for factor in factors)])
        columns = sent(table.to(wide(dtype)), device).split(1, 1)
        return [
            Turn(k, t, Numbers(column[:5]), column[5:].view(-1, 1, 1, 1, 1).unbind(), adds)
            for k, (t, column, adds) in enumerate(zip(asked, columns, adds_noise))
        ]

    def step(self, turn: Turn, seen: Seen, noise: Noise) -> Step:
        """From z_t at turn.t to where it leads."""
        output, z_t, z_lr, before = seen
        z0_hat = self.process.to_z0(output, z_t, z_lr, turn.at, self.prediction)
        eps_hat = partial(self.process.to_eps, output, z_t, z_lr, turn.at, self.prediction)
        if self.clip is not None:
            z0_hat = z0_hat.clamp(-self.clip, self.clip)
        now = Now(turn, z_t, z_lr, before, z0_hat, eps_hat, partial(noise, turn.k + 1))
        return Step(turn.t, z0_hat, SAMPLERS[self.sampling.kind].step(now))


@torch.no_grad()
def sample_steps(
    denoiser: Denoiser, inputs: Inputs, sampling: Sampling, noise: Noise, clip: float | None = None
) -> Iterator[Step]:
    """A Step after each network call; the last one's z_t is z0. `inputs.z_lr` gives the shape.

    clip: as of `Sampler`. Raises SamplerError, ProcessError.
    """
    sampler, z_lr = Sampler(denoiser.process, denoiser.prediction, sampling, clip), inputs.z_lr
    turns = sampler.turns(z_lr.device, z_lr.dtype)
    z_t, before = denoiser.process.prior(z_lr, noise(0)), None
    for turn in turns:
        output = denoiser(z_t, torch.full((len(z_t),), turn.t, device=z_t.device), inputs)
        before = sampler.step(turn, Seen(output, z_t, z_lr, before), noise)
        z_t = before.z_t
        yield before


def sample(
    denoiser: Denoiser, inputs: Inputs, sampling: Sampling, noise: Noise, clip: float | None = None
) -> Tensor:
    """-> z0 [B,C,h,w] on z_lr's device; arguments as of `sample_steps`."""
    *_, last = sample_steps(denoiser, inputs, sampling, noise, clip)
    return last.z_t


# ----------------------------------------------------------------------------------------- samplers
# Factors: of all steps of a path, on the host, float64 [steps,1,1,1] each, that of the noise last.


def ancestral_factors(process: Process, path: Path, sampling: Sampling) -> tuple[Tensor, ...]:
    t, u = path.t, path.u
    z0_factor, z_factor = process.posterior_factors(t, u)
    variance = process.posterior_variance(t, u)
    if sampling.variance == "forward":
        # not 0 at the clean end, where nothing is added
        clean = (u == -1).view(-1, 1, 1, 1)
        variance = torch.where(clean, variance, process.forward_variance(t, u))
    return z_factor, z0_factor, variance.sqrt()


def ancestral(now: Now) -> Tensor:
    """z_u = posterior mean(z0_hat, z_t) + sigma n.

    DDPM, Algorithm 2 (SR3, guided-diffusion); on ResidualShift it is ResShift's Eq. 7.
    """
    noise = now.noise() if now.turn.adds_noise else now.z_t  # whose factor is 0
    return q_sample(now.z_t, now.z0_hat, noise, *now.turn.factors)


def ddim_factors(process: Process, path: Path, sampling: Sampling) -> tuple[Tensor, ...]:
    at = path.there
    sigma2 = sampling.eta**2 * process.posterior_variance(path.t, path.u)
    return at.a, at.b, (at.s**2 - sigma2).sqrt(), sigma2.sqrt()


def ddim(now: Now) -> Tensor:
    """z_u = a_u z0_hat + b_u z_lr + sqrt(s_u^2 - sigma^2) eps_hat + sigma n.

    sigma = eta times the ancestral one (DDIM, arXiv 2010.02502, Eq. 12).
    """
    *factors, sigma = now.turn.factors
    mean = q_sample(now.z0_hat, now.z_lr, now.eps_hat(), *factors)
    return mean + sigma * now.noise() if now.turn.adds_noise else mean


def dpm_solver_factors(process: Process, path: Path, sampling: Sampling) -> tuple[Tensor, ...]:
    """The first is that of z0_hat's change, 0 in a step of first order."""
    # e^-h of the paper is (a_t s_u) / (a_u s_t): as ratios it holds at a_t = 0 (Flow) and at
    # s_u = 0 (the clean end) too
    here, there = path.here, path.there
    ratio, h = there.s / here.s, (there.a / there.s).log() - (here.a / here.s).log()
    gone = 1 - (-h).exp()
    second = h / 2 if sampling.solver_type == "midpoint" else (h - gone) / gone
    # h_before is infinite after pure noise: first order
    slopes = torch.zeros_like(ratio)
    slopes[1:] = second[1:] / h[:-1]
    few = sampling.lower_order_final and len(path.t) < FEW
    if few or sampling.euler_at_final or not 0 < h[-1] < math.inf:
        slopes[-1] = 0
    return slopes, ratio, there.a - here.a * ratio, torch.zeros_like(ratio)


def dpm_solver(now: Now) -> Tensor:
    """z_u = (s_u/s_t) z_t + (a_u - a_t s_u/s_t) D        DPM-Solver++ 2M (arXiv 2211.01095, Alg. 2)

    D = z0_hat + slope (z0_hat - z0_hat_before), h = step in log(a/s); the slope is h / (2 h_before),
    or with diffusers' heun (h / (1 - e^-h) - 1) / h_before. D = z0_hat in a step of first order: the
    first one, and the last one to the clean end.
    """
    slope, *factors = now.turn.factors
    estimate = now.z0_hat
    if now.before is not None:
        estimate = estimate + slope * (now.z0_hat - now.before.z0_hat)
    return q_sample(now.z_t, estimate, now.z_t, *factors)


class Kind(NamedTuple):
    factors: Callable[[Process, Path, Sampling], tuple[Tensor, ...]]
    step: Callable[[Now], Tensor]


SAMPLERS = {
    "ancestral": Kind(ancestral_factors, ancestral),
    "resshift": Kind(ancestral_factors, ancestral),  # its published name
    "ddim": Kind(ddim_factors, ddim),
    "dpm-solver++": Kind(dpm_solver_factors, dpm_solver),
}


# --------------------------------------------------------------------------------------- which steps


def plan(process: Process, sampling: Sampling) -> list[int]:
    """The t of `path_of`. Raises SamplerError likewise."""
    return path_of(process, sampling).t.tolist()


def path_of(process: Process, sampling: Sampling) -> Path:
    """Raises SamplerError for a sampler or steps that the process lacks."""
    if sampling.kind not in process.samplers:
        raise SamplerError(
            f"sampler {sampling.kind!r} does not fit {type(process).__name__}; "
            f"use one of {', '.join(process.samplers)}."
        )
    last = 0 if sampling.end == "first" else -1
    if sampling.spacing == "karras":
        return _by_sigmas(process, _count(process, sampling.steps), last)
    t = torch.tensor(timesteps(process, sampling))
    if sampling.kind == "ddim" and sampling.spacing in DIFFUSERS:
        u = t - process.num_timesteps // len(t)  # whatever the next t is
        u = torch.where(u < 0, last, u)
    else:
        u = torch.cat([t[1:], torch.tensor([last])])
    return Path(t, u, *(process.at(index, torch.float64) for index in (t, u)))


def timesteps(process: Process, sampling: Sampling) -> list[int]:
    """Indices to visit, descending. Raises SamplerError for those that the process has not."""
    steps, last = sampling.steps, process.num_timesteps - 1
    if steps is None:
        return list(range(last, -1, -1))
    if isinstance(steps, int):
        count = _count(process, steps)
        if sampling.spacing == "even":  # rounded half up; one step is the last alone
            gaps = max(count - 1, 1)
            path = [last - (2 * i * last + gaps) // (2 * gaps) for i in range(count)]
        else:
            path = spaced(last + 1, count, sampling)
        why = f"steps={steps} with spacing {sampling.spacing}: {path}"
    else:
        path, why = list(steps), f"steps={list(steps)}"
    # LDM's quad begins with the same step twice where there are many
    twice = isinstance(steps, int) and sampling.spacing == "ldm_quad"
    descends = all(t > u or (twice and t == u) for t, u in zip(path, path[1:]))
    if not path or path[0] > last or path[-1] < 0 or not descends:
        raise SamplerError(f"{why} is not possible; give indices that descend within {last} .. 0.")
    return path


DIFFUSERS = ("leading", "trailing", "linspace")  # spacings by the names that diffusers gives them


def _count(process: Process, steps: int | Sequence[int] | None) -> int:
    total = process.num_timesteps
    if not isinstance(steps, int) or not 1 <= steps <= total:
        raise SamplerError(
            f"steps={steps} is not possible; this process has {total} steps, choose 1 to {total}."
        )
    return steps


def _by_sigmas(process: Process, count: int, last: int) -> Path:
    """The network is told the nearest step of the process."""
    everywhere = process.at(torch.arange(process.num_timesteps), torch.float64)
    table = (everywhere.s / everywhere.a).flatten()
    if not table.isfinite().all():
        raise SamplerError(
            f"spacing karras does not fit {type(process).__name__}, whose last step is pure noise; "
            "use another spacing."
        )
    t, sigmas = karras(table, count)
    a = 1 / (1 + sigmas**2).sqrt()
    told = process.at(t, torch.float64).told
    here = torch.stack([a, torch.zeros_like(a), sigmas * a, sigmas * a, told])
    end = process.at(torch.tensor([last]), torch.float64).rows
    there = torch.cat([here[:, 1:], end], 1)
    return Path(t, torch.cat([t[1:], torch.tensor([last])]), Numbers(here), Numbers(there))


# -------------------------------------------------------------------------------------------- noise


def gaussian(z_lr: Tensor, generator: torch.Generator | None = None) -> Noise:
    """Noise shaped as z_lr, in its dtype and on its device; None: torch's global generator."""
    device = z_lr.device if generator is None else generator.device
    return lambda k: torch.randn(
        z_lr.shape, generator=generator, device=device, dtype=z_lr.dtype
    ).to(z_lr.device)


def seeded(seed: int, z_lr: Tensor, top: int = 0) -> Noise:
    """Noise shaped as z_lr, a function of (seed, k, channel, y, x); `top` is the row of the picture
    at which z_lr begins. seed: 0 .. LARGEST_SEED.

    The same numbers on every device up to the rounding of logarithm, sine and cosine, for every
    tile and batch size, for every part of the picture, and for each picture of a batch.
    """
    channels, height, width = z_lr.shape[1:]
    key = seed & WORD, seed >> 32
    # four numbers a counter: of four neighbours in a row
    shape = channels, height, -(-width // 4)

    channel, y, x = (torch.arange(length, device=z_lr.device) for length in shape)

    def noise(k: int) -> Tensor:
        places = x, (y + top)[:, None], channel[:, None, None]
        c0, c1, c2 = (place.expand(shape).contiguous() for place in places)
        words = philox(c0, c1, c2, torch.full(shape, k, device=z_lr.device), key)
        field = torch.stack(normal(*words), -1).view(channels, height, -1)[..., :width]
        return field.to(z_lr.dtype).expand_as(z_lr)

    return noise


WORD = 2**32 - 1
ROUNDS = 10
MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
STEPS_OF_KEY = 0x9E3779B9, 0xBB67AE85


def philox(
    c0: Tensor, c1: Tensor, c2: Tensor, c3: Tensor, key: tuple[int, int]
) -> tuple[Tensor, ...]:
    """Philox4x32-10 (Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3, SC 2011): counters,
    int64 of 32 bits each, and a key of two such words -> four words, alike.
    """
    even, odd, right_even, right_odd = c0, c2, c1, c3
    for i in range(ROUNDS):
        k0, k1 = ((word + i * step) & WORD for word, step in zip(key, STEPS_OF_KEY))
        # 64 bits, the upper one a sign: of its halves only the lower 32 bits are looked at
        first, second = even * MULTIPLIERS[0], odd * MULTIPLIERS[1]
        even = (second >> 32).bitwise_xor_(right_even).bitwise_xor_(k0).bitwise_and_(WORD)
        odd = (first >> 32).bitwise_xor_(right_odd).bitwise_xor_(k1).bitwise_and_(WORD)
        right_even, right_odd = second, first
    return even, right_even & WORD, odd, right_odd & WORD


def normal(*words: Tensor) -> list[Tensor]:
    """Four words -> four independent normal numbers, float32 (Box and Muller 1958); none is larger
    than 6.8.
    """
    found = []
    for radius, angle in (words[:2], words[2:]):
        length = radius.float().add_(0.5).mul_(2**-32).log_().mul_(-2).sqrt_()
        turn = angle.float().mul_(2 * math.pi * 2**-32)
        found += [length * turn.cos(), length.mul_(turn.sin_())]
    return found
