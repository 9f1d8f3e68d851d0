"""q_sample: z_t = a z0 + b z_lr + s eps in one pass; also a sampler's step, which is such a sum.

Bytes an element: 3 reads and 1 write; z_lr is read only in samples whose b is not 0 (a NaN there
stays unseen). Saved for backward: the inputs, by reference. Precision and limits as those of
dream_rectify.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import reference
from ._layout import BLOCK, WARPS, block_of, dense, grid, per_sample, variant
from ._triton import jit, run, tl
from ._variant import Variant


@jit
def q_sample_kernel(z0, z_lr, eps, a, b, s, out, size, blocks, BLOCK: tl.constexpr):
    sample, at, mask = block_of(size, blocks, BLOCK)
    a_, b_, s_ = tl.load(a + sample), tl.load(b + sample), tl.load(s + sample)
    noise = tl.load(eps + at, mask).to(tl.float32)
    low = tl.load(z_lr + at, mask & (tl.broadcast_to(b_, (BLOCK,)) != 0), other=0.0).to(tl.float32)
    value = a_ * tl.load(z0 + at, mask).to(tl.float32) + b_ * low + s_ * noise
    tl.store(out + at, value.to(out.dtype.element_ty), mask)


@torch.library.custom_op("dream::q_sample", mutates_args=())
def q_sample_op(z0: Tensor, z_lr: Tensor, eps: Tensor, a: Tensor, b: Tensor, s: Tensor) -> Tensor:
    z0, z_lr, eps = dense(z0, z_lr, eps)
    out = torch.empty_like(z0)
    if z0.numel():
        programs, size, blocks = grid(z0)
        factors = (per_sample(factor, len(z0)) for factor in (a, b, s))
        run(q_sample_kernel, *programs)(
            z0, z_lr, eps, *factors, out, size, blocks, BLOCK, num_warps=WARPS
        )  # fmt: skip
    return out


@q_sample_op.register_fake
def _(z0, z_lr, eps, a, b, s):
    return torch.empty_like(dense(z0)[0])


def _save(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _backward(ctx, grad):
    tensors, factors = ctx.saved_tensors[:3], ctx.saved_tensors[3:]
    grad = grad.float()
    to_tensors = [(factor * grad).to(x.dtype) for x, factor in zip(tensors, factors)]
    to_factors = [
        (x.float() * grad).sum_to_size(factor.shape).to(factor.dtype) if wanted else None
        for x, factor, wanted in zip(tensors, factors, ctx.needs_input_grad[3:])
    ]
    return *to_tensors, *to_factors


q_sample_op.register_autograd(_backward, setup_context=_save)


@reference.kernel_of(reference.q_sample)
def q_sample(z0: Tensor, z_lr: Tensor, eps: Tensor, a: Tensor, b: Tensor, s: Tensor) -> Tensor:
    """-> z_t, as `reference.q_sample`."""
    return q_sample_op(z0, z_lr, eps, a, b, s)


def variants() -> list[Variant]:
    """float32, as loss and samplers hold z, whatever the network computes in. z_lr is read."""
    return [variant("q_sample/fp32", q_sample_kernel, 4 * 4, {})]
