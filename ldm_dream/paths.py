"""The steps that a sampler visits, and where each of them leads.

A path is chosen by indices of the process, or, with Karras' spacing, by sigmas = s / a between them
(arXiv 2206.00364, Eq. 5, rho = 7). Symbols as in process.py; u = -1 is the clean end.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ldm_dream.config.process import Sampling
from ldm_dream.errors import UserError
from ldm_dream.predictions import Numbers
from ldm_dream.process import Process

RHO = 7.0


class SamplerError(UserError, ValueError):
    """A sampler or a number of steps that does not fit the process."""


class Path(NamedTuple):
    """From t to u, step by step."""

    t: Tensor  # int64 [steps]: at these the network is asked
    u: Tensor  # int64 [steps]; those of ddim with a spacing of diffusers need not be the next t
    here: Numbers  # of t, float64 on the host
    there: Numbers  # of u


def plan(process: Process, sampling: Sampling) -> list[int]:
    """The t of `path_of`. Raises SamplerError likewise."""
    return path_of(process, sampling).t.tolist()


def path_of(process: Process, sampling: Sampling) -> Path:
    """Raises SamplerError for a sampler that the process lacks, and for steps that it has not."""
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
        path = spaced(process.num_timesteps, _count(process, steps), sampling)
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


def spaced(total: int, count: int, sampling: Sampling) -> list[int]:
    """even: T - 1 down to 0, rounded half up (one step: T - 1 alone). ldm and ldm_quad are LDM's
    uniform and quad, which may have more steps than were asked for, or none within the process.
    """
    last, kind = total - 1, sampling.spacing
    # diffusers' solver counts the clean end as one more point
    points = count + (sampling.kind == "dpm-solver++")
    if kind == "even":
        gaps = max(count - 1, 1)
        return [last - (2 * i * last + gaps) // (2 * gaps) for i in range(count)]
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
    place = torch.linspace(0, 1, count, dtype=torch.float64)
    most, least = table[-1] ** (1 / RHO), table[0] ** (1 / RHO)
    sigmas = (most + place * (least - most)) ** RHO
    upper = torch.searchsorted(table, sigmas).clamp(1, len(table) - 1)
    below, above = table[upper - 1].log(), table[upper].log()
    t = (upper - 1 + ((sigmas.log() - below) / (above - below)).clamp(0, 1)).round().long()
    a = 1 / (1 + sigmas**2).sqrt()
    told = process.at(t, torch.float64).told
    here = torch.stack([a, torch.zeros_like(a), sigmas * a, sigmas * a, told])
    end = process.at(torch.tensor([last]), torch.float64).rows
    there = torch.cat([here[:, 1:], end], 1)
    return Path(t, torch.cat([t[1:], torch.tensor([last])]), Numbers(here), Numbers(there))
