"""q_sample: z_t = a z0 + b z_lr + s eps in one pass; eps is given, or made in the kernel from a key
(`_noise.py`).

Bytes an element: z0 is read and z_t written; z_lr is read only in samples whose b is not 0 (a NaN
there stays unseen); eps is read if given, and written only by `q_sample_eps`. Saved for backward:
the inputs, by reference. Precision: float32 inside, one rounding at each store. Limits as
dream_rectify's.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import reference
from ._layout import block_of, dense, grid, per_sample
from ._noise import eps_block, inner_sizes, is_key
from ._triton import jit, tl
from ._variant import NAMES, Variant
from .backend import runs_triton

BLOCK, WARPS = 2048, 4  # as dream_rectify's


@jit
def blend_kernel(
    x, y, eps, x_factor, y_factor, eps_factor, bound, out, eps_out, size, blocks, d1, d2,
    LAST: tl.constexpr, CLAMP: tl.constexpr, WRITE_EPS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """x_factor x + y_factor clamp(y, -bound, bound) + eps_factor eps."""
    sample, start, lanes, at, mask = block_of(size, blocks, BLOCK)
    p, q, s = tl.load(x_factor + sample), tl.load(y_factor + sample), tl.load(eps_factor + sample)
    noise = eps_block(eps, sample, start, lanes, at, mask, d1, d2, LAST)
    second = tl.load(y + at, mask & (tl.broadcast_to(q, (BLOCK,)) != 0), other=0.0).to(tl.float32)
    if CLAMP:
        second = tl.minimum(
            tl.maximum(second, -bound, tl.PropagateNan.ALL), bound, tl.PropagateNan.ALL
        )
    value = p * tl.load(x + at, mask).to(tl.float32) + q * second + s * noise
    tl.store(out + at, value.to(out.dtype.element_ty), mask)
    if WRITE_EPS:
        tl.store(eps_out + at, noise.to(eps_out.dtype.element_ty), mask)


def launch(
    x: Tensor,
    y: Tensor,
    eps: Tensor,
    factors: tuple[Tensor, Tensor, Tensor],
    bound: float | None,
    write_eps: bool,
) -> tuple[Tensor, Tensor]:
    out, eps_out = results(x, write_eps)
    x, y, eps = dense(x, y, eps)
    if x.numel():
        programs, size, blocks = grid(x, BLOCK)
        p, q, s = (per_sample(factor, len(x)) for factor in factors)
        clamp = bound is not None
        blend_kernel[programs](
            x, y, eps, p, q, s, float(bound) if clamp else 0.0, out, eps_out, size, blocks, *inner_sizes(x),
            clamp, write_eps, BLOCK, num_warps=WARPS,
        )  # fmt: skip
    return out, eps_out


def results(x: Tensor, write_eps: bool) -> tuple[Tensor, Tensor]:
    out = torch.empty_like(dense(x)[0])
    return out, torch.empty_like(out) if write_eps else out.new_empty(0)


@torch.library.custom_op("dream::q_sample", mutates_args=())
def q_sample_op(
    z0: Tensor, z_lr: Tensor, eps: Tensor, a: Tensor, b: Tensor, s: Tensor, write_eps: bool
) -> tuple[Tensor, Tensor]:
    """-> (z_t, eps); the second is empty unless it is asked for."""
    return launch(z0, z_lr, eps, (a, b, s), None, write_eps)


@q_sample_op.register_fake
def _(z0, z_lr, eps, a, b, s, write_eps):
    return results(z0, write_eps)


def _save(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:6])


def _backward(ctx, grad, grad_eps):
    z0, z_lr, eps, a, b, s = ctx.saved_tensors
    grad = grad.float()
    pairs = ((a, z0), (b, z_lr), (s, eps))
    tensors = [None if is_key(x) else (factor * grad).to(x.dtype) for factor, x in pairs]
    if grad_eps.numel() and not is_key(eps):
        tensors[2] = tensors[2] + grad_eps
    wanted = zip(pairs, ctx.needs_input_grad[3:6])
    factors = [
        (reference.field(x, z0) * grad).sum_to_size(f.shape).to(f.dtype) if want else None
        for (f, x), want in wanted
    ]
    return *tensors, *factors, None


q_sample_op.register_autograd(_backward, setup_context=_save)


def q_sample(z0: Tensor, z_lr: Tensor, eps: Tensor, a: Tensor, b: Tensor, s: Tensor) -> Tensor:
    """-> z_t, as `reference.q_sample`."""
    if runs_triton(z0):
        return q_sample_op(z0, z_lr, eps, a, b, s, False)[0]
    return reference.q_sample(z0, z_lr, eps, a, b, s)


def q_sample_eps(
    z0: Tensor, z_lr: Tensor, eps: Tensor, a: Tensor, b: Tensor, s: Tensor
) -> tuple[Tensor, Tensor]:
    """-> (z_t, eps in z0's dtype), as `reference.q_sample_eps`: for noise that was made from a key
    and is wanted again.
    """
    if runs_triton(z0):
        return q_sample_op(z0, z_lr, eps, a, b, s, True)
    return reference.q_sample_eps(z0, z_lr, eps, a, b, s)


def variants() -> list[Variant]:
    """Noise given, made, and made and written. Bytes with z_lr read."""
    return [
        variant("q_sample", dtype, key, False, write)
        for key, write in ((0, 0), (1, 0), (1, 1))
        for dtype in NAMES
    ]


def variant(op: str, dtype: str, key: int, clamp: bool, write_eps: int) -> Variant:
    kinds = dict.fromkeys(("x", "y", "eps", "out", "eps_out"), f"*{dtype}") | (
        {"eps": "*i64"} if key else {}
    )
    kinds |= dict.fromkeys(("x_factor", "y_factor", "eps_factor"), "*fp32") | {"bound": "fp32"}
    kinds |= dict.fromkeys(("size", "blocks", "d1", "d2"), "i32")
    constexprs = {"LAST": False, "CLAMP": clamp, "WRITE_EPS": bool(write_eps), "BLOCK": BLOCK}
    signature = {name: kinds.get(name, "constexpr") for name in blend_kernel.arg_names}
    moved = (4 - key + write_eps) * NAMES[dtype]
    name = f"{op}{'_key' if key else ''}{'_eps' if write_eps else ''}/{dtype}"
    return Variant(
        name, blend_kernel, signature, constexprs, WARPS, moved, moved, ("size", "d1", "d2")
    )
