"""dream_rectify's kernel is held to docs/design.md (Kernels), its reference to the formula."""

import pytest
import torch

from dream_kernels import dream_rectify, reference
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

SHAPES = [(1, 1, 1, 1), (3, 2, 7, 5), (2, 3, 16, 16), (2, 5, 23, 31)]  # also over a block's end


def inputs(shape, dtype=torch.float32, layout="contiguous"):
    """z_t, eps, eps_hat, noise_std, lam."""
    generator = torch.Generator().manual_seed(0)
    tensors = torch.randn(3, *shape, generator=generator).to(DEVICE, dtype)
    factors = torch.rand(2, shape[0], 1, 1, 1, generator=generator).to(DEVICE)
    return *(LAYOUTS[layout](x) for x in tensors), *factors


def double(args):
    return tuple(x.double() for x in args)


def eager(z_t, eps, eps_hat, noise_std, lam):
    """The formula in the tensors' own dtype, an operation at a time."""
    return z_t + noise_std.to(eps.dtype) * (lam.to(eps.dtype) * (eps - eps_hat))


def exact(args):
    return reference.dream_rectify(*double(args))


def test_the_reference_is_the_formula_with_right_gradients():
    args = [x.requires_grad_() for x in double(inputs((2, 2, 3, 2)))]
    assert torch.equal(dream_rectify(*args), eager(*args))
    assert torch.autograd.gradcheck(dream_rectify, args)


@pytest.mark.parametrize("mode", [dream_rectify, lambda *x: run_kernel(dream_rectify, *x)])
def test_lam_zero_changes_no_bit(mode):
    z_t, eps, eps_hat, noise_std, lam = inputs((2, 3, 7, 5))
    assert torch.equal(mode(z_t, eps, eps_hat, noise_std, 0 * lam), z_t)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_rectify_is_as_exact_as_eager(shape, dtype):
    args = inputs(shape, dtype)
    assert_as_exact_as_eager(run_kernel(dream_rectify, *args), exact(args), eager(*args))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_rectify_takes_any_layout(layout):
    args = inputs((2, 3, 7, 5), layout=layout)
    assert_as_exact_as_eager(run_kernel(dream_rectify, *args), exact(args), eager(*args))


def test_rectify_takes_a_layout_for_each_input():
    args = inputs((2, 3, 7, 5))
    mixed = [LAYOUTS[name](x) for name, x in zip(("channels_last", "strided", "contiguous"), args)]
    got = run_kernel(dream_rectify, *mixed, *args[3:])
    assert got.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(got, run_kernel(dream_rectify, *args))


def test_rectify_takes_a_dtype_for_each_input_and_one_factor_for_all():
    z_t, eps, eps_hat, noise_std, lam = inputs((2, 3, 7, 5))
    args = z_t, eps, eps_hat.bfloat16(), noise_std[:1], lam[:1]
    assert_as_exact_as_eager(
        run_kernel(dream_rectify, *args), exact(args), reference.dream_rectify(*args)
    )


def test_rectify_of_nothing_is_nothing():
    assert run_kernel(dream_rectify, *inputs((0, 3, 4, 4))).shape == (0, 3, 4, 4)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rectify_has_the_gradients_of_its_reference(dtype):
    args, grads = inputs((2, 3, 7, 5), dtype), inputs((2, 3, 7, 5), dtype)[1:2]
    truth = gradients(dream_rectify, double(args), range(5), double(grads), "reference")
    theirs = gradients(dream_rectify, args, range(5), grads, "reference")
    got = gradients(dream_rectify, args, range(5), grads, "triton")
    assert_as_exact_as_eager(got, truth, theirs)


def test_rectify_is_a_whole_citizen_of_torch():
    args = tuple(x.requires_grad_() for x in inputs((2, 3, 4, 5), layout="channels_last"))
    torch.library.opcheck(torch.ops.dream.dream_rectify.default, args)


def test_rectify_breaks_no_graph():
    assert_compiles_whole(dream_rectify, *inputs((2, 3, 7, 5)))


def test_rectify_compiles_without_spills_to_wide_accesses():
    assert_compiled_well("dream_rectify")
