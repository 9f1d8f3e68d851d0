"""Golden runner of ddim and dpm-solver++ against diffusers' DDIMScheduler and
DPMSolverMultistepScheduler.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from golden.closed_form import stand_in
from golden.diffusers_dream import scheduler_abar
from golden.reading import Case
from ldm_dream.config.process import Sampling
from ldm_dream.denoiser import Inputs
from ldm_dream.process import DDPM
from ldm_dream.sampler import sample_steps
from runs import PlainDenoiser

PREDICTION = {"epsilon": "eps", "sample": "z0", "v_prediction": "v"}
# what the library does; another value is another algorithm, and the case then fails here by name
SAME = {
    "ddim": {
        "set_alpha_to_one": True,
        "thresholding": False,
        "rescale_betas_zero_snr": False,
        "trained_betas": None,
    },
    "dpm": {
        "algorithm_type": "dpmsolver++",
        "solver_order": 2,
        "solver_type": "midpoint",
        "final_sigmas_type": "zero",
    }
    | dict.fromkeys(
        ["use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas"], False
    )
    | {
        "thresholding": False,
        "rescale_betas_zero_snr": False,
        "use_flow_sigmas": False,
        "use_dynamic_shifting": False,
        "lambda_min_clipped": -math.inf,
        "variance_type": None,
        "trained_betas": None,
    },
}
# what then changes nothing; where sigmas end at zero, the last step is of first order anyway
IDLE = {
    "ddim": ("dynamic_thresholding_ratio", "sample_max_value"),
    "dpm": ("dynamic_thresholding_ratio", "sample_max_value", "lower_order_final")
    + ("euler_at_final", "flow_shift", "time_shift_type"),
}
KIND = {"ddim": "ddim", "dpm": "dpm-solver++"}


def run(case: Case, io: dict[str, Tensor], weights: dict[str, Tensor]) -> dict[str, Tensor]:
    outputs = {}
    defaults = case["construct"]["full_configs_including_defaults"]
    for item in case["construct"]["items"]:
        name, kind = item["name"], item["type"]
        config = item.join("config", defaults[name], item["kwargs"])
        config.only(**SAME[kind])
        config.known(*IDLE[kind], "steps_offset", "clip_sample_range")  # read where they count
        steps = (ddim_timesteps if kind == "ddim" else dpm_timesteps)(config, item["n"])
        # diffusers' float32 abar, stored with the case, so that the sampler is tested apart from
        # the schedule's precision
        process = DDPM(io[f"out.{name}.alphas_cumprod"].double())
        prediction = PREDICTION[config["prediction_type"]]
        denoiser = PlainDenoiser(stand_in(case["dummy"], unit=1000), process, prediction)
        sampling = Sampling(kind=KIND[kind], steps=tuple(steps), eta=item.get("eta", 0.0))
        inputs = Inputs(torch.zeros_like(io["in.x_T"]), (torch.zeros(()),))
        clip = config["clip_sample_range"] if config.get("clip_sample") else None
        noise = [io["in.x_T"], *io["in.step_noise"]]
        trajectory = list(sample_steps(denoiser, inputs, sampling, noise.__getitem__, clip))
        outputs[f"{name}.timesteps"] = torch.tensor([step.t for step in trajectory])
        outputs[f"{name}.latents"] = torch.stack([step.z_t for step in trajectory])
        outputs[f"{name}.alphas_cumprod"] = scheduler_abar(config).float()
        if kind == "ddim":
            outputs[f"{name}.pred_original_sample"] = torch.stack(
                [step.z0_hat for step in trajectory]
            )
        else:
            at = torch.tensor([*steps, -1])
            outputs[f"{name}.sigmas"] = (
                (process.s(at, torch.float64) / process.a(at, torch.float64)).flatten().float()
            )
    return outputs


def ddim_timesteps(config: Case, n: int) -> list[int]:
    """diffusers steps back by T // n, whatever the spacing: only lists that do the same are one
    algorithm with ours.
    """
    total, spacing = config["num_train_timesteps"], config["timestep_spacing"]
    if spacing == "linspace":
        steps = np.linspace(0, total - 1, n).round()[::-1]
    elif spacing == "leading":
        steps = (np.arange(n) * (total // n))[::-1] + config["steps_offset"]
    else:
        steps = np.round(np.arange(total, 0, -total / n)) - 1
    steps = [int(t) for t in steps]
    jumps = {t - u for t, u in zip(steps, steps[1:])}
    assert jumps <= {total // n} and steps[-1] < total // n, (
        f"{spacing}: diffusers' own steps do not meet each other"
    )
    return steps


def dpm_timesteps(config: Case, n: int) -> list[int]:
    total, spacing = config["num_train_timesteps"], config["timestep_spacing"]
    if spacing == "linspace":
        steps = np.linspace(0, total - 1, n + 1).round()[::-1][:-1]
    elif spacing == "leading":
        steps = (np.arange(n + 1) * (total // (n + 1)))[::-1][:-1] + config["steps_offset"]
    else:
        steps = np.arange(total, 0, -total / n).round() - 1
    return [int(t) for t in steps]
