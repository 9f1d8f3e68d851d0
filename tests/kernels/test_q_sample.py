"""q_sample's kernel is held to docs/design.md (Kernels), and its reference to the formula and to
the samplers' steps.
"""

import pytest
import torch

from dream_kernels import q_sample, reference
from kernel_rules import (
    DEVICE,
    DTYPES,
    LAYOUTS,
    assert_as_exact_as_eager,
    assert_compiled_well,
    assert_compiles_whole,
    gradients,
    run_kernel,
)
from ldm_dream.process import Process

SHAPES = [(1, 1, 1, 1), (3, 2, 7, 5), (2, 3, 16, 16), (2, 5, 23, 31)]


def inputs(shape, dtype=torch.float32, layout="contiguous"):
    generator = torch.Generator().manual_seed(0)
    tensors = torch.randn(3, *shape, generator=generator).to(DEVICE, dtype)
    factors = torch.rand(3, shape[0], 1, 1, 1, generator=generator).to(DEVICE)
    factors[1, :1] = 0  # the first sample has no z_lr in it
    return *(LAYOUTS[layout](x) for x in tensors), *factors


def eager(z0, z_lr, eps, a, b, s):
    return a.to(z0.dtype) * z0 + b.to(z0.dtype) * z_lr + s.to(z0.dtype) * eps


def double(args):
    return tuple(x.double() for x in args)


def test_the_reference_is_the_formula_with_right_gradients():
    args = [x.requires_grad_() for x in double(inputs((2, 2, 3, 2)))]
    assert torch.equal(q_sample(*args), eager(*args))
    assert torch.autograd.gradcheck(q_sample, args)


def test_it_is_the_ancestral_step_of_every_process(process: Process):
    generator = torch.Generator().manual_seed(1)
    z_t, z0_hat, eps = torch.randn(3, 2, 3, 4, 4, dtype=torch.float64, generator=generator)
    t, t_prev = torch.tensor([3, 2]), torch.tensor([1, -1])
    mean, variance = process.posterior(z0_hat, z_t, t, t_prev)
    z0_factor, z_factor = process.posterior_factors(t, t_prev)
    got = q_sample(z_t, z0_hat, eps, z_factor, z0_factor, variance.sqrt())
    torch.testing.assert_close(got, mean + variance.sqrt() * eps)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_q_sample_is_as_exact_as_eager(shape, dtype):
    args = inputs(shape, dtype)
    got = run_kernel(q_sample, *args)
    assert_as_exact_as_eager(got, reference.q_sample(*double(args)), eager(*args))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_q_sample_takes_any_layout(layout):
    args = inputs((2, 3, 7, 5), layout=layout)
    got = run_kernel(q_sample, *args)
    assert_as_exact_as_eager(got, reference.q_sample(*double(args)), eager(*args))


def test_q_sample_of_nothing_is_nothing():
    assert run_kernel(q_sample, *inputs((0, 3, 4, 4))).shape == (0, 3, 4, 4)


def test_z_lr_is_not_read_where_b_is_zero():
    z0, z_lr, eps, a, b, s = inputs((3, 2, 4, 4))
    broken = z_lr.clone()
    broken[0] = torch.nan
    got = run_kernel(q_sample, z0, broken, eps, a, b, s)
    assert torch.equal(got, run_kernel(q_sample, z0, z_lr, eps, a, b, s))


@pytest.mark.parametrize("dtype", DTYPES)
def test_q_sample_has_the_gradients_of_its_reference(dtype):
    args, grads = inputs((2, 3, 7, 5), dtype), inputs((2, 3, 7, 5), dtype)[1:2]
    truth = gradients(q_sample, double(args), range(6), double(grads), "reference")
    theirs = gradients(q_sample, args, range(6), grads, "reference")
    assert_as_exact_as_eager(gradients(q_sample, args, range(6), grads, "triton"), truth, theirs)


def test_q_sample_is_a_whole_citizen_of_torch():
    args = tuple(x.requires_grad_() for x in inputs((2, 3, 4, 5), layout="channels_last"))
    torch.library.opcheck(torch.ops.dream.q_sample.default, args)


def test_q_sample_breaks_no_graph():
    assert_compiles_whole(q_sample, *inputs((2, 3, 7, 5)))


def test_q_sample_compiles_without_spills_to_wide_accesses():
    assert_compiled_well("q_sample")
