"""sampler_step's kernel is held to DESIGN section 4, and its reference to the samplers' steps."""

import pytest
import torch
from test_q_sample import inputs as q_sample_inputs
from test_q_sample import wide

from dream_kernels import noise_key, reference, sampler_step
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


def inputs(*args, clip=0.8, **options):
    return *q_sample_inputs(*args, **options), clip


def eager(z_t, z0_hat, eps, z_factor, z0_factor, sigma, clip):
    z0 = z0_hat if clip is None else z0_hat.clamp(-clip, clip)
    return z_factor.to(z_t.dtype) * z_t + z0_factor.to(z_t.dtype) * z0 + sigma.to(z_t.dtype) * eps


def exact(args):
    return reference.sampler_step(*wide(args[:-1]), args[-1])


def test_the_reference_has_right_gradients():
    args = [x.requires_grad_() for x in wide(inputs((2, 2, 3, 2))[:-1])]
    assert torch.autograd.gradcheck(lambda *x: sampler_step(*x, 0.8), args)


def test_it_is_the_ancestral_step_of_every_process(process: Process):
    generator = torch.Generator().manual_seed(1)
    z_t, z0_hat, eps = torch.randn(3, 2, 3, 4, 4, dtype=torch.float64, generator=generator)
    t, t_prev = torch.tensor([3, 2]), torch.tensor([1, -1])
    mean, variance = process.posterior(z0_hat.clamp(-1, 1), z_t, t, t_prev)
    z0_factor, z_factor = process.posterior_factors(t, t_prev)
    got = sampler_step(z_t, z0_hat, eps, z_factor, z0_factor, variance.sqrt(), 1.0)
    torch.testing.assert_close(got, mean + variance.sqrt() * eps)


@pytest.mark.parametrize("clip", [None, 0.8])
@pytest.mark.parametrize("dtype", DTYPES)
def test_step_is_as_exact_as_eager(dtype, clip):
    args = inputs((2, 5, 23, 31), dtype, clip=clip)
    assert_as_exact_as_eager(run_kernel(sampler_step, *args), exact(args), eager(*args))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_step_takes_any_layout(layout):
    args = inputs((2, 3, 7, 5), layout=layout)
    assert_as_exact_as_eager(run_kernel(sampler_step, *args), exact(args), eager(*args))


def test_step_makes_the_noise_of_its_draw():
    z_t, z0_hat, _, *rest = inputs((2, 3, 7, 5))
    for draw in (1, 2):
        key = noise_key(torch.tensor([1, 1], device=DEVICE), draw)
        args = z_t, z0_hat, reference.normal(key, z_t), *rest
        truth = sampler_step(
            *wide((z_t, z0_hat)), reference.normal(key, z_t.double()), *wide(rest[:-1]), rest[-1]
        )
        assert_as_exact_as_eager(
            run_kernel(sampler_step, z_t, z0_hat, key, *rest), truth, eager(*args)
        )


def test_clipping_hides_no_nan():
    args = inputs((1, 1, 2, 2))
    args[1][...] = torch.nan
    args[4][...] = 1
    assert run_kernel(sampler_step, *args).isnan().sum() == args[1].isnan().sum()


@pytest.mark.parametrize("dtype", DTYPES)
def test_step_has_the_gradients_of_its_reference(dtype):
    *args, clip = inputs((2, 3, 7, 5), dtype)

    def clipped(*x):
        return sampler_step(*x, clip)

    grads = (args[1],)
    truth = gradients(clipped, wide(args), range(6), wide(grads), "reference")
    theirs = gradients(clipped, args, range(6), grads, "reference")
    assert_as_exact_as_eager(gradients(clipped, args, range(6), grads, "triton"), truth, theirs)


@pytest.mark.parametrize("clip", [None, 0.8])
def test_step_is_a_whole_citizen_of_torch(clip):
    args = [x.requires_grad_() for x in inputs((2, 3, 4, 5), layout="channels_last")[:-1]]
    torch.library.opcheck(torch.ops.dream.sampler_step.default, (*args, clip))
    args[2] = noise_key(torch.tensor([1, 2], device=DEVICE))
    torch.library.opcheck(torch.ops.dream.sampler_step.default, (*args, clip))


def test_step_breaks_no_graph():
    assert_compiles_whole(sampler_step, *inputs((2, 3, 7, 5)))


def test_step_compiles_without_spills_to_wide_accesses():
    assert_compiled_well("sampler_step")
