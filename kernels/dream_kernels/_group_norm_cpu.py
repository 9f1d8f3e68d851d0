"""Group norm and SiLU on a CPU, out of torch's own vectorised kernels; the forward keeps x, mean and rstd, never the output.

torch's group norm is quick for contiguous features alone. For channels_last its backward is 4 to 25 times slower in bfloat16, and
its forward takes the variance as E[x^2] - E[x]^2: at mean 30 it is off by 6e-3 in float32, at mean 1000 it is noise (torch 2.14).
Its batch norm has none of these faults, and a sample's per-channel sums are those of a batch of one:

    statistics   batch norm's per-channel mean and variance (two passes), joined over the channels of a group
    affine       a x + b with per-channel a, b: batch norm in eval mode with mean 0, variance 1, eps 0
    backward     batch norm's per-channel sums of dz and dz x_hat, joined over a group; dx is affine in dz and x

Sample by sample, so that a sample's intermediate features stay in the cache and their memory is used again. Small features, where
the number of calls would count, are made contiguous instead.

Symbols: x [B,C,H,W]; G groups of D channels; z = weight x_hat + bias, y = silu(z); sums and coefficients float32 or wider.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

SMALL = 2**15  # elements a sample up to which two transpositions cost less than the calls for each sample
aten = torch.ops.aten


def forward(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, silu: bool) -> tuple[Tensor, Tensor, Tensor]:
    """x [B,C,H,W] dense in one of both layouts, weight, bias [B,C] -> y like x, mean and rstd [B,G]."""
    b, c, height, width = x.shape
    if not by_sample(x):
        z, mean, rstd = torch.native_group_norm(
            one_sample(x), weight.flatten(), bias.flatten(), 1, b * c, height * width, b * groups, eps
        )
        y = F.silu(z, inplace=True) if silu else z
        return _like(y, x), mean.view(b, groups), rstd.view(b, groups)
    y, mean, rstd = torch.empty_like(x), weight.new_empty(b, groups, 1), weight.new_empty(b, groups, 1)
    for i in range(b):
        mean[i], rstd[i] = statistics(x[i : i + 1], groups, eps, weight.dtype)
        a, k = coefficients(mean[i], rstd[i], weight[i], bias[i])
        affine(x[i : i + 1], a, k, out=y[i : i + 1])
        if silu:
            F.silu(y[i : i + 1], inplace=True)
    return y, mean.squeeze(2), rstd.squeeze(2)


def backward(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, rstd: Tensor, silu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """-> dx like x, dweight and dbias [B,C]."""
    b, c, height, width = x.shape
    groups = mean.shape[1]
    if not by_sample(x):
        rows, dz, m, r = one_sample(x), one_sample(dy), mean.reshape(-1, 1), rstd.reshape(-1, 1)
        if silu:
            z = affine(rows, *coefficients(m, r, weight.flatten(), bias.flatten()))
            dz = aten.silu_backward.grad_input(dz, z, grad_input=z)
        dweight, dbias = sums(dz, rows, m, r)  # torch's own: sum dz x - mean sum dz, which cancels
        dx, _, _ = aten.native_group_norm_backward(
            dz, rows, m.T, r.T, weight.flatten(), 1, b * c, height * width, b * groups, [True, False, False]
        )
        return _like(dx, x), dweight.view(b, c), dbias.view(b, c)
    dx, z, dweight, dbias = torch.empty_like(x), torch.empty_like(x[:1]), torch.empty_like(weight), torch.empty_like(bias)
    count = c * height * width // groups
    for i in range(b):
        rows, dz, m, r = x[i : i + 1], dy[i : i + 1], mean[i, :, None], rstd[i, :, None]
        a, k = coefficients(m, r, weight[i], bias[i])
        if silu:
            dz = aten.silu_backward.grad_input(dz, affine(rows, a, k, out=z), grad_input=z)
        dweight[i], dbias[i] = sums(dz, rows, m, r)
        # dx = rstd (weight dz - mean(weight dz) - x_hat mean(weight dz x_hat)), means over the group
        c1 = (weight[i] * dbias[i]).view(groups, -1).sum(1, keepdim=True) * r / count
        c2 = (weight[i] * dweight[i]).view(groups, -1).sum(1, keepdim=True) * r * r / count
        affine(rows, per_channel(-c2, c), per_channel(c2 * m - c1, c), out=dx[i : i + 1])
        dx[i : i + 1].add_(affine(dz, a, torch.zeros_like(a), out=z))
    return dx, dweight, dbias


def by_sample(x: Tensor) -> bool:
    return not x.is_contiguous() and x[0].numel() > SMALL


def one_sample(x: Tensor) -> Tensor:
    """[B,C,H,W] -> [1,B*C,H,W], contiguous: every group of every sample is then a group of one."""
    return x.contiguous().view(1, -1, *x.shape[2:])


def _like(y: Tensor, x: Tensor) -> Tensor:
    y = y.view(x.shape)
    return y if x.is_contiguous() else y.contiguous(memory_format=torch.channels_last)


def per_channel(v: Tensor, channels: int) -> Tensor:
    """[G,1] -> [C]"""
    return v.expand(-1, channels // len(v)).reshape(-1)


def statistics(x: Tensor, groups: int, eps: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """x [1,C,H,W] -> mean and rstd [G,1]. Of 16-bit x, batch norm returns float32 only next to running statistics of that type."""
    unused = x.new_zeros(x.shape[1], dtype=dtype)
    mean, var = torch.batch_norm_update_stats(x, unused, unused, 0.0)
    between, group_mean = torch.var_mean(mean.view(groups, -1), 1, keepdim=True, correction=0)
    within = var.view(groups, -1).mean(1, keepdim=True)
    return group_mean, torch.rsqrt(within + between + eps)


def coefficients(mean: Tensor, rstd: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """mean, rstd [G,1], weight, bias [C] -> a, k [C] with z = a x + k."""
    a = weight.view(len(mean), -1) * rstd
    return a.flatten(), torch.addcmul(bias.view_as(a), mean, a, value=-1).flatten()


def affine(x: Tensor, a: Tensor, k: Tensor, out: Tensor | None = None) -> Tensor:
    """a x + k for each channel, computed in the type of a and k; `out` may be x."""
    zero, one, none = torch.zeros_like(a), torch.ones_like(a), a.new_empty(0)
    out = torch.empty_like(x) if out is None else out
    return aten.native_batch_norm.out(x, a, k, zero, one, False, 0.0, 0.0, out=out, save_mean=none, save_invstd=none)[0]


def sums(dz: Tensor, x: Tensor, mean: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor]:
    """[1,C,H,W] -> sum of dz x_hat [C], sum of dz [C]."""
    mean, rstd = per_channel(mean, x.shape[1]), per_channel(rstd, x.shape[1])
    _, dweight, dbias = aten.native_batch_norm_backward(
        dz, x, mean, None, None, mean, rstd, True, 0.0, [False, True, True]
    )  # the weight only says the type of the sums
    return dweight, dbias
