"""Tables of noise that the processes are made of, in float64.

Symbols: T = num_timesteps; abar = cumulative product of 1 - beta; eta of ResShift.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ldm_dream.errors import UserError


class ProcessError(UserError, ValueError):
    """A schedule or a prediction type that the process cannot serve."""


def linear_betas(
    num_timesteps: int, beta_start: float, beta_end: float, schedule: str = "linear"
) -> Tensor:
    """betas, float64 [T]. "linear": linear in t; "sqrt_linear": their square roots are (LDM calls
    that one "linear").
    """
    if schedule == "linear":
        return torch.linspace(beta_start, beta_end, num_timesteps, dtype=torch.float64)
    return torch.linspace(beta_start**0.5, beta_end**0.5, num_timesteps, dtype=torch.float64) ** 2


def linear_abar(
    num_timesteps: int, beta_start: float, beta_end: float, schedule: str = "linear"
) -> Tensor:
    """abar of `linear_betas`, float64 [T]."""
    return torch.cumprod(1 - linear_betas(num_timesteps, beta_start, beta_end, schedule), 0)


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
