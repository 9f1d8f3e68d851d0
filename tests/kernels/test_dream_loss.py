"""dream_loss's kernel is held to docs/design.md (Kernels), and its reference to the formula."""

import pytest
import torch
import torch.nn.functional as F

from dream_kernels import backend, dream_loss
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
    """pred, eps, eps_hat, lam, z0, a, s, and a gradient for each sample's loss."""
    generator = torch.Generator().manual_seed(0)
    pred, eps, eps_hat, z0 = (
        LAYOUTS[layout](x) for x in torch.randn(4, *shape, generator=generator).to(DEVICE, dtype)
    )
    lam, a, s = torch.rand(3, shape[0], 1, 1, 1, generator=generator).to(DEVICE)
    return (pred, eps, eps_hat, lam, z0, a, s), torch.rand(shape[0], generator=generator).to(DEVICE)


def eager(pred, eps, eps_hat, lam, z0, a, s, grad, prediction, kind):
    """Loss and gradient in the tensors' own dtype, by autograd over plain operations."""
    lam, a, s = (x.to(pred.dtype) for x in (lam, a, s))
    rectified = eps + lam * (eps - eps_hat)
    target = {"eps": rectified, "z0": z0, "v": a * rectified - s * z0}[prediction]
    pred = pred.detach().clone().requires_grad_()
    distance = {"l1": F.l1_loss, "l2": F.mse_loss, "huber": F.huber_loss}[kind]
    loss = distance(pred, target, reduction="none").mean((1, 2, 3))
    return loss.detach(), *torch.autograd.grad(loss, pred, grad.to(loss.dtype))


def exact(args, grad, *options):
    return eager(*(x.double() for x in args), grad.double(), *options)


def check(got, truth, plain):
    """Losses come in float32 whatever the dtype, so their eager rival is counted from its own
    dtype.
    """
    assert got[0].dtype == torch.float32
    assert_as_exact_as_eager(got, truth, (plain[0].float(), plain[1]))


def with_backward(args, grad, **options):
    """Loss and gradient; asserts that two backwards agree."""
    pred = args[0].detach().requires_grad_()
    loss = dream_loss(pred, *args[1:], **options)
    once, twice = (torch.autograd.grad(loss, pred, grad, retain_graph=True)[0] for _ in range(2))
    assert same(once, twice)
    return loss.detach(), once


def run(args, grad, **options):
    """The same by the kernel."""
    return run_kernel(lambda *x: with_backward(x, grad, **options), *args)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_reference_is_the_formula_with_right_gradients(prediction, kind):
    args, grad = inputs((2, 2, 3, 2))
    args, grad = tuple(x.double() for x in args), grad.double()
    options = {"prediction": prediction, "kind": kind}
    got = with_backward(args, grad, **options)
    torch.testing.assert_close(got, eager(*args, grad, prediction, kind))
    assert torch.autograd.gradcheck(
        lambda pred: dream_loss(pred, *args[1:], **options), args[0].requires_grad_()
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_loss_and_gradient_are_as_exact_as_eager(prediction, kind, dtype):
    args, grad = inputs(dtype=dtype)
    got = run(args, grad, prediction=prediction, kind=kind)
    truth, plain = exact(args, grad, prediction, kind), eager(*args, grad, prediction, kind)
    check(got, truth, plain)
    with torch.no_grad():
        assert torch.equal(run_kernel(dream_loss, *args, prediction=prediction, kind=kind), got[0])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_any_size(shape, dtype):
    args, grad = inputs(shape, dtype)
    truth, plain = exact(args, grad, "eps", "l1"), eager(*args, grad, "eps", "l1")
    check(run(args, grad), truth, plain)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_dtype_for_each_input(prediction):
    """As under autocast: the network's output in bfloat16, all else in float32."""
    args, grad = inputs()
    args = args[0].bfloat16(), *args[1:]
    got = run(args, grad, prediction=prediction)
    loss, slope = eager(*args, grad, prediction, "l1")
    check(got, exact(args, grad, prediction, "l1"), (loss, slope.bfloat16()))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout(layout):
    args, grad = inputs(layout=layout)
    got = run(args, grad, prediction="v")
    check(got, exact(args, grad, "v", "l1"), eager(*args, grad, "v", "l1"))


@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_without_eps_hat_the_target_is_the_plain_one(prediction):
    (pred, eps, eps_hat, lam, *rest), grad = inputs()
    plain = run((pred, eps, None, None, *rest), grad, prediction=prediction)
    zero = run((pred, eps, eps_hat, 0 * lam, *rest), grad, prediction=prediction)
    assert all(torch.equal(x, y) for x, y in zip(plain, zero))


def test_only_pred_has_a_gradient():
    args, _ = inputs()
    leaves = [x.detach().requires_grad_() for x in args]
    for op in (dream_loss, lambda *x, **options: run_kernel(dream_loss, *x, **options)):
        loss = op(*leaves, prediction="v").sum()
        grads = torch.autograd.grad(loss, leaves, allow_unused=True)
        assert [grad is not None for grad in grads] == [True] + [False] * 6


def test_a_nan_is_not_swallowed():
    args, grad = inputs()
    args[0][1, 0, 0, 0] = torch.nan
    loss, _ = run(args, grad)
    assert loss.isnan().tolist() == [False, True]
    _, slope = run(args, grad, kind="l2")
    assert same(slope.isnan(), args[0].isnan())


def test_loss_of_nothing_is_nothing():
    args, _ = inputs((0, 3, 4, 4))
    assert run_kernel(dream_loss, *args).shape == (0,)


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
        dream_loss(pred, eps, **wrong)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_loss_is_a_whole_citizen_of_torch(prediction, kind):
    args, _ = inputs(layout="channels_last")
    args[0].requires_grad_()
    torch.library.opcheck(torch.ops.dream.dream_loss.default, (*args, prediction, kind))


def test_loss_breaks_no_graph():
    args, _ = inputs()
    assert_compiles_whole(dream_loss, *args[:4])
    assert_compiles_whole(
        lambda pred, *x: dream_loss(pred, *x), args[0].requires_grad_(), *args[1:4]
    )


def test_loss_compiles_without_spills_to_wide_accesses():
    # slopes of l1 have a byte: where a warp has 64 threads, each has 8 of them
    assert_compiled_well("dream_loss", narrow={"_l1/": 64})
