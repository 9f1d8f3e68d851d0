"""group_norm_silu on a CPU: channels_last features in C++ of our own (`group_norm_cpu.cpp`), all
others by torch's group norm.

torch's is quick and exact for contiguous features alone. For channels_last its backward takes 4 to
25 times as long in bfloat16, and its forward takes the variance as E[x^2] - E[x]^2: off by 6e-3 in
float32 at mean 30, noise at mean 1000 (torch 2.14). So channels_last features that the C++ does not
take (float16, float64, channels not a multiple of 32, no compiler) are transposed, normed, and
transposed back: inside the op, so that torch.compile sees one graph for every size and machine.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ._cpp import NAMES, call, library
from .reference import folded, layout

BLOCK = 32  # channels, as in the C++
aten = torch.ops.aten


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
    weight, bias = folded(x, weight, bias, scale, shift)
    if layout(x) is torch.channels_last:
        return channels_last_op(x, weight, bias, groups, eps, silu)[0]
    z = F.group_norm(as_one(x), len(x) * groups, weight.flatten(), bias.flatten(), eps)
    return (F.silu(z) if silu else z).view(x.shape)


def as_one(x: Tensor) -> Tensor:
    """Contiguous [1,BC,H,W]: every group of every sample is a group of this one sample."""
    return x.contiguous().view(1, -1, *x.shape[2:])


@torch.library.custom_op("dream::group_norm_silu_channels_last", mutates_args=())
def channels_last_op(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, silu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """weight and bias [B,C], float32 or wider -> y, mean and rstd [B,G]. For the backward it saves
    these two, x, weight and bias, and computes z again.
    """
    if cpp := function("forward", x, weight):
        x = x.contiguous(memory_format=torch.channels_last)
        weight, bias = weight.contiguous(), bias.contiguous()
        y = torch.empty_like(x)
        mean, rstd = (weight.new_empty(len(x), groups) for _ in range(2))
        call(cpp, x, weight, bias, y, mean, rstd, *scratch_and_sizes(x, groups), eps, silu)
        return y, mean, rstd
    one = as_one(x)
    sizes = 1, one.shape[1], one[0, 0].numel(), len(x) * groups
    z, *statistics = aten.native_group_norm(one, weight.flatten(), bias.flatten(), *sizes, eps)
    y = (F.silu(z, inplace=True) if silu else z).view(x.shape)
    y = y.contiguous(memory_format=torch.channels_last)
    return y, *(s.view(len(x), groups) for s in statistics)


@torch.library.custom_op("dream::group_norm_silu_channels_last_backward", mutates_args=())
def channels_last_backward(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, rstd: Tensor, silu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """-> dx like x, dweight and dbias [B,C]."""
    if cpp := function("backward", x, weight):
        dy, x = (v.contiguous(memory_format=torch.channels_last) for v in (dy, x))
        weight, bias = weight.contiguous(), bias.contiguous()
        dx, dweight, dbias = torch.empty_like(x), torch.empty_like(weight), torch.empty_like(bias)
        results, sizes = (dx, dweight, dbias), scratch_and_sizes(x, mean.shape[1])
        call(cpp, dy, x, weight, bias, mean, rstd, *results, *sizes, silu)
        return results
    one, dz = as_one(x), as_one(dy)
    if silu:
        a = (weight.view(*mean.shape, -1) * rstd[..., None]).view(weight.shape)
        k = bias - (mean[..., None] * a.view(*mean.shape, -1)).view(bias.shape)
        z = torch.addcmul(k.view(1, -1, 1, 1), one.to(weight.dtype), a.view(1, -1, 1, 1))
        dz = aten.silu_backward(dz, z.to(dz.dtype))
    sizes = 1, one.shape[1], one[0, 0].numel(), mean.numel()
    statistics = mean.view(1, -1), rstd.view(1, -1)
    dx, *rest = aten.native_group_norm_backward(
        dz, one, *statistics, weight.flatten(), *sizes, [True] * 3
    )
    dx = dx.view(x.shape).contiguous(memory_format=torch.channels_last)
    return dx, *(v.view(weight.shape) for v in rest)


def function(name: str, x: Tensor, weight: Tensor) -> Callable | None:
    """The C++ function that takes these, if there is one."""
    if x.dtype not in NAMES or weight.dtype != torch.float32 or x.shape[1] % BLOCK or not x.numel():
        return None
    compiled = library("group_norm_cpu")
    return compiled and getattr(compiled, f"{name}_{NAMES[x.dtype]}")


def scratch_and_sizes(x: Tensor, groups: int) -> tuple[Tensor, int, int, int, int, int]:
    """-> scratch, samples, positions, channels, groups, threads: as all C++ functions here take
    them.
    """
    (samples, channels), positions = x.shape[:2], x.shape[2] * x.shape[3]
    threads = torch.get_num_threads()
    return torch.empty((2 * threads + 6) * channels), samples, positions, channels, groups, threads


@channels_last_op.register_fake
def _(x, weight, bias, groups, eps, silu):
    mean, rstd = (weight.new_empty(len(x), groups) for _ in range(2))
    return torch.empty_like(x, memory_format=torch.channels_last), mean, rstd


@channels_last_backward.register_fake
def _(dy, x, weight, bias, mean, rstd, silu):
    dx = torch.empty_like(x, memory_format=torch.channels_last)
    return dx, weight.new_empty(weight.shape), bias.new_empty(bias.shape)


def _save(ctx, inputs, output):
    *tensors, _, _, ctx.silu = inputs
    ctx.save_for_backward(*tensors, *output[1:])


def _backward(ctx, dy, *_):
    return *channels_last_backward(dy, *ctx.saved_tensors, ctx.silu), None, None, None


channels_last_op.register_autograd(_backward, setup_context=_save)
