"""Tables of noise that the processes are made of, in float64.

Symbols: T = num_timesteps; abar = cumulative product of 1 - beta; eta of ResShift.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ldm_dream.config.process import RISES, Sampling
from ldm_dream.errors import UserError


class ProcessError(UserError, ValueError):
    """A schedule or a prediction type that the process cannot serve."""


def betas_of(
    num_timesteps: int, beta_start: float, beta_end: float, schedule: str = "linear"
) -> Tensor:
    """betas, float64 [T], as SR3 has them (Image-Super-Resolution-via-Iterative-Refinement,
    make_beta_schedule). "jsd" and "cosine" do not read the two ends.
    """
    total = num_timesteps
    if schedule == "jsd":
        return 1 / torch.arange(total, 0, -1, dtype=torch.float64)
    if schedule == "cosine":
        place = (torch.arange(total + 1, dtype=torch.float64) / total + 0.008) / 1.008
        abar = (place * math.pi / 2).cos() ** 2
        return (1 - abar[1:] / abar[:-1]).clamp(max=0.999)
    if schedule == "sqrt_linear":
        return torch.linspace(beta_start**0.5, beta_end**0.5, total, dtype=torch.float64) ** 2
    rising = int(total * RISES[schedule])
    begin = torch.linspace(beta_start, beta_end, rising, dtype=torch.float64)
    return torch.cat([begin, begin.new_full((total - rising,), beta_end)])


def abar_of(
    num_timesteps: int, beta_start: float, beta_end: float, schedule: str = "linear"
) -> Tensor:
    """abar of `betas_of`, float64 [T]."""
    return torch.cumprod(1 - betas_of(num_timesteps, beta_start, beta_end, schedule), 0)


def respaced(num_timesteps: int, steps: int) -> Tensor:
    """Kept steps int(T / n * i), int64 [n] (ResShift, respace.py): 50 of 2000 are 0, 40, ..., 1960,
    never T - 1.
    """
    if not 1 <= steps <= num_timesteps:
        raise ProcessError(
            f"respace={steps} is not possible; choose 1 to num_timesteps={num_timesteps}."
        )
    return torch.tensor([int(num_timesteps / steps * i) for i in range(steps)])


def exponential_sqrt_eta(num_timesteps: int, start: float, end: float, power: float) -> Tensor:
    """sqrt(eta_t) = start (end / start) ** ((t / (T-1)) ** power), float64 [T] (ResShift, Eq. 9).
    `end` bounds sqrt(eta).
    """
    position = torch.arange(num_timesteps, dtype=torch.float64) / (num_timesteps - 1)
    return start * (end / start) ** position**power


def karras(table: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """table: sigma = s / a of every step, rising -> int64 [count], the steps nearest to it, and sigma
    itself, [count], falling from its last to its first one (arXiv 2206.00364, Eq. 5, rho = 7).
    """
    place = torch.linspace(0, 1, count, dtype=torch.float64)
    most, least = table[-1] ** (1 / 7), table[0] ** (1 / 7)
    sigmas = (most + place * (least - most)) ** 7
    upper = torch.searchsorted(table, sigmas).clamp(1, len(table) - 1)
    below, above = table[upper - 1].log(), table[upper].log()
    t = upper - 1 + ((sigmas.log() - below) / (above - below)).clamp(0, 1)
    return t.round().long(), sigmas


def spaced(total: int, count: int, sampling: Sampling) -> list[int]:
    """Steps by the spacings of diffusers, and by LDM's uniform and quad, which may have more steps
    than were asked for, and some outside of the process.
    """
    last, kind = total - 1, sampling.spacing
    # diffusers' solver counts the clean end as one more point
    points = count + (sampling.kind == "dpm-solver++")
    if kind == "trailing":
        return [round(total - i * (total / count)) - 1 for i in range(count)]
    if kind == "ldm":
        return [t + 1 for t in range(0, total, total // count)][::-1]
    if kind == "ldm_quad":
        grid = torch.linspace(0, math.sqrt(0.8 * total), count, dtype=torch.float64)
        return [int(x**2) + 1 for x in grid.tolist()][::-1]
    if kind == "leading":
        rising = [i * (total // points) + sampling.steps_offset for i in range(points)]
    else:
        grid = torch.linspace(0, last, points, dtype=torch.float64)
        rising = [round(x) for x in grid.tolist()]
    return rising[::-1][:count]
