"""dream_l1's kernel is held to DESIGN section 4, and its reference to the formula."""

import pytest
import torch
import torch.nn.functional as F

from dream_kernels import backend, dream_l1, dream_l1_grad, noise_key, reference
from kernel_rules import (
    DEVICE,
    DTYPES,
    LAYOUTS,
    assert_as_exact_as_eager,
    assert_compiled_well,
    assert_compiles_whole,
    run_kernel,
    same,
)

PREDICTIONS, KINDS = ("eps", "z0", "v"), ("l1", "l2", "huber")
SHAPES = [(1, 1, 1, 1), (3, 2, 7, 5), (2, 3, 16, 16), (2, 5, 23, 31)]


def inputs(shape=(2, 3, 7, 5), dtype=torch.float32, layout="contiguous"):
    """pred, eps, eps_hat, lam, z0, a, s, and a weight for each sample."""
    generator = torch.Generator().manual_seed(0)
    pred, eps, eps_hat, z0 = (
        LAYOUTS[layout](x) for x in torch.randn(4, *shape, generator=generator).to(DEVICE, dtype)
    )
    lam, a, s = torch.rand(3, shape[0], 1, 1, 1, generator=generator).to(DEVICE)
    return (pred, eps, eps_hat, lam, z0, a, s), torch.rand(shape[0], generator=generator).to(DEVICE)


def eager(pred, eps, eps_hat, lam, z0, a, s, weight, prediction, kind):
    """Loss and gradient in the tensors' own dtype, by autograd over plain operations."""
    lam, a, s = (x.to(pred.dtype) for x in (lam, a, s))
    rectified = eps + lam * (eps - eps_hat)
    target = {"eps": rectified, "z0": z0, "v": a * rectified - s * z0}[prediction]
    pred = pred.detach().clone().requires_grad_()
    distance = {
        "l1": F.l1_loss,
        "l2": F.mse_loss,
        "huber": lambda *x, reduction: F.huber_loss(*x, reduction=reduction, delta=0.7),
    }
    loss = weight.to(pred.dtype) * distance[kind](pred, target, reduction="none").mean((1, 2, 3))
    (grad,) = torch.autograd.grad(loss.sum(), pred)
    return loss.detach(), grad


def exact(args, weight, *options):
    return eager(*(x.double() for x in args), weight.double(), *options)


def check(got, truth, plain):
    """Losses come in float32 whatever the dtype, so their eager rival is counted from its own
    dtype.
    """
    assert got[0].dtype == torch.float32
    assert_as_exact_as_eager(got, truth, (plain[0].float(), plain[1]))


def with_backward(args, options, grad):
    pred = args[0].detach().requires_grad_()
    loss = dream_l1(pred, *args[1:], **options)
    once, twice = (torch.autograd.grad(loss, pred, grad, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(once, twice)
    return loss.detach(), once


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_reference_is_the_formula_with_right_gradients(prediction, kind):
    args, weight = inputs((2, 2, 3, 2))
    args, weight = tuple(x.double() for x in args), weight.double()
    options = {"prediction": prediction, "kind": kind, "delta": 0.7, "weight": weight}
    loss, grad = eager(*args, weight, prediction, kind)
    for got in (
        dream_l1_grad(*args, **options),
        with_backward(args, options, torch.ones_like(loss)),
    ):
        torch.testing.assert_close(got[0], loss)
        torch.testing.assert_close(got[1], grad)
    assert torch.autograd.gradcheck(
        lambda pred: dream_l1(pred, *args[1:], **options), args[0].requires_grad_()
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_loss_and_gradient_are_as_exact_as_eager(prediction, kind, dtype):
    args, weight = inputs(dtype=dtype)
    options = {"prediction": prediction, "kind": kind, "delta": 0.7, "weight": weight}
    truth, plain = exact(args, weight, prediction, kind), eager(*args, weight, prediction, kind)
    one_pass = run_kernel(dream_l1_grad, *args, **options)
    check(one_pass, truth, plain)
    two = run_kernel(lambda *x: with_backward(x, options, torch.ones_like(weight)), *args)
    check(two, truth, plain)
    assert torch.equal(two[0], one_pass[0])
    assert torch.equal(
        run_kernel(dream_l1, *args, **options), one_pass[0]
    )  # no gradient wanted, none written


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_any_size_and_upstream_gradient(shape, dtype):
    args, weight = inputs(shape, dtype)
    truth, plain = exact(args, weight, "eps", "l1"), eager(*args, weight, "eps", "l1")
    options = {"weight": torch.ones_like(weight)}
    got = run_kernel(
        lambda *x: with_backward(x, options, weight), *args
    )  # the weight comes from above
    check((weight * got[0], got[1]), truth, plain)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout(layout):
    args, weight = inputs(layout=layout)
    got = run_kernel(dream_l1_grad, *args, prediction="v", weight=weight)
    check(got, exact(args, weight, "v", "l1"), eager(*args, weight, "v", "l1"))


def test_without_eps_hat_the_target_is_the_plain_one():
    (pred, eps, eps_hat, lam, *rest), _ = inputs()
    plain = run_kernel(dream_l1_grad, pred, eps)
    zero = run_kernel(dream_l1_grad, pred, eps, eps_hat, 0 * lam)
    assert all(torch.equal(x, y) for x, y in zip(plain, zero))
    none = run_kernel(dream_l1_grad, pred, eps, None, None, *rest, prediction="v")
    zero = run_kernel(dream_l1_grad, pred, eps, eps_hat, 0 * lam, *rest, prediction="v")
    assert all(torch.equal(x, y) for x, y in zip(none, zero))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_noise_from_a_key_is_that_of_the_reference(layout):
    (pred, _, *rest), weight = inputs(layout=layout)
    key = noise_key(torch.tensor([1, 2], device=DEVICE), draw=1, column=7)
    args = pred, reference.normal(key, pred.double()), *rest
    got = run_kernel(dream_l1_grad, pred, key, *rest, prediction="v", kind="l2", weight=weight)
    plain = eager(pred, args[1].float(), *rest, weight, "v", "l2")
    check(got, exact(args, weight, "v", "l2"), plain)


def test_only_pred_has_a_gradient():
    args, weight = inputs()
    leaves = [x.detach().requires_grad_() for x in args]
    for mode in (dream_l1, lambda *x, **o: run_kernel(dream_l1, *x, **o)):
        grads = torch.autograd.grad(
            mode(*leaves, prediction="v", weight=weight).sum(), leaves, allow_unused=True
        )
        assert [grad is not None for grad in grads] == [True] + [False] * 6


def test_a_nan_is_not_swallowed():
    (pred, *rest), _ = inputs()
    pred[1, 0, 0, 0] = torch.nan
    loss, grad = run_kernel(dream_l1_grad, pred, *rest)
    assert loss.isnan().tolist() == [False, True]
    assert same(grad.isnan(), pred.isnan())


def test_loss_of_nothing_is_nothing():
    args, _ = inputs((0, 3, 4, 4))
    assert run_kernel(dream_l1, *args).shape == (0,)


@pytest.mark.parametrize("mode", ["reference", "triton"])
@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"kind": "l3"}, "one of l1, l2, huber"),
        ({"prediction": "noise"}, "one of eps, z0, v"),
        ({"prediction": "v"}, "needs z0, a, s"),
        ({"lam": torch.zeros(2, 1, 1, 1)}, "both or neither"),
    ],
)
def test_wrong_arguments_are_named(wrong, says, mode):
    (pred, eps, *_), _ = inputs()
    with backend(mode), pytest.raises(ValueError, match=says):
        dream_l1(pred, eps, **wrong)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_l1_is_a_whole_citizen_of_torch(prediction):
    args, weight = inputs(layout="channels_last")
    args[0].requires_grad_()
    for slope in ("", "rise"):
        checks = ["test_schema", "test_faketensor"] + (
            ["test_autograd_registration", "test_aot_dispatch_dynamic"] if slope else []
        )
        torch.library.opcheck(
            torch.ops.dream.dream_l1.default,
            (*args, weight, prediction, "l2", 1.0, slope),
            test_utils=checks,
        )


def test_l1_breaks_no_graph():
    args, _ = inputs()
    assert_compiles_whole(dream_l1, *args[:4])
    assert_compiles_whole(dream_l1_grad, *args[:4])
    assert_compiles_whole(lambda pred, *x: dream_l1(pred, *x), args[0].requires_grad_(), *args[1:4])


def test_l1_compiles_without_spills_to_wide_accesses():
    assert_compiled_well(
        "dream_l1", narrow={"_sign": 64}
    )  # where a warp has 64, a thread has 8 signs
