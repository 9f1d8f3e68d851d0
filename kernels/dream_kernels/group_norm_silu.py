"""group_norm_silu: y = silu(norm(x) (1 + scale) + shift), with statistics over groups of channels
(arXiv 1803.08494).

weight and bias [C], scale and shift [B,C] become one weight and bias of each channel of each
sample, w = weight (1 + scale) and b = bias (1 + scale) + shift, outside the op
(`reference.folded`). With z = w x_hat + b, y = silu(z):

    db = sum dz;  dw = sum dz x_hat                                (over positions)
    dx = rstd (w dz - mean(w dz) - x_hat mean(w dz x_hat))         (over the group)

Bytes an element: forward 2 reads and 1 write, backward 4 reads and 1 write. Saved for the backward:
x, w, b, mean and rstd; z and y are computed again. Precision: float32 inside; the variance in two
passes within a tile, tiles joined by Chan's formula. Limits: float32, float16, bfloat16; 4
dimensions, contiguous or channels_last (others are copied first). Kernels and launches:
`_group_norm_triton.py`; a CPU's own way: `_group_norm_cpu.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import _group_norm_cpu as cpu
from . import reference
from ._group_norm_triton import launch, launch_backward
from ._layout import dense


@torch.library.custom_op("dream::group_norm_silu", mutates_args=())
def norm_op(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, silu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """x [B,C,H,W], weight and bias float32 [B,C] -> y, mean and rstd float32 [B,G]."""
    (x,) = dense(x)
    return launch(x, weight.contiguous(), bias.contiguous(), groups, eps, silu)


@torch.library.custom_op("dream::group_norm_silu_backward", mutates_args=())
def norm_backward_op(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, rstd: Tensor, silu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    x, dy = dense(x, dy)
    return launch_backward(dy, x, weight.contiguous(), bias.contiguous(), mean, rstd, silu)


@norm_op.register_fake
def _(x, weight, bias, groups, eps, silu):
    (x,) = dense(x)
    return torch.empty_like(x), weight.new_empty(len(x), groups), weight.new_empty(len(x), groups)


@norm_backward_op.register_fake
def _(dy, x, weight, bias, mean, rstd, silu):
    (x,) = dense(x)
    return torch.empty_like(x), weight.new_empty(weight.shape), bias.new_empty(bias.shape)


def _save(ctx, inputs, output):
    *tensors, _, _, ctx.silu = inputs
    ctx.save_for_backward(*tensors, *output[1:])


def _backward(ctx, dy, *_):
    return *norm_backward_op(dy, *ctx.saved_tensors, ctx.silu), None, None, None


norm_op.register_autograd(_backward, setup_context=_save)


# The switch for compiled code on a GPU: there inductor fuses the reference with what stands beside
# it, and the kernel must win to be the default. The rows norm_in_block of `python -m benchmarks
# kernels --op norm_in_block --device cuda` decide. False: nobody has measured them yet.
IN_COMPILED = False


@reference.kernel_of(reference.group_norm_silu, cpu.group_norm_silu, IN_COMPILED)
def group_norm_silu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    eps: float,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    silu: bool = True,
) -> Tensor:
    """-> y, as `reference.group_norm_silu`."""
    return norm_op(x, *reference.folded(x, weight, bias, scale, shift), groups, eps, silu)[0]
