"""dream_rectify: DREAM's rectified input and target in one pass (arXiv 2312.00210, Eq. 14-15).

    shift = lam (eps - eps_hat);   z_t' = z_t + noise_std shift;   target = eps + shift

Bytes an element: 3 reads and 2 writes; `dream_rectify_input` leaves the target out and writes once. Saved for backward: eps and
eps_hat, by reference. Precision: float32 inside, rounded once at each store. Limits: float32, float16, bfloat16 (float64 runs the
reference); tensors in another layout than z_t's are copied first. Accesses are 128 bits wide where C*h*w is a multiple of 16.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import reference
from ._layout import dense, per_sample
from ._triton import jit, tl
from ._variant import NAMES, Variant
from .backend import runs_triton

BLOCK, WARPS = 2048, 4  # 8 values a thread even where a warp has 64: 128 bits in half precision


@jit
def rectify_kernel(
    z_t, eps, eps_hat, noise_std, lam, out, target, size, blocks, WRITE_TARGET: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """One program: BLOCK values of one sample; `size` values and `blocks` programs a sample."""
    sample = tl.program_id(0) // blocks
    inside = (tl.program_id(0) % blocks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    at, mask = sample.to(tl.int64) * size + inside, inside < size
    noise = tl.load(eps + at, mask).to(tl.float32)
    shift = tl.load(lam + sample) * (noise - tl.load(eps_hat + at, mask).to(tl.float32))
    z = tl.load(z_t + at, mask).to(tl.float32) + tl.load(noise_std + sample) * shift
    tl.store(out + at, z.to(out.dtype.element_ty), mask)
    if WRITE_TARGET:
        tl.store(target + at, (noise + shift).to(target.dtype.element_ty), mask)


def launch(
    z_t: Tensor, eps: Tensor, eps_hat: Tensor, noise_std: Tensor, lam: Tensor, write_target: bool
) -> tuple[Tensor, Tensor]:
    z_t, eps, eps_hat = dense(z_t, eps, eps_hat)
    out, target = torch.empty_like(z_t), torch.empty_like(eps) if write_target else eps.new_empty(0)
    samples = len(z_t)
    if z_t.numel():
        size = z_t.numel() // samples
        blocks = -(-size // BLOCK)
        factors = per_sample(noise_std, samples), per_sample(lam, samples)
        rectify_kernel[(samples * blocks,)](
            z_t, eps, eps_hat, *factors, out, target, size, blocks, write_target, BLOCK, num_warps=WARPS
        )  # fmt: skip
    return out, target


@torch.library.custom_op("dream::dream_rectify", mutates_args=())
def rectify_op(
    z_t: Tensor, eps: Tensor, eps_hat: Tensor, noise_std: Tensor, lam: Tensor, write_target: bool
) -> tuple[Tensor, Tensor]:
    """-> (z_t', target); the target is empty unless it is asked for."""
    return launch(z_t, eps, eps_hat, noise_std, lam, write_target)


@rectify_op.register_fake
def _(z_t, eps, eps_hat, noise_std, lam, write_target):
    z_t, eps = dense(z_t, eps)
    return torch.empty_like(z_t), torch.empty_like(eps) if write_target else eps.new_empty(0)


def _save(ctx, inputs, output):
    *tensors, ctx.write_target = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx, grad_out, grad_target):
    _, eps, eps_hat, noise_std, lam = ctx.saved_tensors
    grad_out, grad_target = grad_out.float(), grad_target.float() if ctx.write_target else 0
    difference, grad_shift = eps.float() - eps_hat.float(), noise_std * grad_out + grad_target
    grads = (
        grad_out,
        lam * grad_shift + grad_target,
        -lam * grad_shift,
        (grad_out * lam * difference).sum_to_size(noise_std.shape),
        (difference * grad_shift).sum_to_size(lam.shape),
    )
    return *(grad.to(x.dtype) for grad, x in zip(grads, ctx.saved_tensors)), None


rectify_op.register_autograd(_backward, setup_context=_save)


def dream_rectify(z_t: Tensor, eps: Tensor, eps_hat: Tensor, noise_std: Tensor, lam: Tensor) -> tuple[Tensor, Tensor]:
    """-> (z_t', target), as `reference.dream_rectify`."""
    if runs_triton(z_t):
        return rectify_op(z_t, eps, eps_hat, noise_std, lam, True)
    return reference.dream_rectify(z_t, eps, eps_hat, noise_std, lam)


def dream_rectify_input(z_t: Tensor, eps: Tensor, eps_hat: Tensor, noise_std: Tensor, lam: Tensor) -> Tensor:
    """-> z_t' alone, as `reference.dream_rectify_input`: for a loss that makes the target itself."""
    if runs_triton(z_t):
        return rectify_op(z_t, eps, eps_hat, noise_std, lam, False)[0]
    return reference.dream_rectify_input(z_t, eps, eps_hat, noise_std, lam)


def variants() -> list[Variant]:
    """With and without target, each dtype."""
    return [_variant(dtype, write_target) for write_target in (True, False) for dtype in NAMES]


def _variant(dtype: str, write_target: bool) -> Variant:
    tensors, factors = ("z_t", "eps", "eps_hat", "out", "target"), ("noise_std", "lam")
    kinds = dict.fromkeys(tensors, f"*{dtype}") | dict.fromkeys(factors, "*fp32") | {"size": "i32", "blocks": "i32"}
    constexprs = {"WRITE_TARGET": write_target, "BLOCK": BLOCK}
    signature = {name: kinds.get(name, "constexpr") for name in rectify_kernel.arg_names}
    moved = (5 if write_target else 4) * NAMES[dtype]
    name = f"dream_rectify{'' if write_target else '_input'}/{dtype}"
    return Variant(name, rectify_kernel, signature, constexprs, WARPS, moved, moved, ("size",))
