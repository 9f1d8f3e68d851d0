"""silu(group_norm(x) (1 + scale) + shift) as one op with its own backward.

Saved for the backward: x, mean and rstd of each group, and the [B,C] weights; the output is computed again.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import _group_norm_cpu as cpu
from .reference import layout


def group_norm_silu(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, scale: Tensor | None = None, shift: Tensor | None = None,
    silu: bool = True,
) -> Tensor:  # fmt: skip
    """`reference.group_norm_silu`."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    weight, bias = weight.to(dtype).expand(x.shape[:2]), bias.to(dtype).expand(x.shape[:2])
    if scale is not None:
        weight, bias = weight * (1 + scale.to(dtype)), bias * (1 + scale.to(dtype))
    if shift is not None:
        bias = bias + shift.to(dtype)
    return group_norm_forward(x, weight, bias, groups, eps, silu)[0]


@torch.library.custom_op("dream_kernels::group_norm_silu", mutates_args=())
def group_norm_forward(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, silu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """x [B,C,H,W], weight, bias [B,C] -> y, mean and rstd [B,groups]."""
    return cpu.forward(x.contiguous(memory_format=layout(x)), weight.contiguous(), bias.contiguous(), groups, eps, silu)


@torch.library.custom_op("dream_kernels::group_norm_silu_backward", mutates_args=())
def group_norm_backward(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, rstd: Tensor, silu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """-> dx, dweight and dbias [B,C]."""
    dy, x = dy.contiguous(memory_format=layout(x)), x.contiguous(memory_format=layout(x))
    return cpu.backward(dy, x, weight.contiguous(), bias.contiguous(), mean, rstd, silu)


@group_norm_forward.register_fake
def _(x, weight, bias, groups, eps, silu):
    statistics = weight.new_empty(len(x), groups)
    return torch.empty_like(x, memory_format=layout(x)), statistics, torch.empty_like(statistics)


@group_norm_backward.register_fake
def _(dy, x, weight, bias, mean, rstd, silu):
    dx = torch.empty_like(x, memory_format=layout(x))
    return dx, weight.new_empty(weight.shape), weight.new_empty(weight.shape)


def _setup(ctx, inputs, output):
    x, weight, bias, _, _, ctx.silu = inputs
    ctx.save_for_backward(x, weight, bias, *output[1:])


def _backward(ctx, dy, *_):
    return *group_norm_backward(dy, *ctx.saved_tensors, ctx.silu), None, None, None


group_norm_forward.register_autograd(_backward, setup_context=_setup)
