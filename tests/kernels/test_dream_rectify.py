"""dream_rectify's kernel is held to DESIGN section 4; the formula itself is tested in
test_reference.py.
"""

import pytest
import torch

from dream_kernels import dream_rectify, dream_rectify_input, noise_key, reference
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

SHAPES = [
    (1, 1, 1, 1),
    (3, 2, 7, 5),
    (2, 3, 16, 16),
    (2, 5, 23, 31),
]  # within a block, and over its end


def inputs(shape, dtype=torch.float32, layout="contiguous"):
    generator = torch.Generator().manual_seed(0)
    tensors = torch.randn(3, *shape, generator=generator).to(DEVICE, dtype)
    factors = torch.rand(2, shape[0], 1, 1, 1, generator=generator).to(DEVICE)
    return *(LAYOUTS[layout](x) for x in tensors), *factors


def eager(z_t, eps, eps_hat, noise_std, lam):
    """The formula in the tensors' own dtype, an operation at a time."""
    shift = lam.to(eps.dtype) * (eps - eps_hat)
    return z_t + noise_std.to(eps.dtype) * shift, eps + shift


def exact(args):
    return reference.dream_rectify(*(x.double() for x in args))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_rectify_is_as_exact_as_eager(shape, dtype):
    args = inputs(shape, dtype)
    got = run_kernel(dream_rectify, *args)
    assert_as_exact_as_eager(got, exact(args), eager(*args))
    assert torch.equal(run_kernel(dream_rectify_input, *args), got[0])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_rectify_takes_any_layout(layout):
    args = inputs((2, 3, 7, 5), layout=layout)
    assert_as_exact_as_eager(run_kernel(dream_rectify, *args), exact(args), eager(*args))


def test_rectify_takes_a_layout_for_each_input():
    args = inputs((2, 3, 7, 5))
    mixed = [LAYOUTS[name](x) for name, x in zip(("channels_last", "strided", "contiguous"), args)]
    wanted = run_kernel(dream_rectify, *args)
    got = run_kernel(dream_rectify, *mixed, *args[3:])
    assert got[0].is_contiguous(memory_format=torch.channels_last)
    assert all(torch.equal(x, y) for x, y in zip(got, wanted))


def test_rectify_takes_a_dtype_for_each_input_and_one_factor_for_all():
    z_t, eps, eps_hat, noise_std, lam = inputs((2, 3, 7, 5))
    args = z_t, eps, eps_hat.bfloat16(), noise_std[:1], lam[:1]
    assert_as_exact_as_eager(
        run_kernel(dream_rectify, *args), exact(args), reference.dream_rectify(*args)
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_rectify_makes_the_noise_that_a_key_stands_for(layout, dtype):
    z_t, _, *rest = inputs((2, 3, 7, 5), dtype, layout)
    key = noise_key(torch.tensor([1, 2], device=DEVICE), row=3)
    args = z_t, reference.normal(key, z_t).to(dtype), *rest
    truth = reference.dream_rectify(z_t.double(), key, *(x.double() for x in rest))
    assert_as_exact_as_eager(run_kernel(dream_rectify, z_t, key, *rest), truth, eager(*args))


def test_rectify_of_nothing_is_nothing():
    assert [x.shape for x in run_kernel(dream_rectify, *inputs((0, 3, 4, 4)))] == [(0, 3, 4, 4)] * 2


@pytest.mark.parametrize("dtype", DTYPES)
def test_rectify_has_the_gradients_of_its_reference(dtype):
    args, grads = inputs((2, 3, 7, 5), dtype), inputs((2, 3, 7, 5), dtype)[1:3]
    truth = gradients(
        dream_rectify,
        tuple(x.double() for x in args),
        range(5),
        [g.double() for g in grads],
        "reference",
    )
    theirs = gradients(dream_rectify, args, range(5), grads, "reference")
    assert_as_exact_as_eager(
        gradients(dream_rectify, args, range(5), grads, "triton"), truth, theirs
    )


@pytest.mark.parametrize("write_target", [True, False])
def test_rectify_is_a_whole_citizen_of_torch(write_target):
    args = tuple(x.requires_grad_() for x in inputs((2, 3, 4, 5), layout="channels_last"))
    torch.library.opcheck(torch.ops.dream.dream_rectify.default, (*args, write_target))


def test_rectify_breaks_no_graph():
    assert_compiles_whole(dream_rectify, *inputs((2, 3, 7, 5)))
    assert_compiles_whole(dream_rectify_input, *inputs((2, 3, 7, 5)))


def test_rectify_compiles_without_spills_to_wide_accesses():
    assert_compiled_well("dream_rectify")
