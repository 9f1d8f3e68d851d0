"""Golden runner of ddim and dpm-solver++ against diffusers' DDIMScheduler and
DPMSolverMultistepScheduler.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from golden.closed_form import stand_in
from golden.diffusers_dream import scheduler_abar
from golden.reading import Case
from ldm_dream.config.process import Sampling
from ldm_dream.denoiser import Inputs
from ldm_dream.process import DDPM
from ldm_dream.sampler import path_of, sample_steps
from runs import PlainDenoiser

PREDICTION = {"epsilon": "eps", "sample": "z0", "v_prediction": "v"}
# what the library does; another value is another algorithm, and the case then fails here by name
SAME = {
    "ddim": {"thresholding": False, "rescale_betas_zero_snr": False, "trained_betas": None},
    "dpm": {"algorithm_type": "dpmsolver++", "solver_order": 2}
    | dict.fromkeys(["use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas"], False)
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
# what then changes nothing
IDLE = {
    "ddim": ("dynamic_thresholding_ratio", "sample_max_value"),
    "dpm": ("dynamic_thresholding_ratio", "sample_max_value", "flow_shift", "time_shift_type"),
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
        sampling = asked(config, kind, item["n"], item.get("eta", 0.0))
        # diffusers' float32 abar, stored with the case, so that the sampler is tested apart from
        # the schedule's precision
        process = DDPM(io[f"out.{name}.alphas_cumprod"].double())
        prediction = PREDICTION[config["prediction_type"]]
        denoiser = PlainDenoiser(stand_in(case["dummy"], unit=1000), process, prediction)
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
            path = path_of(process, sampling)
            sigmas = [(at.s / at.a).flatten() for at in (path.here, path.there)]
            outputs[f"{name}.sigmas"] = torch.cat([sigmas[0], sigmas[1][-1:]]).float()
    return outputs


def asked(config: Case, kind: str, steps: int, eta: float) -> Sampling:
    """diffusers' scheduler arguments -> our sampler."""
    spacing = config["timestep_spacing"]
    knobs = {"kind": KIND[kind], "steps": steps, "spacing": spacing, "eta": eta}
    if spacing == "leading":
        knobs["steps_offset"] = config["steps_offset"]
    if kind == "ddim":
        return Sampling(**knobs, end="clean" if config["set_alpha_to_one"] else "first")
    if config.get("use_karras_sigmas"):
        if config["beta_schedule"] == "squaredcos_cap_v2":  # diffusers then cuts steps, not rounds
            config.only(use_karras_sigmas=False)
        knobs |= {"spacing": "karras", "steps_offset": 0}
    knobs["solver_type"] = config["solver_type"]
    knobs["end"] = {"zero": "clean", "sigma_min": "first"}[config["final_sigmas_type"]]
    for name in ("lower_order_final", "euler_at_final"):
        value = config[name]
        if knobs["end"] == "first":  # else the last step is of first order in any case
            knobs[name] = value
    return Sampling.model_validate(knobs)
