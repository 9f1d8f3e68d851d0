"""dream_l1: the distance of a network's output to its DREAM target, which is never stored; the
gradient comes from the same pass.

    rectified = eps + lam (eps - eps_hat)                                            arXiv 2312.00210, Eq. 14
    target    = rectified ("eps"),   z0 ("z0"),   a rectified - s z0 ("v")
    loss[b]   = weight[b] mean rho(pred - target)
    rho(r)    = |r| ("l1"),   r^2 ("l2"),   r^2 / 2 up to |r| = delta and delta (|r| - delta / 2) beyond ("huber")

Only pred gets a gradient. `dream_l1` is differentiable: its forward pass leaves rho'(r) behind
(int8 for l1, where it is a sign and nothing is rounded; a NaN shows in the loss), its backward
scales that by the gradient of loss[b]. `dream_l1_grad` returns the final gradient from the one
pass, for who knows already what each loss counts. Reads: pred and what the target is made of (eps
as a key is none); writes: rho'. Sums: one float32 a program, then over a sample's programs in a
fixed order; no atomics. Limits as dream_rectify's.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import reference
from ._layout import block_of, dense, grid, per_sample
from ._noise import eps_block, inner_sizes
from ._triton import jit, tl
from ._variant import NAMES, Variant
from .backend import runs_triton

BLOCK, WARPS = 2048, 4  # as dream_rectify's


@jit
def l1_kernel(
    pred, eps, eps_hat, z0, lam, a, s, scale, partial, slope, delta, size, blocks, d1, d2,
    PREDICTION: tl.constexpr, KIND: tl.constexpr, RECTIFY: tl.constexpr, SLOPE: tl.constexpr,
    LAST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """partial[program] = sum of rho; slope = scale rho'. RECTIFY: else the target has lam = 0 and
    eps_hat is not read.
    """
    sample, start, lanes, at, mask = block_of(size, blocks, BLOCK)
    if PREDICTION == "z0":
        target = tl.load(z0 + at, mask, other=0.0).to(tl.float32)
    else:
        target = eps_block(eps, sample, start, lanes, at, mask, d1, d2, LAST)
        if RECTIFY:
            target += tl.load(lam + sample) * (
                target - tl.load(eps_hat + at, mask, other=0.0).to(tl.float32)
            )
        if PREDICTION == "v":
            target = tl.load(a + sample) * target - tl.load(s + sample) * tl.load(
                z0 + at, mask, other=0.0
            ).to(tl.float32)
    r = tl.where(mask, tl.load(pred + at, mask, other=0.0).to(tl.float32) - target, 0.0)
    size_of_r = tl.abs(r)
    if KIND == "l1":
        rho, rise = size_of_r, tl.where(r > 0, 1.0, tl.where(r < 0, -1.0, r))  # NaN stays
    elif KIND == "l2":
        rho, rise = r * r, 2 * r
    else:
        rho = tl.where(size_of_r <= delta, 0.5 * r * r, delta * (size_of_r - 0.5 * delta))
        rise = tl.where(size_of_r <= delta, r, tl.where(r < 0, -delta, delta))
    tl.store(partial + tl.program_id(0), tl.sum(rho, 0))
    if SLOPE:
        tl.store(slope + at, (tl.load(scale + sample) * rise).to(slope.dtype.element_ty), mask)


def launch(
    pred: Tensor, eps: Tensor | None, eps_hat: Tensor | None, lam: Tensor | None, z0: Tensor | None, a: Tensor | None,
    s: Tensor | None, weight: Tensor | None, prediction: str, kind: str, delta: float, slope: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    out = results(pred, kind, slope)[1]
    if not pred.numel():
        return pred.new_zeros(len(pred), dtype=torch.float32), out
    given = [pred if x is None else x for x in (eps, eps_hat, z0)]  # what is not given is not read
    pred, *given = dense(pred, *given)
    programs, size, blocks = grid(pred, BLOCK)
    one = torch.ones(1, 1, 1, 1, device=pred.device)
    lam_, a_, s_, share = (
        per_sample(one if x is None else x, len(pred)) for x in (lam, a, s, weight)
    )
    share = share / size
    partial = torch.empty(len(pred), blocks, device=pred.device)
    l1_kernel[programs](
        pred, *given, lam_, a_, s_, share if slope == "gradient" else torch.ones_like(share), partial, out, delta, size, blocks,
        *inner_sizes(pred)[:2], prediction, kind, eps_hat is not None, bool(slope), inner_sizes(pred)[2], BLOCK, num_warps=WARPS,
    )  # fmt: skip
    return partial.sum(1) * share, out


def results(pred: Tensor, kind: str, slope: str) -> tuple[Tensor, Tensor]:
    """slope: "" none, "rise" rho', "gradient" weight rho' / (C h w)."""
    dtype = torch.int8 if (kind, slope) == ("l1", "rise") else pred.dtype
    out = torch.empty_like(dense(pred)[0], dtype=dtype) if slope else pred.new_empty(0)
    return pred.new_empty(len(pred), dtype=torch.float32), out


@torch.library.custom_op("dream::dream_l1", mutates_args=())
def l1_op(
    pred: Tensor, eps: Tensor | None, eps_hat: Tensor | None, lam: Tensor | None, z0: Tensor | None, a: Tensor | None,
    s: Tensor | None, weight: Tensor | None, prediction: str, kind: str, delta: float, slope: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """-> (loss [B] float32, slope of `results`)."""
    return launch(pred, eps, eps_hat, lam, z0, a, s, weight, prediction, kind, delta, slope)


@l1_op.register_fake
def _(pred, eps, eps_hat, lam, z0, a, s, weight, prediction, kind, delta, slope):
    return results(pred, kind, slope)


def _save(ctx, inputs, output):
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(output[1], inputs[7])
    ctx.shape, ctx.dtype, ctx.slope = inputs[0].shape, inputs[0].dtype, inputs[11]


def _backward(ctx, grad, _):
    slope, weight = ctx.saved_tensors
    if ctx.slope != "rise":
        raise RuntimeError(
            "dream_l1's op keeps what backward needs only for slope='rise'; call dream_kernels.dream_l1."
        )
    share = grad[:, None, None, None] / ctx.shape[1:].numel()
    share = share if weight is None else share * weight.reshape(-1, 1, 1, 1)
    return (share * slope.float()).to(ctx.dtype), *[None] * 11


l1_op.register_autograd(_backward, setup_context=_save)


def dream_l1(
    pred: Tensor, eps: Tensor | None = None, eps_hat: Tensor | None = None, lam: Tensor | None = None,
    z0: Tensor | None = None, a: Tensor | None = None, s: Tensor | None = None, *,
    weight: Tensor | None = None, prediction: str = "eps", kind: str = "l1", delta: float = 1.0,
) -> Tensor:  # fmt: skip
    """-> loss [B], as `reference.dream_l1`: differentiable in pred."""
    if runs_triton(pred):
        reference.check_loss(prediction, kind, eps, eps_hat, lam, z0, a, s)
        slope = "rise" if torch.is_grad_enabled() and pred.requires_grad else ""
        return l1_op(pred, eps, eps_hat, lam, z0, a, s, weight, prediction, kind, delta, slope)[0]
    return reference.dream_l1(
        pred, eps, eps_hat, lam, z0, a, s, weight=weight, prediction=prediction, kind=kind, delta=delta
    )  # fmt: skip


def dream_l1_grad(
    pred: Tensor, eps: Tensor | None = None, eps_hat: Tensor | None = None, lam: Tensor | None = None,
    z0: Tensor | None = None, a: Tensor | None = None, s: Tensor | None = None, *,
    weight: Tensor | None = None, prediction: str = "eps", kind: str = "l1", delta: float = 1.0,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """-> (loss [B], gradient of its sum in pred), as `reference.dream_l1_grad`:
    `pred.backward(gradient)` trains.
    """
    if runs_triton(pred):
        reference.check_loss(prediction, kind, eps, eps_hat, lam, z0, a, s)
        return l1_op(
            pred.detach(), eps, eps_hat, lam, z0, a, s, weight, prediction, kind, delta, "gradient"
        )
    return reference.dream_l1_grad(
        pred, eps, eps_hat, lam, z0, a, s, weight=weight, prediction=prediction, kind=kind, delta=delta
    )  # fmt: skip


def variants() -> list[Variant]:
    """Every target and kind once; each dtype for those that train most, and those with the sign in
    a byte.
    """
    kinds = [
        (*kind, dtype)
        for kind in (("eps", "l1", False), ("eps", "l1", True), ("z0", "l1", False))
        for dtype in NAMES
    ]
    kinds += [("z0", "l2", False, "fp32"), ("v", "huber", False, "bf16")]
    signs = [
        (prediction, "l1", False, dtype, True)
        for prediction in ("eps", "z0")
        for dtype in ("fp32", "bf16")
    ]
    return [_variant(*kind) for kind in kinds + signs]


def _variant(prediction: str, kind: str, key: bool, dtype: str, sign: bool = False) -> Variant:
    kinds = dict.fromkeys(("pred", "eps", "eps_hat", "z0", "slope"), f"*{dtype}") | (
        {"eps": "*i64"} if key else {}
    )
    kinds |= {"slope": "*i8"} if sign else {}
    kinds |= dict.fromkeys(("lam", "a", "s", "scale", "partial"), "*fp32") | {"delta": "fp32"}
    kinds |= dict.fromkeys(("size", "blocks", "d1", "d2"), "i32")
    constexprs = {
        "PREDICTION": prediction,
        "KIND": kind,
        "RECTIFY": True,
        "SLOPE": True,
        "LAST": False,
        "BLOCK": BLOCK,
    }
    signature = {name: kinds.get(name, "constexpr") for name in l1_kernel.arg_names}
    reads = {"eps": 3, "z0": 2, "v": 4}[prediction] - key
    least = reads * NAMES[dtype] + (1 if sign else NAMES[dtype])
    name = f"dream_l1_{prediction}_{kind}{'_key' if key else ''}{'_sign' if sign else ''}/{dtype}"
    moved = least + 4 / BLOCK  # a partial sum a program
    return Variant(
        name, l1_kernel, signature, constexprs, WARPS, moved, least, ("size", "d1", "d2")
    )
