"""The noise schedule that published checkpoints of SR3, IDM and LDM carry as buffers, read back
into a config.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

import torch
from torch import Tensor

from ldm_dream.config.process import UNREAD, DDPMConfig, Schedule
from ldm_dream.errors import CheckpointImportError
from ldm_dream.schedules import betas_of


def read_schedule(state: Mapping[str, Tensor], path: str) -> DDPMConfig | None:
    """Steps, end points and shape of the buffer `betas` [T]; None where the file has no buffers of
    a schedule.

    Raises CheckpointImportError, with `path`, for a schedule that DDPMConfig cannot express or
    `alphas_cumprod` [T] contradicts.
    """
    if "betas" not in state and "alphas_cumprod" not in state:
        return None
    betas = state.get("betas", torch.empty(0)).double()
    if betas.ndim != 1 or len(betas) == 0:
        raise CheckpointImportError(
            f"{path}: has alphas_cumprod without a list of betas, so its noise schedule is not known."
        )
    # float32 has seven digits
    first, last = (float(f"{beta:.6g}") for beta in (betas[0].item(), betas[-1].item()))
    about = f"{path}: its noise schedule ({len(betas)} steps, betas {first:g} to {last:g})"
    found = _named(betas, first, last)
    if found is None:
        raise CheckpointImportError(
            f"{about} is none of {', '.join(get_args(Schedule))}; only those can be imported."
        )
    abar = torch.cumprod(1 - betas, 0)
    if not _is(state.get("alphas_cumprod", abar).double(), abar):
        raise CheckpointImportError(
            f"{about} is not that of its alphas_cumprod; the file is damaged, download it again."
        )
    try:
        return DDPMConfig(num_timesteps=len(betas), **found)
    except ValueError:
        raise CheckpointImportError(f"{about} is none that a model here can have.") from None


def _named(betas: Tensor, first: float, last: float) -> dict[str, Any] | None:
    """The knobs that make them, if there are such."""
    given = {"beta_start": first, "beta_end": last}
    for schedule in get_args(Schedule):
        ends = {name: x for name, x in given.items() if name not in UNREAD.get(schedule, ())}
        allowed = all(0 < beta < 1 for beta in ends.values())
        if allowed and _is(betas, betas_of(len(betas), first, last, schedule)):
            return {"schedule": schedule, **ends}
    return None


def _is(got: Tensor, want: Tensor) -> bool:
    """Equal to what float32 and six digits of the end points keep."""
    return got.shape == want.shape and torch.allclose(got, want, rtol=1e-4, atol=0)
