"""group_norm_silu's Triton kernels and their launches; its mathematics: `group_norm_silu.py`.

Three launches each way: sums of each channel over spans of positions, joined over spans and a
group's channels, then applied. No atomics: two runs agree. Accesses are 128 bits wide where C
(channels_last) or H*W (contiguous) is a multiple of 16.
"""

# pyright: reportOperatorIssue=false
# inside a kernel types are Triton's

from __future__ import annotations

import torch
from torch import Tensor

from ._triton import jit, run, tl
from ._variant import BYTES, Variant

BLOCK, TILES, WARPS = 4096, 4, 8  # values of a tile, tiles of a span
WIDEST = 64  # channels of a channels_last tile
JOIN, JOIN_WARPS = 1024, 4


@jit
def tile(start, channel, C, HW, P: tl.constexpr, Q: tl.constexpr, LAST: tl.constexpr):
    """P positions from `start` of Q channels from `channel`: offsets in the sample [P,Q] and which
    of them exist.
    """
    positions = start.to(tl.int64) + tl.arange(0, P)[:, None]
    channels = channel.to(tl.int64) + tl.arange(0, Q)[None, :]
    at = positions * C + channels if LAST else channels * HW + positions
    return at, (positions < HW) & (channels < C)


@jit
def of_channels(weight, bias, mean, rstd, sample, channel, C, D, Q: tl.constexpr):
    """What norms Q channels from `channel`: w, b, and their groups' mean and rstd, each [1,Q]; one
    number each where Q is 1.
    """
    channels = (channel.to(tl.int64) + tl.arange(0, Q))[None, :]
    mask = channels < C
    if Q == 1:  # else every thread loads it for each of its values
        channels, mask = channel, channel < C
    at, group = sample * C + channels, sample * (C // D) + channels // D
    w, b = tl.load(weight + at, mask, 0.0), tl.load(bias + at, mask, 0.0)
    return w, b, tl.load(mean + group, mask, 0.0), tl.load(rstd + group, mask, 0.0)


@jit
def gradient_of_z(dy, x_hat, w, b, SILU: tl.constexpr):
    """dz of dy, both float32."""
    if SILU:
        z = x_hat * w + b
        s = tl.sigmoid(z)
        dy *= s * (1 + z * (1 - s))
    return dy


@jit
def statistics_kernel(
    x, means, squares, C, HW,
    P: tl.constexpr, Q: tl.constexpr, TILES: tl.constexpr, LAST: tl.constexpr,
):  # fmt: skip
    """One program: mean and squared distance from it, of each of Q channels over a span of TILES *
    P positions of a sample.
    """
    span, channel, sample = tl.program_id(0), tl.program_id(1) * Q, tl.program_id(2).to(tl.int64)
    count, mean, square = 0.0, tl.zeros([Q], tl.float32), tl.zeros([Q], tl.float32)
    for i in range(TILES):
        start = (span * TILES + i) * P
        at, mask = tile(start, channel, C, HW, P, Q, LAST)
        values = tl.load(x + sample * C * HW + at, mask, 0.0).to(tl.float32)
        here = tl.minimum(tl.maximum(HW - start, 0), P).to(tl.float32)
        total = tl.maximum(count + here, 1.0)
        tile_mean = tl.sum(values, 0) / tl.maximum(here, 1.0)
        left = tl.sum(tl.where(mask, values - tile_mean[None, :], 0.0), 0)  # by rounding
        tile_mean += left / tl.maximum(here, 1.0)
        distance = tl.where(mask, values - tile_mean[None, :], 0.0)
        step = tile_mean - mean
        square += tl.sum(distance * distance, 0) + step * step * (count * here / total)
        mean += step * (here / total)
        count += here
    channels = channel.to(tl.int64) + tl.arange(0, Q)
    at_sum = (sample * tl.num_programs(0) + span) * C + channels
    tl.store(means + at_sum, mean, channels < C)
    tl.store(squares + at_sum, square, channels < C)


@jit
def join_statistics_kernel(
    means, squares, mean, rstd, eps, C, HW, D, spans,
    SPAN: tl.constexpr, K: tl.constexpr, Q: tl.constexpr,
):  # fmt: skip
    """One program: mean and rstd of a group out of its D channels' sums over `spans` spans, K of
    them at a time.
    """
    group, sample = tl.program_id(0), tl.program_id(1).to(tl.int64)
    channels = tl.arange(0, Q)[None, :]
    count, joined, square = 0.0, 0.0, 0.0
    for first in range(0, spans, K):
        span = first + tl.arange(0, K)[:, None]
        at = (sample * spans + span) * C + group * D + channels
        mask = (span < spans) & (channels < D)
        n = tl.where(mask, tl.minimum(HW - span * SPAN, SPAN), 0).to(tl.float32)
        m = tl.load(means + at, mask, 0.0)
        here = tl.sum(tl.sum(n, 1), 0)
        one = tl.sum(tl.sum(tl.where(span == first, tl.where(channels == 0, m, 0.0), 0.0), 1), 0)
        # about a mean of one channel: less is rounded
        here_mean = one + tl.sum(tl.sum(n * (m - one), 1), 0) / here
        between = n * (m - here_mean) * (m - here_mean)
        within = tl.load(squares + at, mask, 0.0)
        total, step = count + here, here_mean - joined
        square += tl.sum(tl.sum(within + between, 1), 0) + step * step * (count * here / total)
        joined += step * (here / total)
        count = total
    at_group = sample * (C // D) + group
    tl.store(mean + at_group, joined)
    tl.store(rstd + at_group, 1 / tl.sqrt_rn(square / count + eps))


@jit
def apply_kernel(
    x, weight, bias, mean, rstd, y, C, HW, D,
    P: tl.constexpr, Q: tl.constexpr, LAST: tl.constexpr, SILU: tl.constexpr,
):  # fmt: skip
    """One program: y of P positions of Q channels."""
    start, channel = tl.program_id(0) * P, tl.program_id(1) * Q
    sample = tl.program_id(2).to(tl.int64)
    at, mask = tile(start, channel, C, HW, P, Q, LAST)
    w, b, m, r = of_channels(weight, bias, mean, rstd, sample, channel, C, D, Q)
    z = (tl.load(x + sample * C * HW + at, mask, 0.0).to(tl.float32) - m) * r * w + b
    if SILU:
        z *= tl.sigmoid(z)
    tl.store(y + sample * C * HW + at, z.to(y.dtype.element_ty), mask)


@jit
def sums_kernel(
    dy, x, weight, bias, mean, rstd, sums_w, sums_b, C, HW, D,
    P: tl.constexpr, Q: tl.constexpr, TILES: tl.constexpr, LAST: tl.constexpr, SILU: tl.constexpr,
):  # fmt: skip
    """One program: sums of dz x_hat and dz, of each of Q channels over a span of TILES * P
    positions of a sample.
    """
    span, channel, sample = tl.program_id(0), tl.program_id(1) * Q, tl.program_id(2).to(tl.int64)
    w, b, m, r = of_channels(weight, bias, mean, rstd, sample, channel, C, D, Q)
    sum_w, sum_b = tl.zeros([Q], tl.float32), tl.zeros([Q], tl.float32)
    for i in range(TILES):
        at, mask = tile((span * TILES + i) * P, channel, C, HW, P, Q, LAST)
        x_hat = (tl.load(x + sample * C * HW + at, mask, 0.0).to(tl.float32) - m) * r
        dz = tl.load(dy + sample * C * HW + at, mask, 0.0).to(tl.float32)
        dz = gradient_of_z(dz, x_hat, w, b, SILU)
        sum_w += tl.sum(dz * x_hat, 0)  # dz is 0 outside
        sum_b += tl.sum(dz, 0)
    channels = channel.to(tl.int64) + tl.arange(0, Q)
    at_sum = (sample * tl.num_programs(0) + span) * C + channels
    tl.store(sums_w + at_sum, sum_w, channels < C)
    tl.store(sums_b + at_sum, sum_b, channels < C)


@jit
def join_sums_kernel(
    sums_w, sums_b, weight, dweight, dbias, c_w, c_b, C, HW, D, spans,
    K: tl.constexpr, Q: tl.constexpr,
):  # fmt: skip
    """One program: dw and db of a group's D channels, and their means over the group, weighted by
    w.
    """
    group, sample = tl.program_id(0), tl.program_id(1).to(tl.int64)
    channels = tl.arange(0, Q)
    sum_w, sum_b = tl.zeros([Q], tl.float32), tl.zeros([Q], tl.float32)
    for first in range(0, spans, K):
        span = first + tl.arange(0, K)[:, None]
        at = (sample * spans + span) * C + group * D + channels[None, :]
        mask = (span < spans) & (channels[None, :] < D)
        sum_w += tl.sum(tl.load(sums_w + at, mask, 0.0), 0)
        sum_b += tl.sum(tl.load(sums_b + at, mask, 0.0), 0)
    at_channel = sample * C + group * D + channels
    w = tl.load(weight + at_channel, channels < D, 0.0)
    tl.store(dweight + at_channel, sum_w, channels < D)
    tl.store(dbias + at_channel, sum_b, channels < D)
    at_group, count = sample * (C // D) + group, tl.cast(HW, tl.float32) * D
    tl.store(c_w + at_group, tl.sum(w * sum_w, 0) / count)
    tl.store(c_b + at_group, tl.sum(w * sum_b, 0) / count)


@jit
def dx_kernel(
    dy, x, weight, bias, mean, rstd, c_w, c_b, dx, C, HW, D,
    P: tl.constexpr, Q: tl.constexpr, LAST: tl.constexpr, SILU: tl.constexpr,
):  # fmt: skip
    """One program: dx of P positions of Q channels."""
    start, channel = tl.program_id(0) * P, tl.program_id(1) * Q
    sample = tl.program_id(2).to(tl.int64)
    at, mask = tile(start, channel, C, HW, P, Q, LAST)
    w, b, m, r = of_channels(weight, bias, mean, rstd, sample, channel, C, D, Q)
    _, _, mean_w, mean_b = of_channels(weight, bias, c_w, c_b, sample, channel, C, D, Q)
    x_hat = (tl.load(x + sample * C * HW + at, mask, 0.0).to(tl.float32) - m) * r
    dz = tl.load(dy + sample * C * HW + at, mask, 0.0).to(tl.float32)
    dz = gradient_of_z(dz, x_hat, w, b, SILU)
    value = r * (w * dz - mean_b - x_hat * mean_w)
    tl.store(dx + sample * C * HW + at, value.to(dx.dtype.element_ty), mask)


def tile_shape(x: Tensor) -> tuple[int, int, bool]:
    """P, Q and LAST for x [B,C,H,W]; contiguous features have at least one channel a tile, as many
    as fill it.
    """
    channels, positions = x.shape[1], x.shape[2] * x.shape[3]
    if not x.is_contiguous():
        q = min(WIDEST, channels & -channels)  # the power of 2 in C: no tile is partly empty
        q = q if q >= 16 else min(WIDEST, power_of_2(channels))
        return BLOCK // q, q, True
    p = min(BLOCK, power_of_2(positions))
    return p, min(BLOCK // p, power_of_2(channels)), False


def power_of_2(n: int) -> int:
    """The least that is not smaller."""
    return 1 << (n - 1).bit_length()


def launch(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, silu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """x dense, weight and bias [B,C] contiguous -> y, mean and rstd [B,G]."""
    y = torch.empty_like(x)
    mean, rstd = (weight.new_empty(len(x), groups) for _ in range(2))
    if x.numel():
        (b, c), hw, d = x.shape[:2], x.shape[2] * x.shape[3], x.shape[1] // groups
        p, q, last = tile_shape(x)
        spans, columns = -(-hw // (TILES * p)), -(-c // q)
        means, squares = weight.new_empty(2, b, spans, c)
        run(statistics_kernel, spans, columns, b)(
            x, means, squares, c, hw, p, q, TILES, last, num_warps=WARPS
        )
        width = power_of_2(d)
        join = max(1, JOIN // width)
        run(join_statistics_kernel, groups, b)(
            means, squares, mean, rstd, eps, c, hw, d, spans, TILES * p, join, width,
            num_warps=JOIN_WARPS,
        )  # fmt: skip
        run(apply_kernel, -(-hw // p), columns, b)(
            x, weight, bias, mean, rstd, y, c, hw, d, p, q, last, silu, num_warps=WARPS
        )
    return y, mean, rstd


def launch_backward(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, rstd: Tensor, silu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """dy and x in one dense layout -> dx, dweight and dbias [B,C]."""
    dx, dweight, dbias = torch.empty_like(x), torch.zeros_like(weight), torch.zeros_like(bias)
    if x.numel():
        (b, c), hw, groups = x.shape[:2], x.shape[2] * x.shape[3], mean.shape[1]
        d = c // groups
        p, q, last = tile_shape(x)
        spans, columns = -(-hw // (TILES * p)), -(-c // q)
        sums_w, sums_b = weight.new_empty(2, b, spans, c)
        run(sums_kernel, spans, columns, b)(
            dy, x, weight, bias, mean, rstd, sums_w, sums_b, c, hw, d, p, q, TILES, last, silu,
            num_warps=WARPS,
        )  # fmt: skip
        c_w, c_b = weight.new_empty(2, b, groups)
        width = power_of_2(d)
        join = max(1, JOIN // width)
        run(join_sums_kernel, groups, b)(
            sums_w, sums_b, weight, dweight, dbias, c_w, c_b, c, hw, d, spans, join, width,
            num_warps=JOIN_WARPS,
        )  # fmt: skip
        run(dx_kernel, -(-hw // p), columns, b)(
            dy, x, weight, bias, mean, rstd, c_w, c_b, dx, c, hw, d, p, q, last, silu,
            num_warps=WARPS,
        )  # fmt: skip
    return dx, dweight, dbias


def variants() -> list[Variant]:
    """Both layouts of bfloat16 and channels_last float32, and the joins."""
    cases = (("bf16", "channels_last"), ("bf16", "contiguous"), ("fp32", "channels_last"))
    moves = {
        statistics_kernel: (1, 0),
        apply_kernel: (1, 1),
        sums_kernel: (2, 0),
        dx_kernel: (2, 1),
    }
    tiled = [_tiled(kernel, *moves[kernel], *case) for case in cases for kernel in moves]
    return [*tiled, _joining(join_statistics_kernel), _joining(join_sums_kernel)]


def _tiled(kernel, reads: int, writes: int, dtype: str, layout: str) -> Variant:
    """reads, writes: of values like x's, for each of them."""
    last = layout == "channels_last"
    p, q = (BLOCK // WIDEST, WIDEST) if last else (BLOCK, 1)
    constexprs = {"P": p, "Q": q, "TILES": TILES, "LAST": last, "SILU": True}
    least = (reads + writes) * BYTES[dtype]
    moved = least + (0 if writes else 8 / (TILES * p))  # two sums of a channel a span
    return _variant(kernel, f"/{layout}/{dtype}", dtype, constexprs, WARPS, moved, least)


def _joining(kernel) -> Variant:
    constexprs = {"SPAN": TILES * BLOCK // WIDEST, "K": JOIN // 4, "Q": 4}
    return _variant(kernel, "", "fp32", constexprs, JOIN_WARPS, 8, 8)


def _variant(kernel, which, dtype, constexprs, num_warps, moved, least) -> Variant:
    """constexprs: those of these that the kernel has."""
    constexprs = {name: value for name, value in constexprs.items() if name in kernel.arg_names}
    kinds = dict.fromkeys(("x", "y", "dy", "dx"), f"*{dtype}") | {"eps": "fp32"}
    kinds |= dict.fromkeys(("C", "HW", "D", "spans"), "i32")
    kinds |= dict.fromkeys(constexprs, "constexpr")
    signature = {name: kinds.get(name, "*fp32") for name in kernel.arg_names}
    name = f"group_norm_silu/{kernel.__name__.removesuffix('_kernel')}{which}"
    return Variant(
        name, kernel, signature, constexprs, num_warps, moved, least, multiples=("C", "HW")
    )
