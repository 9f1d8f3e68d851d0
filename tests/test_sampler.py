"""Laws of the samplers: they agree with each other where the papers say so, and with closed forms
where there are some.
"""

import math

import pytest
import torch

from ldm_dream.config.process import (
    DDPMConfig,
    FlowConfig,
    RegressionConfig,
    ResidualShiftConfig,
    Sampling,
)
from ldm_dream.denoiser import Inputs
from ldm_dream.process import build_process
from ldm_dream.sampler import SamplerError, gaussian, sample, sample_steps, timesteps
from runs import PlainDenoiser, said

F64 = torch.float64
SHAPE = (2, 3, 4, 4)


def field(k, dtype=F64):
    """Noise by number."""
    return torch.randn(SHAPE, dtype=dtype, generator=torch.Generator().manual_seed(100 + k))


def guess(z_t, t, cond):
    """A z0 that depends on everything."""
    return torch.tanh(0.4 * z_t + 0.01 * t[:, None, None, None] + 0.3 * cond)


def walk(denoise, process, z_lr, cond, *, prediction="z0", noise=field, clip=None, **sampling):
    """The trajectory of a function as denoiser."""
    denoiser, inputs = PlainDenoiser(denoise, process, prediction), Inputs(z_lr, (cond,))
    return sample_steps(denoiser, inputs, Sampling(**sampling), noise, clip)


def end(denoise, process, z_lr, cond, *, prediction="z0", noise=field, clip=None, **sampling):
    denoiser, inputs = PlainDenoiser(denoise, process, prediction), Inputs(z_lr, (cond,))
    return sample(denoiser, inputs, Sampling(**sampling), noise, clip)


@pytest.fixture
def z_lr():
    return torch.full(SHAPE, 0.5, dtype=F64)


@pytest.fixture
def cond():
    return field(99)


# ---------------------------------------------------------------------------------------- agreement


@pytest.mark.parametrize("steps", [None, 3, 1])
def test_ddim_with_eta_one_is_ancestral(process, z_lr, cond, steps):
    steps = min(process.num_timesteps, 20) if steps is None else steps
    runs = [
        list(
            walk(
                guess,
                process,
                z_lr,
                cond,
                prediction="z0",
                kind=kind,
                steps=steps,
                eta=1.0,
                noise=field,
            )
        )
        for kind in ("ddim", "ancestral")
    ]
    for ddim, ancestral in zip(*runs):
        torch.testing.assert_close(ddim.z_t, ancestral.z_t, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_ddim_adds_noise_of_eta_times_the_posterior_deviation(process, z_lr, cond, eta):
    """Two runs that differ only in the step's noise part by sigma times the difference of the
    noises.
    """
    path = timesteps(process, Sampling(steps=3))

    def first(other):
        run = walk(
            guess,
            process,
            z_lr,
            cond,
            prediction="z0",
            kind="ddim",
            steps=3,
            eta=eta,
            noise=lambda k: field(k + other * (k > 0)),
        )
        return next(run).z_t

    sigma = process.posterior_variance(*(torch.tensor([t]) for t in path[:2])).sqrt()
    torch.testing.assert_close(
        first(1000) - first(0), eta * sigma * (field(1001) - field(1)), rtol=1e-9, atol=1e-9
    )


def test_resshift_kind_is_the_published_step(z_lr, cond):
    process = build_process(ResidualShiftConfig())
    z = z_lr + 2 * 0.99 * field(0)
    for k, step in enumerate(
        walk(guess, process, z_lr, cond, prediction="z0", kind="resshift", noise=field)
    ):
        eta, eta_prev = (process.b(torch.tensor([t]), F64) for t in (step.t, step.t - 1))
        z0 = guess(z, torch.full((2,), step.t), cond)
        z = (
            eta_prev / eta * z
            + (eta - eta_prev) / eta * z0
            + 2 * (eta_prev / eta * (eta - eta_prev)).sqrt() * field(k + 1)
        )
        torch.testing.assert_close(step.z_t, z, rtol=1e-9, atol=1e-9)


def test_solver_in_its_first_order_steps_is_ddim(z_lr, cond):
    """The first and the last step are first order, so two steps are ddim's, on a process that
    starts in pure noise too.
    """
    for cfg in (DDPMConfig(num_timesteps=1000), FlowConfig(num_timesteps=100)):
        process = build_process(cfg)
        runs = [
            end(guess, process, z_lr, cond, prediction="z0", kind=kind, steps=2, noise=field)
            for kind in ("ddim", "dpm-solver++")
        ]
        torch.testing.assert_close(*runs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("kind", "order"), [("ddim", 1), ("dpm-solver++", 2)])
def test_order_of_convergence_on_gaussian_data(kind, order):
    """For z0 ~ N(0, 0.5^2) the best network and the ODE's solution are known: |z_t| goes as
    sqrt(a^2 0.5^2 + s^2).
    """
    process = build_process(DDPMConfig(num_timesteps=4000, beta_start=1e-5, beta_end=4e-3))

    def best(z_t, t, cond):
        a, s = process.a(t, F64), process.s(t, F64)
        return 0.25 * a * z_t / (0.25 * a**2 + s**2)

    def scale_at(t):
        a, s = (f(torch.tensor([t]), F64).item() for f in (process.a, process.s))
        return math.sqrt(0.25 * a**2 + s**2)

    def log_snr(t):
        at = torch.tensor([t])
        return (process.a(at, F64) / process.s(at, F64)).log().item()

    z_T, errors = field(0), []
    ends = log_snr(3999), log_snr(40)
    grid = [log_snr(t) for t in range(4000)]
    for n in (20, 40):
        wanted = [ends[0] + (ends[1] - ends[0]) * i / n for i in range(n + 1)]
        path = [min(range(4000), key=lambda t: abs(grid[t] - w)) for w in wanted]
        run = list(
            walk(best, process, 0 * z_T, z_T, prediction="z0", kind=kind, steps=path, noise=field)
        )
        z = run[-2].z_t  # at step 40: the clean end is reached by a jump of its own
        errors.append((z - scale_at(path[-1]) / scale_at(3999) * z_T).abs().max().item())
    assert errors[0] / errors[1] > 0.8 * 2**order


# --------------------------------------------------------------------------------------------- ends


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_a_network_that_knows_z0_is_believed(process, z_lr, cond, steps):
    z0 = field(7)
    for kind in process.samplers:
        got = end(
            lambda z_t, t, cond: z0,
            process,
            z_lr,
            cond,
            prediction="z0",
            kind=kind,
            steps=steps,
            noise=field,
        )
        torch.testing.assert_close(got, z0, rtol=0, atol=1e-12)


@pytest.mark.parametrize("prediction", ["z0", "v", "residual", "flow"])
def test_prediction_types_that_say_the_same_give_the_same_sample(process, z_lr, cond, prediction):
    def says(z_t, t, cond):
        z0 = guess(z_t, t, cond)
        eps = process.to_eps(z0, z_t, z_lr, t, "z0")
        return said(prediction, z0, eps, z_lr, process.at(t, z_t.dtype))

    for kind in process.samplers:
        got = end(
            says,
            process,
            z_lr,
            cond,
            prediction=prediction,
            kind=kind,
            steps=4,
            noise=field,
            eta=0.5,
        )
        wanted = end(
            guess, process, z_lr, cond, prediction="z0", kind=kind, steps=4, noise=field, eta=0.5
        )
        torch.testing.assert_close(got, wanted, rtol=1e-8, atol=1e-8)


def test_denoise_sees_indices_and_sample_returns_the_last_step(z_lr, cond):
    process, seen = build_process(DDPMConfig(respace=4)), []

    def denoise(z_t, t, cond):
        seen.append(t.tolist())
        return guess(z_t, t, cond)

    options = {"prediction": "z0", "kind": "ancestral", "noise": field}
    steps = list(walk(denoise, process, z_lr, cond, **options))
    assert seen == [[3, 3], [2, 2], [1, 1], [0, 0]]
    assert [step.t for step in steps] == [3, 2, 1, 0]
    assert torch.equal(steps[-1].z_t, steps[-1].z0_hat)
    assert torch.equal(end(guess, process, z_lr, cond, **options), steps[-1].z_t)


def test_sampling_keeps_dtype_and_makes_no_graph(process):
    z_lr = torch.zeros(1, 3, 4, 4)
    weight = torch.ones((), requires_grad=True)
    for kind in process.samplers:
        got = end(
            lambda z, t, c: weight * guess(z, t, c),
            process,
            z_lr,
            z_lr,
            prediction="z0",
            kind=kind,
            noise=gaussian(z_lr),
            steps=3,
        )
        assert got.dtype == torch.float32
        assert not got.requires_grad
        assert got.isfinite().all()


# ---------------------------------------------------------------------------- noise, clip, variance


def test_same_generator_same_result_and_another_differs(process):
    z_lr = torch.zeros(1, 3, 4, 4)
    first, again, other = (
        end(
            guess,
            process,
            z_lr,
            z_lr,
            prediction="z0",
            kind="ancestral",
            steps=4,
            noise=gaussian(z_lr, torch.Generator().manual_seed(seed)),
        )
        for seed in (5, 5, 6)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_noise_is_asked_by_number_and_only_where_it_is_added(z_lr, cond):
    process, asked = build_process(ResidualShiftConfig()), []

    def noise(k):
        asked.append(k)
        return field(k)

    for kind, eta, wanted in (
        ("resshift", 0.0, [0, 1, 2, 3]),
        ("ddim", 0.0, [0]),
        ("ddim", 0.5, [0, 1, 2, 3]),
    ):
        asked.clear()
        end(guess, process, z_lr, cond, prediction="z0", kind=kind, steps=4, eta=eta, noise=noise)
        assert asked == wanted, kind


def test_forward_variance_replaces_the_noise_and_leaves_the_mean(process, z_lr, cond):
    first = {}
    for variance in ("posterior", "forward"):
        run = walk(
            guess,
            process,
            z_lr,
            cond,
            prediction="z0",
            kind="ancestral",
            steps=3,
            noise=field,
            variance=variance,
        )
        first[variance] = next(run).z_t
    t, u = (torch.tensor([t]) for t in timesteps(process, Sampling(steps=3))[:2])
    larger = process.forward_variance(t, u).sqrt() - process.posterior_variance(t, u).sqrt()
    torch.testing.assert_close(
        first["forward"] - first["posterior"], larger * field(1), rtol=1e-9, atol=1e-9
    )


def test_clip_bounds_every_estimate(process, z_lr, cond):
    for kind in process.samplers:
        run = walk(
            lambda z_t, t, cond: 3 * guess(z_t, t, cond), process, z_lr, cond,
            prediction="z0", kind=kind, steps=4, noise=field, clip=0.7,
        )  # fmt: skip
        assert max(step.z0_hat.abs().max().item() for step in run) == pytest.approx(0.7)


# -------------------------------------------------------------------------------------------- steps


def steps_of(process, steps):
    """Without the checks of a config, as where a caller asks for steps."""
    return timesteps(process, Sampling().model_copy(update={"steps": steps}))


def test_steps_descend_evenly_from_the_last_to_zero(process):
    total = process.num_timesteps
    assert steps_of(process, None) == steps_of(process, total) == list(range(total - 1, -1, -1))
    assert steps_of(process, 1) == [total - 1]
    for n in range(2, min(total, 60)):
        path = steps_of(process, n)
        gaps = {t - u for t, u in zip(path, path[1:])}
        assert (path[0], path[-1], len(path)) == (total - 1, 0, n)
        assert max(gaps) - min(gaps) <= 1


def test_given_steps_are_taken():
    process = build_process(ResidualShiftConfig())
    assert steps_of(process, (14, 7, 3)) == [14, 7, 3]
    for wrong in ([], [3, 7], [7, 7], [15, 0], [3, -1]):
        with pytest.raises(SamplerError, match=r"descend within 14 \.\. 0"):
            steps_of(process, wrong)


@pytest.mark.parametrize("steps", [0, -1, 16])
def test_impossible_numbers_of_steps_are_refused(steps):
    with pytest.raises(SamplerError, match=f"steps={steps} .* choose 1 to 15"):
        steps_of(build_process(ResidualShiftConfig()), steps)


# ----------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("cfg", "wrong", "says"),
    [
        (DDPMConfig(), {"kind": "resshift"}, "use one of ancestral, ddim, dpm-solver"),
        (FlowConfig(), {"kind": "resshift"}, "does not fit Flow"),
        (ResidualShiftConfig(), {"kind": "dpm-solver++"}, "one of ancestral, ddim, resshift"),
        (RegressionConfig(), {"kind": "ddim"}, "use one of ancestral"),
        (FlowConfig(), {"prediction": "eps"}, "use prediction 'v' or 'z0'"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_sentence(cfg, wrong, says):
    z = torch.zeros(1, 3, 4, 4)
    with pytest.raises(ValueError, match=says) as caught:
        end(guess, build_process(cfg), z, z, **wrong)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "wrong", [{"kind": "euler"}, {"eta": 1.5}, {"variance": "learned"}, {"steps": (3, 3)}]
)
def test_values_outside_their_range_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Sampling(**wrong)


def test_regression_is_one_call_from_z_lr(z_lr, cond):
    """A residual shift without noise: z_t is z_lr, and the network's z0 is the result."""
    process, seen = build_process(RegressionConfig()), []

    def denoise(z_t, t, cond):
        seen.append(z_t)
        return guess(z_t, t, cond)

    got = end(denoise, process, z_lr, cond, kind="ancestral")
    assert torch.equal(seen[0], z_lr) and len(seen) == 1
    assert torch.equal(got, guess(z_lr, torch.zeros(2), cond))
