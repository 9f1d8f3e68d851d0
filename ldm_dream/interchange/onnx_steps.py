"""A sampler as numbers: every step is sums of pictures, each times a number, whatever process,
prediction and sampler they come from. So a program in another language needs no formula of ours.

The numbers are not worked out here a second time: the functions of `process.py` and `sampler.py` are
linear in the pictures, and are asked for one picture at a time (1 for it, 0 for the others).

Names of pictures: z_t, z_lr, output (of the network), z0 (the estimate of this step), z0_before (of
the step before), eps (the noise that the network sees), noise (fresh, unit normal).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ldm_dream.config.process import Sampling
from ldm_dream.denoiser import Denoiser
from ldm_dream.sampler import SAMPLERS, Now, Sampler, Step, Turn

Sum = dict[str, float]  # picture -> its factor; what is not named has factor 0


def sampler_as_numbers(denoiser: Denoiser, sampling: Sampling, clip: float | None) -> dict:
    """-> {"start": Sum, "steps": [{"t", "input", "z0", "eps", "next"}]}, JSON's own types.

    start: the first z_t. Of a step, in its order: t is what the network is told, input the factor of
    z_t before it enters the network, z0 and eps what the output says (eps only where it is used),
    next the z_t of the step that follows; after the last step it is the result. clip: bound of |z0|.
    Raises SamplerError, ProcessError as the sampler does.
    """
    sampler = Sampler(denoiser.process, denoiser.prediction, sampling, clip)
    turns = sampler.turns(torch.device("cpu"), torch.float64)
    return {
        "start": _sum(denoiser.process.prior, ["z_lr", "noise"]),
        "steps": [_step(denoiser, sampling.kind, turn) for turn in turns],
    }


def _step(denoiser: Denoiser, kind: str, turn: Turn) -> dict:
    process, prediction = denoiser.process, denoiser.prediction
    seen = ["output", "z_t", "z_lr"]
    after = _sum(
        lambda *pictures: _next(kind, turn, *pictures),
        ["z_t", "z_lr", "z0", "z0_before", "eps", "noise"],
    )
    step = {
        "t": process.model_t(torch.tensor([turn.t]), denoiser.network.sees_noise_level).item(),
        "input": process.model_input(_number(1), turn.at).item(),
        "z0": _sum(lambda o, z, lr: process.to_z0(o, z, lr, turn.at, prediction), seen),
    }
    if "eps" in after:
        step["eps"] = _sum(lambda o, z, lr: process.to_eps(o, z, lr, turn.at, prediction), seen)
    return step | {"next": after}


def _next(
    kind: str, turn: Turn, z_t: Tensor, z_lr: Tensor, z0: Tensor, z0_before: Tensor, *drawn: Tensor
) -> Tensor:
    """One step of the sampler; drawn: eps and noise."""
    eps, noise = drawn
    before = Step(turn.t, z0_before, z_t) if turn.k else None
    now = Now(turn, z_t, z_lr, before, z0, lambda: eps, lambda: noise)
    return SAMPLERS[kind].step(now)


def _sum(function: Callable[..., Tensor], names: list[str]) -> Sum:
    """The factors of a linear function of pictures."""
    factors = {
        name: function(*(_number(float(other == name)) for other in names)).item() for name in names
    }
    return {name: factor for name, factor in factors.items() if factor}


def _number(value: float) -> Tensor:
    return torch.full((1, 1, 1, 1), value, dtype=torch.float64)
