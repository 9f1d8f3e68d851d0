"""dream_rectify: DREAM's rectified input and target in one pass (arXiv 2312.00210, Eq. 14-15).

    shift = lam (eps - eps_hat);   z_t' = z_t + noise_std shift;   target = eps + shift

Bytes an element: 3 reads and 2 writes; one read less where eps is a key (`_noise.py`), one write
less for `dream_rectify_input`, which leaves the target out. Saved for backward: the inputs, by
reference. Precision: float32 inside, rounded once at each store. Limits: float32, float16, bfloat16
(float64 runs the reference); tensors in another layout than z_t's are copied first. Accesses are
128 bits wide where C*h*w is a multiple of 16.
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

BLOCK, WARPS = 2048, 4  # 8 values a thread even where a warp has 64: 128 bits in half precision


@jit
def rectify_kernel(
    z_t, eps, eps_hat, noise_std, lam, out, target, size, blocks, d1, d2,
    LAST: tl.constexpr, WRITE_TARGET: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    sample, start, lanes, at, mask = block_of(size, blocks, BLOCK)
    noise = eps_block(eps, sample, start, lanes, at, mask, d1, d2, LAST)
    shift = tl.load(lam + sample) * (noise - tl.load(eps_hat + at, mask).to(tl.float32))
    z = tl.load(z_t + at, mask).to(tl.float32) + tl.load(noise_std + sample) * shift
    tl.store(out + at, z.to(out.dtype.element_ty), mask)
    if WRITE_TARGET:
        tl.store(target + at, (noise + shift).to(target.dtype.element_ty), mask)


def launch(
    z_t: Tensor, eps: Tensor, eps_hat: Tensor, noise_std: Tensor, lam: Tensor, write_target: bool
) -> tuple[Tensor, Tensor]:
    out, target = results(z_t, eps, write_target)
    z_t, eps_hat, eps = dense(z_t, eps_hat, eps)
    if z_t.numel():
        programs, size, blocks = grid(z_t, BLOCK)
        factors = per_sample(noise_std, len(z_t)), per_sample(lam, len(z_t))
        rectify_kernel[programs](
            z_t, eps, eps_hat, *factors, out, target, size, blocks, *inner_sizes(z_t), write_target, BLOCK, num_warps=WARPS
        )  # fmt: skip
    return out, target


def results(z_t: Tensor, eps: Tensor, write_target: bool) -> tuple[Tensor, Tensor]:
    like = torch.empty_like(dense(z_t)[0])
    return like, torch.empty_like(
        like, dtype=z_t.dtype if is_key(eps) else eps.dtype
    ) if write_target else like.new_empty(0)


@torch.library.custom_op("dream::dream_rectify", mutates_args=())
def rectify_op(
    z_t: Tensor, eps: Tensor, eps_hat: Tensor, noise_std: Tensor, lam: Tensor, write_target: bool
) -> tuple[Tensor, Tensor]:
    """-> (z_t', target); the target is empty unless it is asked for."""
    return launch(z_t, eps, eps_hat, noise_std, lam, write_target)


@rectify_op.register_fake
def _(z_t, eps, eps_hat, noise_std, lam, write_target):
    return results(z_t, eps, write_target)


def _save(ctx, inputs, output):
    *tensors, ctx.write_target = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx, grad_out, grad_target):
    z_t, eps, eps_hat, noise_std, lam = ctx.saved_tensors
    grad_out, grad_target = grad_out.float(), grad_target.float() if ctx.write_target else 0
    difference, grad_shift = (
        reference.field(eps, z_t) - eps_hat.float(),
        noise_std * grad_out + grad_target,
    )
    grads = (
        grad_out,
        lam * grad_shift + grad_target,
        -lam * grad_shift,
        (grad_out * lam * difference).sum_to_size(noise_std.shape),
        (difference * grad_shift).sum_to_size(lam.shape),
    )
    return *(
        None if is_key(x) else grad.to(x.dtype) for grad, x in zip(grads, ctx.saved_tensors)
    ), None


rectify_op.register_autograd(_backward, setup_context=_save)


def dream_rectify(
    z_t: Tensor, eps: Tensor, eps_hat: Tensor, noise_std: Tensor, lam: Tensor
) -> tuple[Tensor, Tensor]:
    """-> (z_t', target), as `reference.dream_rectify`."""
    if runs_triton(z_t):
        return rectify_op(z_t, eps, eps_hat, noise_std, lam, True)
    return reference.dream_rectify(z_t, eps, eps_hat, noise_std, lam)


def dream_rectify_input(
    z_t: Tensor, eps: Tensor, eps_hat: Tensor, noise_std: Tensor, lam: Tensor
) -> Tensor:
    """-> z_t' alone, as `reference.dream_rectify_input`: for a loss that makes the target itself."""
    if runs_triton(z_t):
        return rectify_op(z_t, eps, eps_hat, noise_std, lam, False)[0]
    return reference.dream_rectify_input(z_t, eps, eps_hat, noise_std, lam)


def variants() -> list[Variant]:
    """With and without target, and with eps made in the kernel."""
    return [
        _variant(dtype, *kind)
        for kind in ((True, False), (False, False), (False, True))
        for dtype in NAMES
    ]


def _variant(dtype: str, write_target: bool, key: bool) -> Variant:
    kinds = dict.fromkeys(("z_t", "eps", "eps_hat", "out", "target"), f"*{dtype}") | (
        {"eps": "*i64"} if key else {}
    )
    kinds |= dict.fromkeys(("noise_std", "lam"), "*fp32") | dict.fromkeys(
        ("size", "blocks", "d1", "d2"), "i32"
    )
    constexprs = {"LAST": False, "WRITE_TARGET": write_target, "BLOCK": BLOCK}
    signature = {name: kinds.get(name, "constexpr") for name in rectify_kernel.arg_names}
    moved = (4 + write_target - key) * NAMES[dtype]
    name = f"dream_rectify{'' if write_target else '_input'}{'_key' if key else ''}/{dtype}"
    return Variant(
        name, rectify_kernel, signature, constexprs, WARPS, moved, moved, ("size", "d1", "d2")
    )
