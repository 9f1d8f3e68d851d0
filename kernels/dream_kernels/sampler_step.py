"""sampler_step: z_u = z_factor z_t + z0_factor clamp(z0_hat, -clip, clip) + sigma eps: one step of
a sampler in one pass.

That is the ancestral step and ResShift's (factors of the posterior mean), and one of DPM-Solver++
(z0_hat extrapolated, sigma 0). It is q_sample's kernel with a bound on its second input. Bytes an
element: 2 reads and 1 write, one read more for an eps that is given rather than a key. Saved for
backward, precision and limits as q_sample's; z0_hat gets no gradient where it is clipped.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import reference
from ._noise import is_key
from ._variant import NAMES, Variant
from .backend import runs_triton
from .q_sample import launch, results, variant


@torch.library.custom_op("dream::sampler_step", mutates_args=())
def sampler_step_op(
    z_t: Tensor,
    z0_hat: Tensor,
    eps: Tensor,
    z_factor: Tensor,
    z0_factor: Tensor,
    sigma: Tensor,
    clip: float | None,
) -> Tensor:
    return launch(z_t, z0_hat, eps, (z_factor, z0_factor, sigma), clip, False)[0]


@sampler_step_op.register_fake
def _(z_t, z0_hat, eps, z_factor, z0_factor, sigma, clip):
    return results(z_t, False)[0]


def _save(ctx, inputs, output):
    *tensors, ctx.clip = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx, grad):
    z_t, z0_hat, eps, z_factor, z0_factor, sigma = ctx.saved_tensors
    grad, z0 = grad.float(), z0_hat.float()
    inside = torch.ones_like(z0) if ctx.clip is None else (z0.abs() <= ctx.clip).float()
    bounded = z0 if ctx.clip is None else z0.clamp(-ctx.clip, ctx.clip)
    tensors = (z_factor * grad, z0_factor * grad * inside, sigma * grad)
    factors = (
        z_t.float() * grad,
        bounded * grad,
        reference.field(eps, z_t) * grad if ctx.needs_input_grad[5] else None,
    )
    grads = [None if is_key(x) else g.to(x.dtype) for g, x in zip(tensors, (z_t, z0_hat, eps))]
    for g, factor in zip(factors, (z_factor, z0_factor, sigma)):
        grads.append(None if g is None else g.sum_to_size(factor.shape).to(factor.dtype))
    return *grads, None


sampler_step_op.register_autograd(_backward, setup_context=_save)


def sampler_step(
    z_t: Tensor,
    z0_hat: Tensor,
    eps: Tensor,
    z_factor: Tensor,
    z0_factor: Tensor,
    sigma: Tensor,
    clip: float | None = None,
) -> Tensor:
    """-> z_u, as `reference.sampler_step`."""
    if runs_triton(z_t):
        return sampler_step_op(z_t, z0_hat, eps, z_factor, z0_factor, sigma, clip)
    return reference.sampler_step(z_t, z0_hat, eps, z_factor, z0_factor, sigma, clip)


def variants() -> list[Variant]:
    """With a clip, noise made and given."""
    return [variant("sampler_step", dtype, key, True, 0) for key in (1, 0) for dtype in NAMES]
