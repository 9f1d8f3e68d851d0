"""Golden runner of DREAM against diffusers' compute_dream_and_update_latents (epsilon prediction)."""

from __future__ import annotations

import torch
from torch import Tensor

from dream_kernels import dream_rectify
from golden.closed_form import stand_in
from golden.reading import Case
from ldm_dream.config.process import Dream
from ldm_dream.denoiser import Inputs
from ldm_dream.loss import estimate
from ldm_dream.process import DDPM
from ldm_dream.schedules import abar_of
from runs import PlainDenoiser, said

SCHEDULE = {
    "linear": "linear",
    "scaled_linear": "sqrt_linear",
    "squaredcos_cap_v2": "cosine",
}


def scheduler_abar(kwargs: Case) -> Tensor:
    """diffusers' scheduler arguments -> abar, float64."""
    schedule = SCHEDULE[kwargs.get("beta_schedule", "linear")]
    return abar_of(
        kwargs["num_train_timesteps"], kwargs["beta_start"], kwargs["beta_end"], schedule
    )


def run(case: Case, io: dict[str, Tensor], weights: dict[str, Tensor]) -> dict[str, Tensor]:
    case["construct"].only(scheduler="DDPMScheduler")
    kwargs = case["construct"]["kwargs"]
    kwargs.only(prediction_type="epsilon")  # diffusers has DREAM for no other
    abar = scheduler_abar(kwargs)
    process, network = DDPM(abar), stand_in(case["dummy"], unit=1000)
    z0, eps, t = io["in.x0"], io["in.noise"], io["in.timesteps"]
    cond = io["in.encoder_hidden_states"].mean((1, 2))[:, None, None, None]
    z_lr = torch.zeros_like(z0)
    z_t = process.q_sample(z0, z_lr, eps, t)
    outputs = {
        "noisy_latents": z_t,
        "alphas_cumprod": abar.float(),
        "pred": network(z_t, t, cond),
        "v_target": said("v", z0, eps, z_lr, process.at(t)),
    }
    for p in case["construct"]["dream_detail_preservation"]:
        denoiser, inputs = PlainDenoiser(network, process, "eps"), Inputs(z_lr, (cond,))
        eps_hat, lam = estimate(denoiser, z_t, t, inputs, Dream(strength=1.0, p=p))
        noisy = dream_rectify(z_t, eps, eps_hat, process.s(t), lam)
        outputs |= {f"p{p:g}.noisy": noisy, f"p{p:g}.target": eps + lam * (eps - eps_hat)}
    return outputs
