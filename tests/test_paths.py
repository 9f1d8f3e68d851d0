"""Spacings of steps: those of diffusers and LDM, held to their own code or its words."""

import itertools

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from ldm_dream.config.process import DDPMConfig, FlowConfig, Sampling
from ldm_dream.denoiser import Inputs
from ldm_dream.process import DDPM, build_process
from ldm_dream.sampler import SamplerError, path_of, plan, sample_steps
from runs import PlainDenoiser

BETAS = {"beta_start": 1e-4, "beta_end": 0.02}
X, *NOISE = torch.randn(22, 1, 2, 3, 3, generator=torch.Generator().manual_seed(0))


def network(z_t, t, cond=None):
    return torch.tanh(0.7 * z_t + 0.001 * t[:, None, None, None] + 0.1)


def ours(scheduler, prediction: str, **knobs) -> tuple[list[int], torch.Tensor]:
    process = DDPM(scheduler.alphas_cumprod.double())
    denoiser = PlainDenoiser(network, process, prediction)
    inputs = Inputs(torch.zeros_like(X), (torch.zeros(()),))
    steps = list(sample_steps(denoiser, inputs, Sampling(**knobs), [X, *NOISE].__getitem__))
    return [step.t for step in steps], steps[-1].z_t


def theirs(scheduler, steps: int, **each) -> tuple[list[int], torch.Tensor]:
    scheduler.set_timesteps(steps)
    z = X
    for k, t in enumerate(scheduler.timesteps):
        noise = {"variance_noise": NOISE[k]} if each.get("eta") else {}
        z = scheduler.step(network(z, t[None]), t, z, **each, **noise).prev_sample
    return scheduler.timesteps.tolist(), z


def same(one, other) -> None:
    assert one[0] == other[0]
    torch.testing.assert_close(one[1], other[1], rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("clean", [True, False])
def test_ddim_has_the_steps_of_diffusers_and_where_they_lead(spacing, eta, clean):
    """Also where the steps that they lead to are not those that follow."""
    diffusers = pytest.importorskip("diffusers")
    for total, steps, offset in ((1000, 10, 1), (997, 8, 0)):
        offset = offset if spacing == "leading" else 0
        scheduler = diffusers.DDIMScheduler(
            total, **BETAS, clip_sample=False, set_alpha_to_one=clean, steps_offset=offset
        )
        scheduler.register_to_config(timestep_spacing=spacing)
        knobs = {"kind": "ddim", "steps": steps, "spacing": spacing, "eta": eta}
        knobs |= {"steps_offset": offset, "end": "clean" if clean else "first"}
        same(ours(scheduler, "eps", **knobs), theirs(scheduler, steps, eta=eta))


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace", "karras"])
@pytest.mark.parametrize("solver", ["midpoint", "heun"])
@pytest.mark.parametrize("final", ["zero", "sigma_min"])
def test_dpm_solver_has_the_options_of_diffusers(spacing, solver, final):
    diffusers = pytest.importorskip("diffusers")
    for lower, euler, steps in itertools.product((True, False), (True, False), (6, 17)):
        scheduler = diffusers.DPMSolverMultistepScheduler(
            1000, **BETAS, solver_type=solver, final_sigmas_type=final, lower_order_final=lower
        )
        scheduler.register_to_config(
            euler_at_final=euler,
            use_karras_sigmas=spacing == "karras",
            timestep_spacing="linspace" if spacing == "karras" else spacing,
        )
        knobs = {"kind": "dpm-solver++", "steps": steps, "spacing": spacing, "solver_type": solver}
        if final == "sigma_min":  # else the last step is of first order in any case
            knobs |= {"end": "first", "lower_order_final": lower, "euler_at_final": euler}
        wanted = theirs(scheduler, steps)
        if wanted[1].isfinite().all():  # their heun divides 0 by 0 where the last sigma comes twice
            same(ours(scheduler, "eps", **knobs), wanted)
        else:
            assert (spacing, solver, final) == ("karras", "heun", "sigma_min")
            assert ours(scheduler, "eps", **knobs)[1].isfinite().all()


@pytest.mark.parametrize("total, steps", [(2000, 50), (1000, 7), (1000, 30)])
def test_ldms_uniform_and_quad(total, steps):
    """make_ddim_timesteps and make_ddim_sampling_parameters of its code, formula by formula."""
    process = build_process(DDPMConfig(num_timesteps=total))
    uniform = np.arange(0, total, total // steps) + 1
    quad = (np.linspace(0, np.sqrt(total * 0.8), steps) ** 2).astype(int) + 1
    abar = process.a(torch.arange(total), torch.float64).flatten() ** 2
    for spacing, wanted in (("ldm", uniform), ("ldm_quad", quad)):
        sampling = Sampling(kind="ddim", steps=steps, spacing=spacing, end="first", eta=1.0)
        path = path_of(process, sampling)
        assert path.t.tolist() == wanted[::-1].tolist()
        before = torch.cat([abar[:1], abar[wanted[:-1]]]).flip(0)
        torch.testing.assert_close(path.there.a.flatten() ** 2, before)
    assert len(uniform) == steps + (total % steps != 0)


def test_a_step_of_ldms_outside_the_schedule_is_refused():
    process = build_process(DDPMConfig(num_timesteps=1000))
    with pytest.raises(
        SamplerError, match=r"steps=999 with spacing ldm: \[1000, 999, .* 999 \.\. 0"
    ):
        plan(process, Sampling(kind="ddim", steps=999, spacing="ldm"))


def test_karras_sigmas_want_an_end_that_is_no_pure_noise():
    sampling = Sampling(kind="dpm-solver++", steps=5, spacing="karras")
    with pytest.raises(
        SamplerError, match="karras does not fit Flow, whose last step is pure noise"
    ):
        plan(build_process(FlowConfig()), sampling)


@pytest.mark.parametrize(
    "knobs, text",
    [
        ({"spacing": "leading"}, "spacing=leading has no effect with kind=ancestral, steps=None"),
        ({"spacing": "karras", "steps": 5}, "spacing=karras has no effect with kind=ancestral"),
        ({"steps_offset": 1, "steps": 5}, "steps_offset=1 has no effect with .* spacing=even"),
        ({"end": "first"}, "end=first has no effect with kind=ancestral"),
        ({"kind": "ddim", "solver_type": "heun"}, "solver_type=heun has no effect with kind=ddim"),
        ({"kind": "ddim", "euler_at_final": True}, "euler_at_final=True has no effect"),
        (
            {"kind": "dpm-solver++", "lower_order_final": False},
            "lower_order_final=False .* end=clean",
        ),
        (
            {"kind": "dpm-solver++", "steps": 5, "spacing": "ldm_quad"},
            "spacing=ldm_quad has no effect",
        ),
    ],
)
def test_a_knob_that_is_not_read_is_refused(knobs, text):
    with pytest.raises(ValidationError, match=text):
        Sampling(**knobs)
