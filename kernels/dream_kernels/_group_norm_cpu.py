"""group_norm_silu on a CPU, out of torch's own vectorised kernels.

torch's group norm is quick and exact for contiguous features alone. For channels_last its backward takes 4 to 25 times as long in
bfloat16, and its forward takes the variance as E[x^2] - E[x]^2: off by 6e-3 in float32 at mean 30, noise at mean 1000 (torch
2.14). Batch norm has neither fault, and for a batch of one its sums per channel are those that group norm needs:

    statistics   batch norm's mean and variance of each channel (two passes), joined over the channels of a group
    a x + k      for each channel: batch norm in eval mode with mean 0 and variance 1
    backward     batch norm's sums of dz and dz x_hat for each channel, joined over a group; dx is affine in dz and x

so channels_last features go through it sample by sample. Small ones, where the number of calls counts, become contiguous instead:
inside the op, so that torch.compile sees one graph for every size.

Symbols: x [B,C,H,W]; G groups of D channels; z = weight x_hat + bias, y = silu(z); sums and coefficients float32 or wider.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ._layout import layout

SMALL = 2**16  # values a sample up to which transposing them twice costs less than calls for each sample
aten = torch.ops.aten


def group_norm_silu(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, silu: bool) -> Tensor:
    """x [B,C,H,W], weight and bias [B,C] in float32 or wider -> like x in type and layout."""
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
    """-> y, mean and rstd [B,G,1]. For the backward it saves these two, x, weight and bias, and computes z again."""
    weight, bias = weight.contiguous(), bias.contiguous()  # here: torch.compile would make a kernel of each copy
    if x[0].numel() <= SMALL:
        one = as_one(x)
        sizes = 1, one.shape[1], one[0, 0].numel(), len(x) * groups
        z, *statistics = aten.native_group_norm(one, weight.flatten(), bias.flatten(), *sizes, eps)
        y = (F.silu(z, inplace=True) if silu else z).view(x.shape).contiguous(memory_format=torch.channels_last)
        return y, *(s.view(len(x), groups, 1) for s in statistics)
    x = x.contiguous(memory_format=torch.channels_last)
    unused = weight.new_zeros(weight.shape[1])  # next to it, batch norm gives float32 statistics of 16-bit features too
    mean, var = (torch.stack(s).view(len(x), groups, -1) for s in zip(*(
        torch.batch_norm_update_stats(sample, unused, unused, 0.0) for sample in x.split(1))))  # fmt: skip
    between, mean = torch.var_mean(mean, 2, keepdim=True, correction=0)
    rstd = torch.rsqrt(var.mean(2, keepdim=True) + between + eps)
    y = torch.empty_like(x)
    standard = zeros_and_ones(weight)
    for args in zip(x.split(1), *coefficients(weight, bias, mean, rstd), y.split(1)):
        out = affine(*args, standard)
        if silu:
            F.silu(out, inplace=True)
    return y, mean, rstd


@torch.library.custom_op("dream::group_norm_silu_channels_last_backward", mutates_args=())
def channels_last_backward(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, rstd: Tensor, silu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """-> dx like x, dweight and dbias [B,C]."""
    weight, bias = weight.contiguous(), bias.contiguous()
    if x[0].numel() <= SMALL:
        return small_backward(dy, x, weight, bias, mean, rstd, silu)
    dy, x = dy.contiguous(memory_format=torch.channels_last), x.contiguous(memory_format=torch.channels_last)
    a, k = coefficients(weight, bias, mean, rstd)
    zeros, ones = standard = zeros_and_ones(weight)
    channel_mean, channel_rstd = (of_channels(s, weight) for s in (mean, rstd))
    dz, sums = torch.empty_like(x), []
    for sample, dy_i, dz_i, *affine_i, m, r in zip(x.split(1), dy.split(1), dz.split(1), a, k, channel_mean, channel_rstd):
        if silu:
            aten.silu_backward.grad_input(dy_i, affine(sample, *affine_i, dz_i, standard), grad_input=dz_i)
        else:
            dz_i.copy_(dy_i)
        sums.append(aten.native_batch_norm_backward(dz_i, sample, ones, None, None, m, r, True, 0.0, [False, True, True])[1:])
    dweight, dbias = (torch.stack(s) for s in zip(*sums))
    # dx = rstd (weight dz - mean(weight dz) - x_hat mean(weight dz x_hat)), means over the group
    of_group, count = (len(x), mean.shape[1], -1), x[0].numel() // mean.shape[1]
    c1 = (weight * dbias).view(of_group).sum(2, keepdim=True) * rstd / count
    c2 = (weight * dweight).view(of_group).sum(2, keepdim=True) * rstd**2 / count
    slope, offset = of_channels(-c2, weight), of_channels(c2 * mean - c1, weight)
    part = torch.empty_like(x[:1])
    for sample, dz_i, a_i, *affine_i in zip(x.split(1), dz.split(1), a, slope, offset):
        affine(dz_i, a_i, zeros, dz_i, standard).add_(affine(sample, *affine_i, part, standard))
    return dz, dweight, dbias


def small_backward(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, rstd: Tensor, silu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    one, dz = as_one(x), as_one(dy)
    gamma = weight.flatten()
    if silu:
        a, k = (v.flatten() for v in coefficients(weight, bias, mean, rstd))
        z = affine(one, a, k, torch.empty_like(one), (torch.zeros_like(a), torch.ones_like(a)))
        dz = aten.silu_backward(dz, z)
    sizes = 1, one.shape[1], one[0, 0].numel(), mean.numel()
    dx, *rest = aten.native_group_norm_backward(dz, one, mean.view(1, -1), rstd.view(1, -1), gamma, *sizes, [True] * 3)
    return dx.view(x.shape).contiguous(memory_format=torch.channels_last), *(v.view(weight.shape) for v in rest)


def coefficients(weight: Tensor, bias: Tensor, mean: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor]:
    """-> a, k [B,C] with z = a x + k."""
    of_group = (*mean.shape[:2], -1)
    a = weight.view(of_group) * rstd
    return a.view(weight.shape), torch.addcmul(bias.view(of_group), mean, a, value=-1).view(bias.shape)


def of_channels(s: Tensor, weight: Tensor) -> Tensor:
    """[B,G,1] -> [B,C], contiguous, as weight is."""
    return s.expand(-1, -1, weight.shape[1] // s.shape[1]).contiguous().view(weight.shape)


def zeros_and_ones(weight: Tensor) -> tuple[Tensor, Tensor]:
    """The mean and variance [C] of features that are normed already."""
    return weight.new_zeros(weight.shape[1]), weight.new_ones(weight.shape[1])


def affine(sample: Tensor, a: Tensor, k: Tensor, out: Tensor, standard: tuple[Tensor, Tensor]) -> Tensor:
    """a x + k of [1,C,H,W] for each channel, written to `out`, which may be the sample itself."""
    none = a.new_empty(0)
    aten.native_batch_norm.out(sample, a, k, *standard, False, 0.0, 0.0, out=out, save_mean=none, save_invstd=none)
    return out


@channels_last_op.register_fake
def _(x, weight, bias, groups, eps, silu):
    statistics = weight.new_empty(len(x), groups, 1)
    return torch.empty_like(x, memory_format=torch.channels_last), statistics, torch.empty_like(statistics)


@channels_last_backward.register_fake
def _(dy, x, weight, bias, mean, rstd, silu):
    return torch.empty_like(x, memory_format=torch.channels_last), weight.new_empty(weight.shape), bias.new_empty(bias.shape)


def _save(ctx, inputs, output):
    *tensors, _, _, ctx.silu = inputs
    ctx.save_for_backward(*tensors, *output[1:])


def _backward(ctx, dy, *_):
    return *channels_last_backward(dy, *ctx.saved_tensors, ctx.silu), None, None, None


channels_last_op.register_autograd(_backward, setup_context=_save)
