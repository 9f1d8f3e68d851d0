"""Laws of the loss: DREAM off is plain diffusion, and on it is Algorithm 3 for every process and
prediction type.
"""

import math

import pytest
import torch
from torch import nn

from dream_kernels import reference
from ldm_dream.config.process import Dream, ResidualShiftConfig
from ldm_dream.denoiser import Inputs
from ldm_dream.loss import ERRORS, DiffusionLoss, as_in_sampling, diffusion_loss, estimate
from ldm_dream.process import PREDICTIONS, build_process, wide
from runs import PlainDenoiser, said

F64 = torch.float64


class Net(nn.Module):
    """Two convolutions and a dropout; counts its calls and remembers in which mode each was."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.inner = nn.Sequential(
            nn.Conv2d(4, 4, 3, padding=1), nn.Dropout(0.5), nn.Conv2d(4, 2, 1)
        )
        self.modes: list[bool] = []

    def forward(self, z_t, t, cond):
        self.modes.append(self.inner[1].training)
        return self.inner(torch.cat([z_t, cond], 1))


def batch(process, dtype=torch.float32, prediction="z0"):
    """z0, z_lr, cond, t, eps of four samples; for eps the steps stay clear of pure noise."""
    generator = torch.Generator().manual_seed(3)
    z0, z_lr, cond, eps = torch.randn(4, 4, 2, 5, 5, dtype=dtype, generator=generator)
    last = process.num_timesteps - 1 - ("eps" in prediction)
    return z0, z_lr, cond, torch.tensor([0, last // 3, last // 2, last]), eps


def loss_of(denoise, process, z0, z_lr, cond, t, eps, prediction="z0", **dream) -> DiffusionLoss:
    denoiser, inputs = PlainDenoiser(denoise, process, prediction), Inputs(z_lr, (cond,))
    return diffusion_loss(denoiser, z0, inputs, t, eps, Dream(**dream))


def rectified(denoise, process, z_t, z_lr, cond, t, eps, prediction, **dream):
    """-> (z_t', eps target) from the estimate that the loss makes."""
    denoiser, inputs = PlainDenoiser(denoise, process, prediction), Inputs(z_lr, (cond,))
    eps_hat, lam = estimate(denoiser, z_t, t, inputs, Dream(**dream))
    z = reference.dream_rectify(z_t, eps, eps_hat, process.s(t), lam)
    return z, eps + lam * (eps - eps_hat)


def numbers(process, t, dtype=F64):
    return process.a(t, dtype), process.b(t, dtype), process.s(t, dtype), process.weight(t, dtype)


def frozen_guess(z_t, t, cond):
    """A fixed guess of eps, so that all prediction types can say the same thing."""
    return torch.tanh(z_t + 0.3 * cond)


def saying_the_same(process, z_lr, prediction):
    def says(z_t, t, cond):
        eps = frozen_guess(z_t, t, cond)
        z0 = process.to_z0(eps, z_t, z_lr, t, "eps")
        return said(prediction, z0, eps, z_lr, process.at(t, wide(z_t.dtype)))

    return says


# ------------------------------------------------------------------------------------- off is plain


@pytest.mark.parametrize("kind", ["l1", "l2"])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_dream_with_strength_zero_is_plain_loss(process, prediction, kind):
    z0, z_lr, cond, t, eps = batch(process, prediction=prediction)
    plain, net = Net(), Net()
    a, b, s, _ = numbers(process, t, torch.float32)
    target = said(prediction, z0, eps, z_lr, process.at(t))
    torch.manual_seed(7)
    error = plain(a * z0 + b * z_lr + s * eps, t, cond) - target
    wanted = (error.abs() if kind == "l1" else error**2).mean((1, 2, 3))
    wanted.sum().backward()
    torch.manual_seed(7)
    got = loss_of(
        net,
        process,
        z0,
        z_lr,
        cond,
        t,
        eps,
        prediction=prediction,
        kind=kind,
        strength=0.0,
        p=0.7,
    )
    got.loss.sum().backward()
    gradients = [[x.grad for x in network.parameters()] for network in (net, plain)]
    if prediction not in ERRORS:
        assert torch.equal(got.loss, wanted)
        assert all(torch.equal(x, y) for x, y in zip(*gradients))
    else:  # by way of z0
        torch.testing.assert_close(got.loss, wanted, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-5)
    assert net.modes == [True]


# -------------------------------------------------------------------------------- on is Algorithm 3


@pytest.mark.parametrize("p", [0.0, 0.5, 1.0, 2.0, 3.7, 10.0])
@pytest.mark.parametrize("strength", [0.3, 1.0])
def test_dream_is_equations_14_and_15(process, strength, p):
    z0, z_lr, cond, t, eps = batch(process, F64)
    a, b, s, weight = numbers(process, t)
    z_t = a * z0 + b * z_lr + s * eps
    lam = strength * weight**p
    delta = eps - frozen_guess(z_t, t, cond)
    got_z, got_eps = rectified(
        frozen_guess, process, z_t, z_lr, cond, t, eps, prediction="eps", strength=strength, p=p
    )
    # lam and s are float32
    torch.testing.assert_close(got_z, z_t + s * lam * delta, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(got_eps, eps + lam * delta, rtol=1e-5, atol=1e-6)


def test_prediction_types_that_say_the_same_give_the_same_rectified_pair(process):
    z0, z_lr, cond, t, eps = batch(process, F64, "eps")
    z_t = process.q_sample(z0, z_lr, eps, t)
    pairs = [
        rectified(
            saying_the_same(process, z_lr, kind),
            process,
            z_t,
            z_lr,
            cond,
            t,
            eps,
            prediction=kind,
            strength=1.0,
            p=1.0,
        )
        for kind in PREDICTIONS
    ]
    for z, target in pairs[1:]:
        torch.testing.assert_close(z, pairs[0][0], rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(target, pairs[0][1], rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("p", [0.0, 1.0, 2.5])
def test_rectified_pair_still_implies_z0(process, p):
    z0, z_lr, cond, t, eps = batch(process, F64, "eps")
    z_t = process.q_sample(z0, z_lr, eps, t)
    z, target = rectified(
        frozen_guess, process, z_t, z_lr, cond, t, eps, prediction="eps", strength=0.8, p=p
    )
    a, b, s, _ = numbers(process, t)
    torch.testing.assert_close(a * z0 + b * z_lr + s * target, z, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_network_that_knows_the_answer_has_no_loss(process, prediction):
    z0, z_lr, cond, t, eps = batch(process, F64, prediction)

    def knows(z_t, at, cond):
        a, b, s, _ = numbers(process, at)
        implied = (z_t - a * z0 - b * z_lr) / s
        return said(prediction, z0, implied, z_lr, process.at(at, F64))

    got = loss_of(knows, process, z0, z_lr, cond, t, eps, prediction=prediction, strength=1.0)
    # eps of the first step: 1 / s ~ 1e3
    torch.testing.assert_close(got.loss, torch.zeros(4, dtype=F64), rtol=0, atol=2e-4)
    torch.testing.assert_close(got.z0_hat, z0, rtol=0, atol=1e-4)


def test_dream_on_residual_shift_blends_the_estimate_of_z0():
    """z_t' = z_t + (1 - eta) lam (z0_hat - z0): z_t as it would be had z0 been partly the network's
    own.
    """
    process = build_process(ResidualShiftConfig())
    z0, z_lr, cond, t, eps = batch(process, F64)
    z_t, guess = process.q_sample(z0, z_lr, eps, t), lambda z_t, t, cond: 0.9 * cond
    z, _ = rectified(guess, process, z_t, z_lr, cond, t, eps, prediction="z0", strength=1.0, p=2.0)
    eta = process.b(t, F64)
    torch.testing.assert_close(z, z_t + (1 - eta) * eta * (0.9 * cond - z0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["l1", "l2"])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_gradient_is_that_of_the_loss_written_out(process, prediction, kind):
    """A network w z_t: the gradient in w is known in closed form, and the extra pass adds nothing
    to it.
    """
    z0, z_lr, cond, t, eps = batch(process, F64, prediction)
    a, b, s, weight = numbers(process, t)
    w = torch.tensor(0.6, dtype=F64, requires_grad=True)
    z_t = a * z0 + b * z_lr + s * eps
    guess = 0.6 * z_t
    y = z_t - b * z_lr
    eps_hat = {
        "eps": guess,
        "z0": (y - a * guess) / s,
        "v": (s * y + a * guess) / (a * a + s * s),
        "residual": (y - a * (z_lr - guess)) / s,
        "eps_scale": guess / s,
        "flow": (y + a * guess) / (a + s),
    }[prediction]
    z = z_t + s * weight * (eps - eps_hat)
    rectified = eps + weight * (eps - eps_hat)
    error = 0.6 * z - said(prediction, z0, rectified, z_lr, process.at(t, F64))
    wanted = ((error.sign() if kind == "l1" else 2 * error) * z).mean((1, 2, 3)).sum()

    got = loss_of(
        lambda z_t, t, cond: w * z_t,
        process,
        z0,
        z_lr,
        cond,
        t,
        eps,
        prediction=prediction,
        kind=kind,
        strength=1.0,
    )
    got.loss.sum().backward()
    torch.testing.assert_close(w.grad, wanted, rtol=1e-5, atol=1e-6)


def test_z0_hat_is_implied_by_the_output_and_carries_gradient(process):
    z0, z_lr, cond, t, eps = batch(process)
    net = Net().eval()
    got = loss_of(net, process, z0, z_lr, cond, t, eps, prediction="v")
    z_t = process.q_sample(z0, z_lr, eps, t)
    torch.testing.assert_close(got.z0_hat, process.to_z0(net(z_t, t, cond), z_t, z_lr, t, "v"))
    (gradient,) = torch.autograd.grad(got.z0_hat.square().sum(), [net.inner[2].bias])
    assert gradient.abs().min() > 0


# ----------------------------------------------------------------------------------- the extra pass


def test_extra_pass_has_dropout_off_and_leaves_the_random_state(process):
    z0, z_lr, cond, t, eps = batch(process)
    states = []
    for strength in (0.0, 1.0):
        net = Net()
        torch.manual_seed(5)
        loss_of(net, process, z0, z_lr, cond, t, eps, prediction="z0", strength=strength)
        states.append(torch.get_rng_state())
    assert net.modes == [False, True]
    assert torch.equal(*states)


def test_mixed_training_flags_come_back_one_by_one():
    net = Net()
    net.inner[0].eval()
    flags = [module.training for module in net.modules()]
    with as_in_sampling([*net.modules()], "cpu", "same"):
        assert not any(module.training for module in net.modules())
    assert [module.training for module in net.modules()] == flags
    assert len(set(flags)) == 2


def test_training_flags_come_back_after_a_failed_pass():
    process, net = build_process(ResidualShiftConfig()), Net()
    z0, z_lr, cond, t, eps = batch(process)

    def fails(z_t, t, cond):
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        loss_of(fails, process, z0, z_lr, cond, t, eps, prediction="z0", strength=1.0)
    assert all(module.training for module in net.modules())


def test_gradients_under_autocast_survive_the_extra_pass():
    """Weights cast without gradient in the extra pass must not be taken from autocast's cache in
    the next.
    """
    process, net = build_process(ResidualShiftConfig()), Net()
    z0, z_lr, cond, t, eps = batch(process)
    with torch.autocast("cpu", torch.bfloat16):
        got = loss_of(net, process, z0, z_lr, cond, t, eps, prediction="z0", strength=1.0)
    assert got.loss.dtype == torch.float32
    got.loss.sum().backward()
    assert all(
        weight.grad is not None and weight.grad.abs().max() > 0 for weight in net.parameters()
    )


# ----------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    "wrong",
    [{"strength": 1.5}, {"strength": -0.1}, {"p": -1.0}, {"p": math.inf}, {"min_lam": 1.5}]
    + [{"kind": "l3"}, {"estimate_precision": "fp8"}],
)
def test_values_outside_their_range_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Dream(**wrong)


def test_an_unknown_prediction_is_named():
    process = build_process(ResidualShiftConfig())
    with pytest.raises(ValueError, match="one of eps, z0, v"):
        loss_of(frozen_guess, process, *batch(process), prediction="noise", strength=0.5)


def test_output_of_another_shape_does_not_broadcast():
    process = build_process(ResidualShiftConfig())
    z0, z_lr, cond, t, eps = batch(process)
    with pytest.raises(ValueError, match=r"\(4, 1, 5, 5\).*\(4, 2, 5, 5\)"):
        loss_of(lambda z_t, t, cond: z_t[:, :1], process, z0, z_lr, cond, t, eps, prediction="z0")
    with pytest.raises(ValueError, match=r"\(4, 1, 5, 5\).*\(4, 2, 5, 5\)"):
        rectified(
            lambda z_t, t, cond: z_t[:, :1],
            process,
            z0,
            z_lr,
            cond,
            t,
            eps,
            prediction="z0",
            strength=1.0,
            p=1.0,
        )


@pytest.mark.parametrize("knob", ["min_lam", "min_shift"])
def test_samples_below_a_least_rectification_stay_plain(process, knob):
    """And where none is left, the extra pass is skipped. The shift of z_t is a * lam."""
    z0, z_lr, cond, t, eps = batch(process)
    passes = []

    def loss(**dream):
        def denoise(z_t, t, cond):
            passes.append(t.tolist())
            return frozen_guess(z_t, t, cond)

        passes.clear()
        return loss_of(denoise, process, z0, z_lr, cond, t, eps, **dream).loss

    lam = process.weight(t).flatten()
    judged = lam if knob == "min_lam" else process.a(t).flatten() * lam
    least = judged.mean().item()
    above, all_of_them = judged >= least, t.tolist()
    got = loss(strength=1.0, **{knob: least})
    assert passes == [t[above].tolist(), all_of_them] and 0 < above.sum() < 4
    torch.testing.assert_close(got, torch.where(above, loss(strength=1.0), loss()))
    torch.testing.assert_close(loss(strength=0.5, **{knob: 0.6}), loss())
    loss(strength=0.5, **{knob: 0.6})
    assert passes == [all_of_them]
