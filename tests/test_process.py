"""Laws of the processes: what follows from a, b, s must agree with the papers and with itself."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from ldm_dream.config.process import DDPMConfig, FlowConfig, ResidualShiftConfig
from ldm_dream.loss import ERRORS
from ldm_dream.process import (
    DDPM,
    PREDICTIONS,
    ProcessError,
    ResidualShift,
    build_process,
)
from ldm_dream.schedules import abar_of, exponential_sqrt_eta
from runs import said

F64 = torch.float64


def batch(process, steps):
    """z0, z_lr, eps in float64 with one sample a step, and z_t."""
    generator = torch.Generator().manual_seed(1)
    z0, z_lr, eps = torch.randn(3, len(steps), 2, 3, 3, dtype=F64, generator=generator)
    return z0, z_lr, eps, process.q_sample(z0, z_lr, eps, steps)


def steps_of(process, prediction="z0"):
    """All steps at which `prediction` determines z0: for eps those that are not pure noise."""
    t = torch.arange(process.num_timesteps)
    return t[process.a(t, F64).flatten() > 0] if "eps" in prediction else t


# -------------------------------------------------------------------------------------- conversions


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_true_outputs_give_back_z0_and_eps(process, prediction):
    t = steps_of(process, prediction)
    z0, z_lr, eps, z_t = batch(process, t)
    output = said(prediction, z0, eps, z_lr, process.at(t, F64))
    for convert, truth in ((process.to_z0, z0), (process.to_eps, eps)):
        torch.testing.assert_close(
            convert(output, z_t, z_lr, t, prediction), truth, rtol=1e-8, atol=1e-8
        )


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_any_output_survives_the_round_trip_through_z0_and_eps(process, prediction):
    t = steps_of(process, "eps")
    _, z_lr, _, z_t = batch(process, t)
    output = torch.randn(z_t.shape, dtype=F64, generator=torch.Generator().manual_seed(2))

    def as_said(kind, given, what):
        z0, eps = (to(what, z_t, z_lr, t, given) for to in (process.to_z0, process.to_eps))
        return said(kind, z0, eps, z_lr, process.at(t, F64))

    for via in PREDICTIONS:
        back = as_said(prediction, via, as_said(via, prediction, output))
        torch.testing.assert_close(back, output, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_error_of_an_output_is_that_of_its_z0_times_a_factor(process, prediction):
    if (error := ERRORS.get(prediction)) is None:
        return
    t = steps_of(process, prediction)
    z0, z_lr, eps, z_t = batch(process, t)
    at = process.at(t, F64)
    right, wrong = said(prediction, z0, eps, z_lr, at), torch.rand(z_t.shape, dtype=F64)
    of_z0 = (process.to_z0(wrong, z_t, z_lr, t, prediction) - z0).abs()
    torch.testing.assert_close(error(at) * of_z0, (wrong - right).abs(), rtol=1e-7, atol=1e-7)


def test_eps_at_pure_noise_is_refused_and_v_gives_z0():
    process, last = build_process(FlowConfig(num_timesteps=5)), torch.tensor([4])
    z0, z_lr, eps, z_t = batch(process, last)
    process.refuse_blind("eps", [3, 0])
    process.refuse_blind("v", [4])
    with pytest.raises(ProcessError, match="use prediction 'v' or 'z0'"):
        process.refuse_blind("eps", [4, 2])
    torch.testing.assert_close(process.to_z0(-z0, z_t, z_lr, last, "v"), z0)


def test_unknown_prediction_is_refused(process):
    t = torch.tensor([0])
    z0, z_lr, _, z_t = batch(process, t)
    for convert in (process.to_z0, process.to_eps):
        with pytest.raises(ProcessError, match="use one of eps, z0, v"):
            convert(z0, z_t, z_lr, t, "x0")


# ---------------------------------------------------------------------------------------- posterior


def test_posterior_is_bayes_rule(process):
    """p(z_u | z0) = N(a_u z0 + b_u z_lr, s_u^2) times p(z_t | z_u) = N(carry z_u + shift, forward
    variance).
    """
    t = torch.arange(1, process.num_timesteps)
    u = torch.div(t, 2, rounding_mode="floor")  # jumps of many sizes
    z0, z_lr, _, z_t = batch(process, t)
    mean_u = process.a(u, F64) * z0 + process.b(u, F64) * z_lr
    carry, added = process.carry(t, u), process.forward_variance(t, u)
    shift = process.a(t, F64) * z0 + process.b(t, F64) * z_lr - carry * mean_u
    precision = 1 / process.s(u, F64) ** 2 + carry**2 / added
    mean, variance = process.posterior(z0, z_t, t, u)
    wanted = (mean_u / process.s(u, F64) ** 2 + carry * (z_t - shift) / added) / precision
    torch.testing.assert_close(variance, 1 / precision, rtol=1e-7, atol=1e-12)
    torch.testing.assert_close(mean, wanted, rtol=1e-7, atol=1e-7)


def test_ddpm_posterior_is_the_published_one():
    process = build_process(DDPMConfig())
    betas = np.linspace(1e-6, 1e-2, 2000)
    abar = np.cumprod(1 - betas)
    abar_prev = np.append(1.0, abar[:-1])
    t = torch.arange(2000)
    on_z0, on_zt = (factor.flatten().numpy() for factor in process.posterior_factors(t, t - 1))
    # Ho 2020, Eq. 7
    np.testing.assert_allclose(on_z0, betas * np.sqrt(abar_prev) / (1 - abar), rtol=1e-8)
    np.testing.assert_allclose(on_zt, (1 - abar_prev) * np.sqrt(1 - betas) / (1 - abar), rtol=1e-8)
    variance = process.posterior_variance(t, t - 1).flatten().numpy()
    np.testing.assert_allclose(
        variance, betas * (1 - abar_prev) / (1 - abar), rtol=1e-7, atol=1e-14
    )
    np.testing.assert_allclose(
        process.forward_variance(t, t - 1).flatten().numpy(), betas, rtol=1e-7
    )


@pytest.mark.parametrize("steps, noise_level", [(15, 0.04), (4, 0.2)])
def test_resshift_posterior_is_the_published_one(steps, noise_level):
    process = build_process(ResidualShiftConfig(num_timesteps=steps, min_noise_level=noise_level))
    t = torch.arange(steps)
    z0, _, _, z_t = batch(process, t)
    eta, eta_prev = process.b(t, F64), process.b(t - 1, F64)
    alpha = eta - eta_prev
    mean, variance = process.posterior(z0, z_t, t, t - 1)
    torch.testing.assert_close(mean, eta_prev / eta * z_t + alpha / eta * z0)  # ResShift, Eq. 7
    torch.testing.assert_close(variance, 4 * eta_prev / eta * alpha)


def test_last_step_is_the_clean_end_without_noise(process):
    t = torch.arange(process.num_timesteps)
    z0, _, _, z_t = batch(process, t)
    mean, variance = process.posterior(z0, z_t, t, torch.full_like(t, -1))
    assert torch.equal(mean, z0)
    assert torch.equal(variance, torch.zeros_like(variance))


# ---------------------------------------------------------------------------------------- schedules


def test_noise_and_weight_grow_within_their_range(process):
    t = torch.arange(process.num_timesteps)
    for values in (process.s(t, F64).flatten(), process.weight(t, F64).flatten()):
        assert (values.diff() > 0).all()
        assert values[0] > 0
    assert process.weight(t, F64).max() <= 1
    assert (process.a(t, F64).flatten().diff() < 0).all()


def test_sr3_schedule_has_its_published_ends():
    process = build_process(DDPMConfig())
    abar = process.a(torch.tensor([0, 1999]), F64).flatten() ** 2
    assert abar.tolist() == pytest.approx([0.999999, 4.386e-5], rel=1e-3)


def test_respaced_ddpm_keeps_marginals_and_shows_the_original_step():
    full, process = build_process(DDPMConfig()), build_process(DDPMConfig(respace=50))
    t = torch.arange(50)
    assert process.num_timesteps == 50
    assert process.model_t(t).tolist() == list(range(0, 2000, 40))
    assert torch.equal(process.a(t, F64), full.a(40 * t, F64))
    betas = process.forward_variance(t, t - 1).flatten()
    assert betas[[0, 1, 2, 49]].tolist() == pytest.approx([1e-6, 0.00413, 0.0121, 0.323], rel=5e-3)


def test_sqrt_linear_schedule_is_ldms():
    process = build_process(
        DDPMConfig(num_timesteps=1000, beta_start=0.0015, beta_end=0.0155, schedule="sqrt_linear")
    )
    abar = process.a(torch.tensor([0, 999]), F64).flatten() ** 2
    assert abar.tolist() == pytest.approx([0.9985, 6.687e-4], rel=1e-3)


def official_betas(schedule: str, total: int, start: float, end: float) -> np.ndarray:
    """make_beta_schedule of SR3's code, in its own words' formulas."""
    betas = np.full(total, end)
    if schedule in ("warmup10", "warmup50"):
        share = int(total * float(schedule[-2:]) / 100)
        betas[:share] = np.linspace(start, end, share)
    if schedule == "jsd":
        betas = 1.0 / np.linspace(total, 1, total)
    if schedule == "cosine":
        places = np.arange(total + 1) / total + 0.008
        left = np.cos(places / 1.008 * np.pi / 2) ** 2
        betas = np.minimum(1 - left[1:] / left[:-1], 0.999)
    return betas


@pytest.mark.parametrize("schedule", ["warmup10", "warmup50", "const", "jsd", "cosine"])
def test_sr3s_other_schedules(schedule):
    cfg = DDPMConfig(num_timesteps=55, schedule=schedule)
    process, t = build_process(cfg), torch.arange(55)
    abar = np.cumprod(1 - official_betas(schedule, 55, cfg.beta_start, cfg.beta_end))
    found = process.a(t, F64).flatten().numpy() ** 2
    np.testing.assert_allclose(found, abar, rtol=1e-12, atol=1e-16)
    assert (54 in process.blind) == (schedule == "jsd")


@pytest.mark.parametrize(
    "schedule, knob", [("const", "beta_start"), ("jsd", "beta_end"), ("cosine", "beta_start")]
)
def test_an_end_that_a_schedule_does_not_read_is_refused(schedule, knob):
    with pytest.raises(ValidationError, match=f"{knob} has no effect with schedule={schedule}"):
        DDPMConfig.model_validate({"schedule": schedule, knob: 0.02})


def test_a_schedule_that_stays_at_its_end_leaves_something_of_the_picture():
    with pytest.raises(ValidationError, match="leaves nothing of the picture"):
        DDPMConfig(num_timesteps=2000, beta_end=0.05, schedule="const")
    DDPMConfig(num_timesteps=2000, beta_end=0.05)


def test_resshift_schedules_are_the_published_ones():
    v1 = "0.02 .117165 .176305 .233629 .291574 .351009 .412356 .475858 .541672 .60991 .680658 .753985 .829951 .908606 .99"
    v3 = "0.1 .520096 .761382 .99"
    for cfg, wanted in (
        (ResidualShiftConfig(), v1),
        (ResidualShiftConfig(num_timesteps=4, min_noise_level=0.2), v3),
    ):
        process = build_process(cfg)
        t = torch.arange(process.num_timesteps)
        assert process.weight(t).flatten().tolist() == pytest.approx(
            [float(x) for x in wanted.split()], abs=1e-6
        )
        torch.testing.assert_close(process.s(t), 2 * process.weight(t))


@settings(max_examples=30, deadline=None)
@given(
    total=st.integers(2, 40),
    start=st.floats(1e-3, 0.5),
    end=st.floats(0.6, 0.999),
    power=st.floats(0.1, 3),
)
def test_exponential_schedule_runs_from_start_to_end(total, start, end, power):
    sqrt_eta = exponential_sqrt_eta(total, start, end, power)
    assert sqrt_eta[[0, -1]].tolist() == pytest.approx([start, end])
    assert (sqrt_eta.diff() >= 0).all()


def test_flow_is_a_straight_line_to_pure_noise():
    process = build_process(FlowConfig(num_timesteps=4))
    t = torch.arange(4)
    assert process.s(t).flatten().tolist() == [0.25, 0.5, 0.75, 1.0]
    assert torch.equal(process.a(t), 1 - process.s(t))


@pytest.mark.parametrize("steps", [2001, 5000])
def test_respacing_to_more_steps_than_there_are_is_refused(steps):
    with pytest.raises(ValueError, match=f"respace={steps} .* num_timesteps=2000"):
        DDPMConfig(respace=steps)


# ------------------------------------------------------------------------------ network and tensors


def test_resshift_input_is_divided_by_its_spread_and_others_are_left_alone(process):
    t = torch.tensor([process.num_timesteps // 2])
    z_t = torch.ones(1, 1, 2, 2, dtype=F64)
    wanted = z_t / (1 + 4 * process.b(t, F64)).sqrt() if isinstance(process, ResidualShift) else z_t
    torch.testing.assert_close(process.model_input(z_t, t), wanted)


def test_pixels_are_brought_into_their_range():
    process = build_process(ResidualShiftConfig(latent_flag=False))
    t = torch.arange(15)
    z_t = torch.ones(15, 3, 2, 2)
    wanted = 1 / (1 + 3 * 2.0 * process.weight(t))
    torch.testing.assert_close(process.model_input(z_t, t), wanted.expand_as(z_t))
    with pytest.raises(ValidationError, match="latent_flag=false has no effect"):
        ResidualShiftConfig(latent_flag=False, normalize_input=False)


def test_normalize_input_off_leaves_the_input():
    z_t = torch.ones(1, 1, 2, 2)
    assert (
        build_process(ResidualShiftConfig(normalize_input=False)).model_input(
            z_t, torch.tensor([3])
        )
        is z_t
    )


def test_prior_is_noise_around_z_lr_for_resshift_and_noise_alone_else(process):
    z_lr, eps = (
        torch.full((2, 1, 2, 2), 5.0),
        torch.randn(2, 1, 2, 2, generator=torch.Generator().manual_seed(0)),
    )
    wanted = z_lr + 2 * 0.99 * eps if isinstance(process, ResidualShift) else eps
    torch.testing.assert_close(process.prior(z_lr, eps), wanted)


def test_coefficients_are_float64_rounded_once_and_follow_t(process):
    t = torch.arange(process.num_timesteps)
    for number in (process.a, process.b, process.s, process.weight):
        assert number(t).shape == (len(t), 1, 1, 1)
        assert torch.equal(number(t), number(t, F64).float())
        assert number(t.to("meta")).device.type == "meta"
    assert process.model_t(t.to("meta")).device.type == "meta"


def test_half_precision_latents_do_not_round_the_coefficients(process):
    t = torch.tensor([0])
    z = torch.ones(1, 1, 2, 2, dtype=torch.bfloat16)
    assert torch.equal(process.q_sample(z, 0 * z, 0 * z, t), process.a(t).expand(1, 1, 2, 2))


def test_step_beyond_the_last_is_an_error(process):
    with pytest.raises(IndexError):
        process.a(torch.tensor([process.num_timesteps]))


def test_continuous_steps_lie_between_their_neighbours_and_meet_them():
    process = DDPM(abar_of(50, 1e-3, 0.2), continuous=True)
    whole = torch.arange(-1, 50)
    for factor in (process.a, process.s, process.weight):
        torch.testing.assert_close(
            factor(whole.double(), torch.float64),
            factor(whole, torch.float64),
            atol=1e-12,
            rtol=1e-9,
        )
    middle = process.a(torch.tensor([6.5]), torch.float64)
    ends = process.a(torch.tensor([6, 7]), torch.float64)
    torch.testing.assert_close(middle[0], ends.mean(0))
    torch.testing.assert_close(
        middle**2 + process.s(torch.tensor([6.5]), torch.float64) ** 2, torch.ones_like(middle)
    )


def test_continuous_training_shares_one_step_and_places_each_sample_in_it():
    process = DDPM(abar_of(50, 1e-3, 0.2), continuous=True)
    generator = torch.Generator().manual_seed(0)
    draws = torch.stack([process.draw(8, generator) for _ in range(400)])
    assert (draws.ceil() - draws.ceil()[:, :1]).abs().max() == 0  # one step a batch
    assert draws.min() >= -1 and draws.max() <= 49 and draws.ceil().unique().numel() == 50
    assert draws[0].unique().numel() == 8
    assert DDPM(abar_of(50, 1e-3, 0.2)).draw(8, generator).dtype == torch.int64
