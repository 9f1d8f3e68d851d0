"""dream_loss: the distance of a network's output to its DREAM target, which is never stored.

    rectified = eps + lam (eps - eps_hat)                        arXiv 2312.00210, Eq. 14
    target    = rectified ("eps"),   z0 ("z0"),   a rectified - s z0 ("v")
    loss[b]   = mean rho(pred - target)
    rho(r)    = |r| ("l1"),   r^2 ("l2"),   r^2 / 2 up to |r| = 1 and |r| - 1/2 beyond ("huber")

Only pred gets a gradient: the forward pass leaves rho'(r) behind (int8 for l1, where it is a sign
and nothing is rounded; a NaN shows in the loss), the backward scales it by the gradient of loss[b].
Reads: pred and what the target is made of; writes: rho'. Sums: one float32 a program, then over a
sample's programs in a fixed order; no atomics. Limits as dream_rectify's.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from . import reference
from ._layout import BLOCK, WARPS, block_of, dense, grid, per_sample, variant
from ._triton import jit, run, tl
from ._variant import BYTES, Variant


@jit
def loss_kernel(
    pred, eps, eps_hat, z0, lam, a, s, partial, slope, size, blocks,
    RECTIFY: tl.constexpr, V: tl.constexpr, KIND: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """partial[program] = sum of rho; slope = rho'. The target: eps, then rectified, then made v."""
    sample, at, mask = block_of(size, blocks, BLOCK)
    target = tl.load(eps + at, mask).to(tl.float32)
    if RECTIFY:
        estimate = tl.load(eps_hat + at, mask, other=0.0).to(tl.float32)
        target += tl.load(lam + sample) * (target - estimate)
    if V:
        clean = tl.load(z0 + at, mask, other=0.0).to(tl.float32)
        target = tl.load(a + sample) * target - tl.load(s + sample) * clean
    r = tl.where(mask, tl.load(pred + at, mask, other=0.0).to(tl.float32) - target, 0.0)
    size_of_r = tl.abs(r)
    if KIND == "l1":
        rho, rise = size_of_r, tl.where(r > 0, 1.0, tl.where(r < 0, -1.0, r))  # NaN stays
    elif KIND == "l2":
        rho, rise = r * r, 2 * r
    else:
        rho = tl.where(size_of_r <= 1, 0.5 * r * r, size_of_r - 0.5)
        rise = tl.where(size_of_r <= 1, r, tl.where(r < 0, -1.0, 1.0))
    tl.store(partial + tl.program_id(0), tl.sum(rho, 0))
    tl.store(slope + at, rise.to(slope.dtype.element_ty), mask)


@torch.library.custom_op("dream::dream_loss", mutates_args=())
def loss_op(
    pred: Tensor,
    eps: Tensor | None,
    eps_hat: Tensor | None,
    lam: Tensor | None,
    z0: Tensor | None,
    a: Tensor | None,
    s: Tensor | None,
    prediction: str,
    kind: str,
) -> tuple[Tensor, Tensor]:
    """-> loss [B] float32, and the slope that the backward scales."""
    loss, slope = results(pred, kind)
    if not pred.numel():
        return loss.zero_(), slope
    if prediction == "z0":  # a target that stands ready, as plain eps does
        eps, eps_hat, lam = z0, None, None
    nothing = loss.new_empty(1, 1, 1, 1)  # in place of what is not given, and not read
    tensors = (nothing if x is None else x for x in (eps, eps_hat, z0))
    factors = (nothing if x is None else x for x in (lam, a, s))
    pred, *tensors = dense(pred, *tensors)
    programs, size, blocks = grid(pred)
    partial = loss.new_empty(len(pred), blocks)
    run(loss_kernel, *programs)(
        pred, *tensors, *(per_sample(x, len(pred)) for x in factors), partial, slope, size, blocks,
        lam is not None, prediction == "v", kind, BLOCK, num_warps=WARPS,
    )  # fmt: skip
    return partial.sum(1) * (1 / size), slope


def results(pred: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """Places for both."""
    slope = torch.empty_like(dense(pred)[0], dtype=torch.int8 if kind == "l1" else pred.dtype)
    return pred.new_empty(len(pred), dtype=torch.float32), slope


@loss_op.register_fake
def _(pred, eps, eps_hat, lam, z0, a, s, prediction, kind):
    return results(pred, kind)


def _save(ctx, inputs, output):
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(output[1])
    ctx.dtype = inputs[0].dtype


def _backward(ctx, grad, _):
    (slope,) = ctx.saved_tensors
    share = grad[:, None, None, None] / slope.shape[1:].numel()
    return (share * slope.float()).to(ctx.dtype), *[None] * 8


loss_op.register_autograd(_backward, setup_context=_save)


@reference.kernel_of(reference.dream_loss)
def dream_loss(
    pred: Tensor,
    eps: Tensor | None = None,
    eps_hat: Tensor | None = None,
    lam: Tensor | None = None,
    z0: Tensor | None = None,
    a: Tensor | None = None,
    s: Tensor | None = None,
    *,
    prediction: str = "eps",
    kind: str = "l1",
) -> Tensor:
    """-> loss [B], as `reference.dream_loss`: differentiable in pred."""
    reference.check_loss(prediction, kind, eps, eps_hat, lam, z0, a, s)
    return loss_op(pred, eps, eps_hat, lam, z0, a, s, prediction, kind)[0]


def variants() -> list[Variant]:
    """Every target and kind, for a network's output in float32 or, by autocast, bfloat16; all else
    is float32.
    """
    return [
        _variant(v, rectify, kind, dtype)
        for v, rectify in itertools.product((False, True), repeat=2)
        for kind, dtype in itertools.product(("l1", "l2", "huber"), ("fp32", "bf16"))
    ]


def _variant(v: bool, rectify: bool, kind: str, dtype: str) -> Variant:
    slope = "i8" if kind == "l1" else dtype
    least = 4 * (1 + rectify + v) + BYTES[dtype] + BYTES[slope]
    name = f"dream_loss{'_v' if v else ''}{'_rectified' if rectify else ''}_{kind}/{dtype}"
    constexprs = {"RECTIFY": rectify, "V": v, "KIND": kind}
    best = variant(name, loss_kernel, least, constexprs, pred=dtype, slope=slope)
    return best._replace(bytes_moved=least + 4 / BLOCK)  # a partial sum a program
