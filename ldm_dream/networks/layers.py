"""Blocks that several networks use unchanged: timestep embedding, norms that keep the memory
layout, resampling, padding.

Features are [B,C,H,W]; every block here returns channels_last features for channels_last input.
"""

from __future__ import annotations

import math
from typing import Literal, TypeVar

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from dream_kernels import dropout, group_norm_silu
from dream_kernels.reference import layout
from ldm_dream.config.strict import GROUPS

Layer = TypeVar("Layer", bound=nn.Module)

WORTH_FOLDING = 32 * 32  # pixels; for fewer, `folded` itself takes a part of what it spares


def timestep_embedding(t: Tensor, width: int, max_period: float = 10_000.0) -> Tensor:
    """t [B] -> float32 [B,width]: cos(t w_i) then sin(t w_i), w_i = max_period ** (-2i/width).

    From DDPM (arXiv 2006.11239), in the order of ADM (arXiv 2105.05233). An odd width ends with a
    column of zeros.
    """
    half = width // 2
    frequencies = torch.exp(
        -math.log(max_period) / half * torch.arange(half, dtype=torch.float32, device=t.device)
    )
    angles = t.float()[:, None] * frequencies
    return F.pad(torch.cat([angles.cos(), angles.sin()], 1), (0, width % 2))


def noise_level_embedding(noise_level: Tensor, width: int) -> Tensor:
    """noise_level a [B] -> float32 [B,width]: sin(a w_k) then cos(a w_k), w_k = 1e4 ** (-2k/width);
    a unscaled (SR3's code).
    """
    cos, sin = timestep_embedding(noise_level, width).chunk(2, 1)
    return torch.cat([sin, cos], 1)


class EmbeddingMLP(nn.Sequential):
    """An embedding of t [B,width], float32 -> [B,out]: linear to 4 * width, SiLU, linear. Computes
    in the type of its weights.
    """

    def __init__(self, width: int, out: int):
        first, last = nn.Linear(width, 4 * width), nn.Linear(4 * width, out)
        super().__init__(first, nn.SiLU(), last)

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def forward(self, embedding: Tensor) -> Tensor:
        return super().forward(embedding.to(self.dtype))


class GroupNorm(nn.GroupNorm):
    """norm(x) (1 + scale) + shift, then SiLU if `silu`; over `groups` and space, with statistics in
    float32.

    scale, shift: [B,C]. The result has x's type, also under autocast.
    """

    def __init__(self, channels: int, groups: int = GROUPS, silu: bool = False, eps: float = 1e-5):
        super().__init__(groups, channels, eps)
        self.silu = silu

    def forward(
        self, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None
    ) -> Tensor:
        return group_norm_silu(
            x, self.weight, self.bias, self.num_groups, self.eps, scale, shift, self.silu
        )


class LayerNorm(nn.LayerNorm):
    """The same over the channels of each position (NAFNet, arXiv 2204.04676): local, so a tile
    equals its part of the whole.
    """

    def __init__(self, channels: int, silu: bool = False):
        super().__init__(channels, eps=1e-5)
        self.silu = silu

    def forward(
        self, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None
    ) -> Tensor:
        # both permutes are views in channels_last
        h = super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2).to(x.dtype)
        if scale is not None:
            h = h * (1 + scale[:, :, None, None].to(h.dtype))
        if shift is not None:
            h = h + shift[:, :, None, None].to(h.dtype)
        return F.silu(h, inplace=_infers_on_cpu(h)) if self.silu else h


def _infers_on_cpu(x: Tensor) -> bool:
    """Whether x is computed at once on a CPU, without gradient: a graph that is compiled or exported
    keeps the plain form.
    """
    return x.is_cpu and not torch.is_grad_enabled() and not torch.compiler.is_compiling()


def make_norm(kind: Literal["group", "layer"], channels: int, silu: bool = False) -> nn.Module:
    """`kind` of the config -> norm of features with `channels` channels; "group" wants a multiple
    of 32.
    """
    return GroupNorm(channels, silu=silu) if kind == "group" else LayerNorm(channels, silu)


def norm_silu(kind: Literal["group", "layer"], channels: int) -> list[nn.Module]:
    """The norm with its activation, and an empty place: published layouts count the activation as a
    layer of its own.
    """
    return [make_norm(kind, channels, silu=True), nn.Identity()]


class Dropout(nn.Dropout):
    """nn.Dropout, on a CPU at a fifth of its time."""

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.p) if self.training and self.p else x


class Downsample(nn.Module):
    """Halves the size by a convolution of stride 2 (odd sizes round up); `op` is the published
    name.
    """

    def __init__(self, channels: int, out_channels: int):
        super().__init__()
        self.op = nn.Conv2d(channels, out_channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class Upsample(nn.Module):
    """Doubles the size: nearest neighbour, then a convolution. On a CPU without gradient both are one
    transposed convolution, which differs by rounding.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        if _infers_on_cpu(x) and x.shape[-2] * x.shape[-1] >= WORTH_FOLDING:
            weight = folded(self.conv.weight)
            return F.conv_transpose2d(x, weight, self.conv.bias, stride=2, padding=1)
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def folded(weight: Tensor) -> Tensor:
    """Weights [Cout,Cin,3,3] that follow a doubling by nearest neighbour -> [Cin,Cout,4,4] of the
    transposed convolution with the same result: 4/9 of the products, as equal pixels are not
    multiplied one by one.
    """
    result = weight.to(torch.promote_types(weight.dtype, torch.float32))  # sums are rounded once
    for axis in (2, 3):
        first, middle, last = result.unbind(axis)
        result = torch.stack([last, middle + last, first + middle, first], axis)
    return result.to(weight.dtype).transpose(0, 1)


class LastConv2d(nn.Conv2d):
    """The convolution that ends a network: in the type of its weights under autocast too, as ADM's
    (arXiv 2105.05233).

    Weights rounded to bfloat16 shift the mean of each channel of the result, alike at every step of
    sampling: a tint that no later layer evens out.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.is_meta:  # which has no autocast to switch off
            return super().forward(x)
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.to(self.weight.dtype))


def pad(x: Tensor, down: int, right: int) -> Tensor:
    """x [B,C,H,W] -> [B,C,H+down,W+right], reflected; replicated where the picture is too small to
    be reflected.
    """
    if down == right == 0:
        return x
    if x.shape[1] == 0:  # no condition: nothing to reflect
        return x.new_empty(x.shape[0], 0, x.shape[2] + down, x.shape[3] + right)
    reflectable = down < x.shape[-2] and right < x.shape[-1]
    padded = F.pad(x, (0, right, 0, down), mode="reflect" if reflectable else "replicate")
    return padded.contiguous(memory_format=layout(x))


def crop(x: Tensor, height: int, width: int) -> Tensor:
    """[B,C,H,W] -> its first rows and columns, as dense in memory; x itself where these are all."""
    if (height, width) == x.shape[-2:]:
        return x
    return x[..., :height, :width].contiguous(memory_format=layout(x))


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """[B,C,H,W] -> both sides up to the next multiple at the bottom and right: reflected,
    replicated where too small for that.
    """
    return pad(x, -x.shape[-2] % multiple, -x.shape[-1] % multiple)


def of_size(cond: Tensor, size: tuple[int, int]) -> Tensor:
    """`cond`, unless its height and width are others than z_t asks for."""
    if cond.shape[-2:] != size:
        raise ValueError(
            f"the condition is {tuple(cond.shape[-2:])}; this z_t wants {tuple(size)}."
        )
    return cond


def zeroed(layer: Layer) -> Layer:
    """The layer, its weight and bias set to zero: a branch that ends in it starts as nothing."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


class Attention(nn.Module):
    """x + W softmax(q k' / sqrt(C)) v over all positions, one head, q, k, v without bias."""

    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.norm = GroupNorm(channels, groups)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1, bias=False)
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = rearrange(self.qkv(self.norm(x)), "b c h w -> b 1 (h w) c").chunk(3, -1)
        tokens = F.scaled_dot_product_attention(q, k, v)
        return x + self.out(rearrange(tokens, "b 1 (h w) c -> b c h w", h=x.shape[2]))
