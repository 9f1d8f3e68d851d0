"""Golden runner of respaced DDPM: schedules under the maps of ResShift, guided-diffusion and LDM,
and ancestral loops.
"""

from __future__ import annotations

import torch
from torch import Tensor

from golden.closed_form import stand_in
from golden.reading import Case
from ldm_dream.config.process import Sampling
from ldm_dream.denoiser import Inputs
from ldm_dream.process import DDPM
from ldm_dream.sampler import SAMPLERS, path_of, sample_steps
from ldm_dream.schedules import abar_of, respaced, spaced
from runs import PlainDenoiser

SCHEDULE = {"linear": "linear", "scaled_linear": "sqrt_linear", "cosine": "cosine"}
VARIANCE = {"FIXED_SMALL": "posterior", "FIXED_LARGE": "forward"}


def run(case: Case, io: dict[str, Tensor], weights: dict[str, Tensor]) -> dict[str, Tensor]:
    outputs = {}
    for item in case["construct"]["items"]:
        name, total, n = item["name"], item["T"], item["n"]
        abar = abar_of(total, item["start"], item["end"], SCHEDULE[item["kind"]])
        outputs[f"{name}.base.betas"] = schedule(DDPM(abar))["betas"]
        outputs[f"{name}.base.alphas_cumprod"] = abar
        for rule, kept in {"resshift": respaced(total, n), "guided": guided_map(total, n)}.items():
            outputs |= {
                f"{name}.{rule}.{key}": value for key, value in schedule(DDPM(abar, kept)).items()
            }
        for rule, spacing in {"ddim_uniform": "ldm", "ddim_quad": "ldm_quad"}.items():
            sampling = Sampling(kind="ddim", steps=n, spacing=spacing, end="first", eta=1.0)
            outputs |= {
                f"{name}.ldm.{rule}.{key}": value
                for key, value in ldm_tables(DDPM(abar), sampling).items()
            }
        process = DDPM(abar, respaced(total, n))
        for official, variance in VARIANCE.items():
            positions = io[f"out.{name}.loop_{official}.positions"]
            outputs[f"{name}.loop_{official}.positions"] = positions
            outputs[f"{name}.loop_{official}.samples"] = loop(process, variance, case["dummy"], io)[
                positions
            ]
    return outputs


def schedule(process: DDPM) -> dict[str, Tensor]:
    """The official arrays, from the process's numbers."""
    t = torch.arange(process.num_timesteps)
    variance = process.posterior_variance(t, t - 1).flatten()
    on_z0, on_zt = (factor.flatten() for factor in process.posterior_factors(t, t - 1))
    a, a_prev = (process.a(index, torch.float64).flatten() for index in (t, t - 1))
    return {
        "timestep_map": process.model_t(t),
        "betas": process.forward_variance(t, t - 1).flatten(),
        "alphas_cumprod": a**2,
        "alphas_cumprod_prev": a_prev**2,
        "posterior_variance": variance,
        "posterior_log_variance_clipped": torch.cat([variance[1:2], variance[1:]]).log(),
        "posterior_mean_coef1": on_z0,
        "posterior_mean_coef2": on_zt,
        "sqrt_alpha_bar_noise_level": a,
    }


def guided_map(total: int, n: int) -> Tensor:
    """guided-diffusion's space_timesteps(T, [n]): banker's rounding of an accumulated stride, both
    ends kept.
    """
    stride = 1.0 if n <= 1 else (total - 1) / (n - 1)
    position, kept = 0.0, []
    for _ in range(n):
        kept.append(round(position))
        position += stride
    return torch.tensor(kept)


def ldm_tables(process: DDPM, sampling: Sampling) -> dict[str, Tensor]:
    """Rising. Where the last step lies outside of the schedule the official tables do not exist."""
    steps = spaced(process.num_timesteps, sampling.steps, sampling)[::-1]
    if steps[-1] >= process.num_timesteps:
        return {"timesteps": torch.tensor(steps)}
    path = path_of(process, sampling)
    sigma = SAMPLERS["ddim"].factors(process, path, sampling)[-1].flatten().flip(0)
    return {
        "timesteps": path.t.flip(0),
        "sigmas_eta0": 0 * sigma,
        "sigmas_eta1": sigma,
        "alphas": path.here.a.flatten().flip(0) ** 2,
        "alphas_prev": path.there.a.flatten().flip(0) ** 2,
    }


def loop(process: DDPM, variance: str, dummy: list[float], io: dict[str, Tensor]) -> Tensor:
    """The ancestral trajectory [n,B,C,h,w], largest t first, z0 clipped to [-1, 1]."""
    network = stand_in(dummy, unit=10)
    denoiser = PlainDenoiser(
        lambda z_t, t, cond: network(z_t, process.model_t(t), cond), process, "eps"
    )
    inputs, noise = Inputs(torch.zeros_like(io["in.x_T"]), (io["in.lq"],)), [io["in.x_T"]]
    noise += list(io["in.step_noise"])
    sampling = Sampling(kind="ancestral", variance=variance)
    trajectory = sample_steps(denoiser, inputs, sampling, noise.__getitem__, clip=1.0)
    return torch.stack([step.z_t for step in trajectory])
