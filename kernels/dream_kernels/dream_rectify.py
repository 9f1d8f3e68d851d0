"""dream_rectify: DREAM's rectified input in one pass (arXiv 2312.00210, Eq. 15).

    z_t' = z_t + noise_std lam (eps - eps_hat)

Bytes an element: 3 reads and 1 write. Saved for backward: the inputs, by reference. Precision:
float32 inside, rounded once at the store. Limits: float32, float16, bfloat16 (float64 runs the
reference); tensors in another layout than z_t's are copied first. Accesses are 128 bits wide where
C*h*w is a multiple of 16.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import reference
from ._layout import BLOCK, WARPS, block_of, dense, grid, per_sample, variant
from ._triton import jit, run, tl
from ._variant import Variant


@jit
def rectify_kernel(z_t, eps, eps_hat, noise_std, lam, out, size, blocks, BLOCK: tl.constexpr):
    sample, at, mask = block_of(size, blocks, BLOCK)
    noise = tl.load(eps + at, mask).to(tl.float32)
    shift = tl.load(lam + sample) * (noise - tl.load(eps_hat + at, mask).to(tl.float32))
    z = tl.load(z_t + at, mask).to(tl.float32) + tl.load(noise_std + sample) * shift
    tl.store(out + at, z.to(out.dtype.element_ty), mask)


@torch.library.custom_op("dream::dream_rectify", mutates_args=())
def rectify_op(z_t: Tensor, eps: Tensor, eps_hat: Tensor, noise_std: Tensor, lam: Tensor) -> Tensor:
    z_t, eps, eps_hat = dense(z_t, eps, eps_hat)
    out = torch.empty_like(z_t)
    if z_t.numel():
        programs, size, blocks = grid(z_t)
        factors = per_sample(noise_std, len(z_t)), per_sample(lam, len(z_t))
        run(rectify_kernel, *programs)(
            z_t, eps, eps_hat, *factors, out, size, blocks, BLOCK, num_warps=WARPS
        )  # fmt: skip
    return out


@rectify_op.register_fake
def _(z_t, eps, eps_hat, noise_std, lam):
    return torch.empty_like(dense(z_t)[0])


def _save(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _backward(ctx, grad):
    z_t, eps, eps_hat, noise_std, lam = ctx.saved_tensors
    grad, difference = grad.float(), eps.float() - eps_hat.float()
    to_shift = noise_std * grad
    grads = (
        grad,
        lam * to_shift,
        -lam * to_shift,
        (grad * lam * difference).sum_to_size(noise_std.shape),
        (difference * to_shift).sum_to_size(lam.shape),
    )
    return tuple(grad.to(x.dtype) for grad, x in zip(grads, ctx.saved_tensors))


rectify_op.register_autograd(_backward, setup_context=_save)


@reference.kernel_of(reference.dream_rectify)
def dream_rectify(
    z_t: Tensor, eps: Tensor, eps_hat: Tensor, noise_std: Tensor, lam: Tensor
) -> Tensor:
    """-> z_t', as `reference.dream_rectify`."""
    return rectify_op(z_t, eps, eps_hat, noise_std, lam)


def variants() -> list[Variant]:
    """float32, as the loss holds z_t and eps, whatever the network computes in."""
    return [variant("dream_rectify/fp32", rectify_kernel, 4 * 4, {})]
