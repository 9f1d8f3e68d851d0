"""q_sample's kernel is held to DESIGN section 4, and its reference to the formula."""

import pytest
import torch

from dream_kernels import noise_key, q_sample, q_sample_eps, reference
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

SHAPES = [(1, 1, 1, 1), (3, 2, 7, 5), (2, 3, 16, 16), (2, 5, 23, 31)]


def inputs(shape, dtype=torch.float32, layout="contiguous"):
    generator = torch.Generator().manual_seed(0)
    tensors = torch.randn(3, *shape, generator=generator).to(DEVICE, dtype)
    factors = torch.rand(3, shape[0], 1, 1, 1, generator=generator).to(DEVICE)
    factors[1, :1] = 0  # the first sample has no z_lr in it
    return *(LAYOUTS[layout](x) for x in tensors), *factors


def eager(z0, z_lr, eps, a, b, s):
    return a.to(z0.dtype) * z0 + b.to(z0.dtype) * z_lr + s.to(z0.dtype) * eps


def wide(args):
    return tuple(x.double() if x.is_floating_point() else x for x in args)


def test_the_reference_is_the_formula_with_right_gradients():
    args = [x.requires_grad_() for x in wide(inputs((2, 2, 3, 2)))]
    assert torch.equal(q_sample(*args), eager(*args))
    assert torch.autograd.gradcheck(q_sample, args)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_q_sample_is_as_exact_as_eager(shape, dtype):
    args = inputs(shape, dtype)
    got = run_kernel(q_sample, *args)
    assert_as_exact_as_eager(got, reference.q_sample(*wide(args)), eager(*args))
    z_t, eps = run_kernel(q_sample_eps, *args)
    assert torch.equal(z_t, got)
    assert torch.equal(eps, args[2])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_q_sample_takes_any_layout(layout):
    args = inputs((2, 3, 7, 5), layout=layout)
    assert_as_exact_as_eager(
        run_kernel(q_sample, *args), reference.q_sample(*wide(args)), eager(*args)
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_noise_from_a_key_is_that_of_the_reference(layout, dtype):
    z0, z_lr, _, *factors = inputs((2, 3, 7, 5), dtype, layout)
    key = noise_key(torch.tensor([1, 2], device=DEVICE), draw=5)
    z_t, eps = run_kernel(q_sample_eps, z0, z_lr, key, *factors)
    truth = reference.normal(key, z0.double())
    assert_as_exact_as_eager(eps, truth, reference.normal(key, z0).to(dtype))
    exact = reference.q_sample(*wide((z0, z_lr)), truth, *wide(factors))
    assert_as_exact_as_eager(z_t, exact, eager(z0, z_lr, truth.to(dtype), *factors))
    assert torch.equal(run_kernel(q_sample, z0, z_lr, key, *factors), z_t)


def test_tiles_of_a_key_are_parts_of_the_whole():
    z0, z_lr, _, *factors = inputs((1, 3, 16, 24))
    seed = torch.tensor([9], device=DEVICE)
    whole = run_kernel(q_sample, z0, z_lr, noise_key(seed), *factors)
    tile = (slice(None), slice(None), slice(5, 12), slice(3, 20))
    assert torch.equal(
        run_kernel(q_sample, z0[tile], z_lr[tile], noise_key(seed, 0, 5, 3), *factors), whole[tile]
    )


def test_z_lr_is_not_read_where_b_is_zero():
    z0, z_lr, eps, a, b, s = inputs((3, 2, 4, 4))
    broken = z_lr.clone()
    broken[0] = torch.nan
    assert torch.equal(
        run_kernel(q_sample, z0, broken, eps, a, b, s), run_kernel(q_sample, z0, z_lr, eps, a, b, s)
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_q_sample_has_the_gradients_of_its_reference(dtype):
    args, grads = inputs((2, 3, 7, 5), dtype), inputs((2, 3, 7, 5), dtype)[1:3]
    truth = gradients(q_sample_eps, wide(args), range(6), wide(grads), "reference")
    theirs = gradients(q_sample_eps, args, range(6), grads, "reference")
    assert_as_exact_as_eager(
        gradients(q_sample_eps, args, range(6), grads, "triton"), truth, theirs
    )


@pytest.mark.parametrize("key", [False, True])
def test_q_sample_is_a_whole_citizen_of_torch(key):
    args = [x.requires_grad_() for x in inputs((2, 3, 4, 5), layout="channels_last")]
    args[2] = noise_key(torch.tensor([1, 2], device=DEVICE)) if key else args[2]
    for write_eps in (False, True):
        torch.library.opcheck(torch.ops.dream.q_sample.default, (*args, write_eps))


def test_q_sample_breaks_no_graph():
    assert_compiles_whole(q_sample, *inputs((2, 3, 7, 5)))
    assert_compiles_whole(q_sample_eps, *inputs((2, 3, 7, 5)))


def test_q_sample_compiles_without_spills_to_wide_accesses():
    assert_compiled_well("q_sample")
