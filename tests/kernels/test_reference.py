"""Laws of the reference ops: they are the specification that kernels are held to."""

import pytest
import torch

from dream_kernels import OPS, dream_rectify, reference

F64 = torch.float64


def rectify_inputs(dtype=F64):
    generator = torch.Generator().manual_seed(0)
    z_t, eps, eps_hat = torch.randn(3, 2, 3, 4, 5, dtype=F64, generator=generator).to(dtype)
    noise_std, lam = torch.rand(2, 2, 1, 1, 1, dtype=F64, generator=generator).to(dtype)
    return z_t, eps, eps_hat, noise_std, lam


def test_every_op_has_its_reference_under_its_own_name():
    assert {name: getattr(reference, name) for name in OPS} == {
        name: op.reference for name, op in OPS.items()
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rectify_is_the_formula_and_leaves_its_inputs(dtype):
    inputs = rectify_inputs(dtype)
    before = [x.clone() for x in inputs]
    z_t, eps, eps_hat, noise_std, lam = (x.double() for x in inputs)
    z, target = dream_rectify(*inputs)
    room = {"rtol": 4 * torch.finfo(dtype).eps, "atol": 4 * torch.finfo(dtype).eps}
    torch.testing.assert_close(z.double(), z_t + noise_std * lam * (eps - eps_hat), **room)
    torch.testing.assert_close(target.double(), eps + lam * (eps - eps_hat), **room)
    assert all(torch.equal(x, y) for x, y in zip(inputs, before))


def test_rectify_has_the_right_gradients():
    inputs = [x.requires_grad_() for x in rectify_inputs()]
    assert torch.autograd.gradcheck(dream_rectify, inputs)


def test_rectify_takes_any_memory_layout():
    inputs = rectify_inputs(torch.float32)
    strided = [x.to(memory_format=torch.channels_last) for x in inputs]
    assert all(torch.equal(x, y) for x, y in zip(dream_rectify(*strided), dream_rectify(*inputs)))


def test_rectify_with_lam_zero_changes_no_bit():
    z_t, eps, eps_hat, noise_std, lam = rectify_inputs(torch.float32)
    z, target = dream_rectify(z_t, eps, eps_hat, noise_std, 0 * lam)
    assert torch.equal(z, z_t)
    assert torch.equal(target, eps)
