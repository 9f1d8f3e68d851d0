"""ResShift's denoiser: a U-Net with window attention (ResShift, arXiv 2307.12348; Swin Transformer,
arXiv 2103.14030).

Levels of residual blocks; after the *first* block of a level comes a Swin layer of `swin_depth`
window-attention blocks, every second one shifted by half a window. The condition is concatenated to
z_t; a larger one goes through strided convolutions first. Parameter names are the published ones
(`interchange/systems/resshift.py` holds the two exceptions), so that checkpoints need no renaming.

Symbols: x features [B,C,H,W]; emb what blocks receive of the timestep; w window side, s shift, N =
w*w tokens of a window.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Hashable
from functools import lru_cache

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ldm_dream.config.networks import ResShiftNetConfig
from ldm_dream.networks.base import Network
from ldm_dream.networks.layers import (
    Downsample,
    Dropout,
    EmbeddingMLP,
    LastConv2d,
    Upsample,
    crop,
    make_norm,
    norm_silu,
    of_size,
    pad,
    pad_to_multiple,
    timestep_embedding,
    zeroed,
)

# added to the logits of pairs that a shift mask separates, as published; finite, so 16-bit softmax
# stays finite
BLOCKED = -100.0


class ResShiftNet(Network):
    """Swin U-Net; at the config's defaults ResShift's x4 network with 118,593,583 parameters."""

    sees_noise_level = False
    cond_factor: int

    def __init__(self, cfg: ResShiftNetConfig):
        super().__init__()
        self.repeated_blocks = (ResBlock, SwinBlock)
        self.cond_factor, self.model_channels = cfg.cond_factor, cfg.model_channels
        self.time_embed = EmbeddingMLP(cfg.model_channels, 4 * cfg.model_channels)
        self.feature_extractor, cond_features = _feature_extractor(cfg)

        width = cfg.model_channels * cfg.channel_mult[0]
        self.patch, fold = cfg.patch_size, cfg.patch_size**2
        sizes = [
            cfg.image_size // cfg.patch_size >> level for level in range(len(cfg.channel_mult))
        ]
        skips = [width]
        self.input_blocks = nn.ModuleList(
            [Stage([nn.Conv2d((cfg.in_channels + cond_features) * fold, width, 3, padding=1)])]
        )
        for level, (mult, count) in enumerate(zip(cfg.channel_mult, cfg.blocks)):
            for i in range(count):
                stage = Stage([ResBlock(cfg, width, cfg.model_channels * mult)])
                width = cfg.model_channels * mult
                if i == 0 and sizes[level] in cfg.attention_resolutions:
                    stage.append(SwinLayer(cfg, width, sizes[level]))
                self.input_blocks.append(stage)
                skips.append(width)
            if level < len(sizes) - 1:
                self.input_blocks.append(Stage([Downsample(width, width)]))
                skips.append(width)

        self.middle_block = Stage(
            [
                ResBlock(cfg, width, width),
                SwinLayer(cfg, width, sizes[-1]),
                ResBlock(cfg, width, width),
            ]
        )

        self.output_blocks = nn.ModuleList()
        for level, (mult, count) in reversed(list(enumerate(zip(cfg.channel_mult, cfg.blocks)))):
            for i in range(count + 1):
                stage = Stage([ResBlock(cfg, width + skips.pop(), cfg.model_channels * mult)])
                width = cfg.model_channels * mult
                if i == 0 and sizes[level] in cfg.attention_resolutions:
                    stage.append(SwinLayer(cfg, width, sizes[level]))
                if i == count and level > 0:
                    stage.append(Upsample(width))
                self.output_blocks.append(stage)
        self.out = nn.Sequential(
            *norm_silu(cfg.norm, width),
            zeroed(LastConv2d(width, cfg.out_channels * fold, 3, padding=1)),
        )
        # one halving more than there are: the deepest features are 2x2, as norms need two values
        self.multiple = cfg.patch_size << len(sizes)
        attending = [i for i, size in enumerate(sizes) if size in cfg.attention_resolutions]
        windows = (min(cfg.window_size, sizes[i]) << i for i in (*attending, len(sizes) - 1))
        self.align = math.lcm(self.multiple, *(cfg.patch_size * n for n in windows))

    def embed(self, t: Tensor) -> Tensor:
        """t [B], step of the original schedule -> what every block receives of it, [B,E]."""
        return self.time_embed(timestep_embedding(t, self.model_channels))

    def prepare(self, cond: Tensor, size: tuple[int, int]) -> tuple[Tensor]:
        """cond [B,Cc,h*k,w*k] (k: cond_factor) for a z_t of `size` (h, w) -> its features [B,Cf,h,w],
        padded like z_t in `forward`.
        """
        k, (height, width) = self.cond_factor, size
        cond = of_size(cond, (height * k, width * k))
        down, right = -height % self.multiple, -width % self.multiple
        return (self.feature_extractor(pad(cond, down * k, right * k)),)

    def forward(self, z_t: Tensor, emb: Tensor, features: Tensor) -> Tensor:
        """z_t [B,C,h,w], emb [B,E], features [B,Cf,h,w] -> [B,Cout,h,w] like z_t.

        Any h and w: they are padded to a multiple of `self.multiple` (reflected; replicated where
        too small) and cropped again.
        """
        height, width = z_t.shape[-2:]
        z_t = pad(z_t, -height % self.multiple, -width % self.multiple)
        x = F.pixel_unshuffle(torch.cat([z_t, features.to(z_t.dtype)], 1), self.patch)
        skips = []
        for stage in self.input_blocks:
            x = stage(x, emb)
            skips.append(x)
        x = self.middle_block(x, emb)
        for stage in self.output_blocks:
            x = stage(torch.cat([x, skips.pop()], 1), emb)
        return F.pixel_shuffle(self.out(x), self.patch)[..., :height, :width].to(z_t.dtype)


class Stage(nn.ModuleList):
    """Layers in a row, of which only the residual blocks see the timestep."""

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        for layer in self:
            x = layer(x, emb) if isinstance(layer, ResBlock) else layer(x)
        return x


class ResBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))) * (1 + scale(t)) + shift(t))); the last convolution
    starts at zero.
    """

    def __init__(self, cfg: ResShiftNetConfig, channels: int, out_channels: int):
        super().__init__()
        self.in_layers = nn.Sequential(
            *norm_silu(cfg.norm, channels), nn.Conv2d(channels, out_channels, 3, padding=1)
        )
        self.emb_layers = nn.Sequential(
            nn.SiLU(), nn.Linear(4 * cfg.model_channels, 2 * out_channels)
        )
        self.out_layers = nn.Sequential(
            *norm_silu(cfg.norm, out_channels),
            Dropout(cfg.dropout),
            zeroed(nn.Conv2d(out_channels, out_channels, 3, padding=1)),
        )
        self.skip_connection = (
            nn.Conv2d(channels, out_channels, 1) if channels != out_channels else nn.Identity()
        )

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        scale, shift = self.emb_layers(emb).chunk(2, 1)
        h = self.in_layers(x)
        norm, _, dropout, conv = self.out_layers
        return self.skip_connection(x) + conv(dropout(norm(h, scale, shift)))


# --------------------------------------------------------------------------------------------- Swin


class SwinLayer(nn.Module):
    """1x1 convolution to `swin_embed_dim`, the blocks, 1x1 convolution back; no residual around the
    whole, as published.

    `size` is the feature size at training (`image_size`): where one window covers it, nothing
    shifts, at any input size. Features that are no whole number of windows are padded to it here
    (reflected; replicated where too small).
    """

    def __init__(self, cfg: ResShiftNetConfig, channels: int, size: int):
        super().__init__()
        window = min(cfg.window_size, size)
        shift = window // 2 if size > window else 0
        self.window = window
        self.patch_embed = nn.Conv2d(channels, cfg.swin_embed_dim, 1)
        self.blocks = nn.ModuleList(
            SwinBlock(cfg, window, shift if i % 2 else 0) for i in range(cfg.swin_depth)
        )
        self.patch_unembed = nn.Conv2d(cfg.swin_embed_dim, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        x = pad_to_multiple(self.patch_embed(x), self.window)
        for block in self.blocks:
            x = block(x)
        return self.patch_unembed(crop(x, height, width))


class SwinBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)) with 1x1 convolutions and exact GELU."""

    def __init__(self, cfg: ResShiftNetConfig, window: int, shift: int):
        super().__init__()
        width, hidden = cfg.swin_embed_dim, int(cfg.swin_embed_dim * cfg.mlp_ratio)
        self.norm1 = make_norm(cfg.norm, width)
        self.attn = WindowAttention(
            width, width // cfg.num_head_channels, window, shift, cfg.legacy_mask
        )
        self.norm2 = make_norm(cfg.norm, width)
        self.mlp = nn.Sequential(
            OrderedDict(
                fc1=nn.Conv2d(width, hidden, 1),
                activation=nn.GELU(),
                fc2=nn.Conv2d(hidden, width, 1),
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class WindowAttention(nn.Module):
    """softmax(q k' / sqrt(d) + B + mask) v within windows, B a learnt bias of the relative position
    (Swin, Eq. 4).
    """

    def __init__(self, width: int, heads: int, window: int, shift: int, legacy_mask: bool):
        super().__init__()
        self.heads, self.window, self.shift, self.legacy_mask = heads, window, shift, legacy_mask
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * window - 1) ** 2, heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """x [B,C,H,W], H and W multiples of the window."""
        (height, width), w, s = x.shape[-2:], self.window, self.shift
        x = x.permute(0, 2, 3, 1).roll((-s, -s), (1, 2)) if s else x.permute(0, 2, 3, 1)
        q, k, v = rearrange(
            self.qkv(x), "b (i y) (j x) (n h d) -> n (b i j) h (y x) d", n=3, h=self.heads, y=w, x=w
        )
        x = _attention(q, k, v, self.bias(height, width, q))
        i, j = height // w, width // w
        x = rearrange(x, "(b i j) h (y x) d -> b (i y) (j x) (h d)", i=i, j=j, y=w)
        return self.proj(x.roll((s, s), (1, 2)) if s else x).permute(0, 3, 1, 2)

    def bias(self, height: int, width: int, like: Tensor) -> Tensor:
        """Additive bias of the logits in `like`'s dtype: [1,heads,N,N], with a shift [windows of a
        sample,heads,N,N].
        """
        w = self.window
        index = _constant(relative_position_index, w, like.device)
        bias = (
            self.relative_position_bias_table.T[:, index]
            .view(1, self.heads, w * w, w * w)
            .to(like.dtype)
        )
        if self.shift == 0:
            return bias
        return bias + _constant(
            shift_mask, height, width, w, self.shift, self.legacy_mask, like.device, like.dtype
        )


def _attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """softmax(q k' / sqrt(d) + bias) v: q, k, v [B*windows,heads,N,d], bias [windows or
    1,heads,N,N].

    By torch's one operation, but for bfloat16 on a CPU without gradient: for such small windows it
    takes twice the time of matrix products (torch 2.14), whose logits are rounded in exchange.
    """
    times, shape = len(q) // len(bias), q.shape
    if q.device.type != "cpu" or q.dtype != torch.bfloat16 or torch.is_grad_enabled():
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=bias if len(bias) == 1 else bias.repeat(times, 1, 1, 1)
        )
    logits = bias.repeat(times, 1, 1, 1).flatten(0, 1)
    q, k, v = (part.flatten(0, 1) for part in (q, k, v))
    with torch.autocast("cpu", enabled=False):  # else the softmax is stored in float32
        logits.baddbmm_(q, k.transpose(1, 2), alpha=shape[-1] ** -0.5)
        return torch.bmm(logits.softmax(-1), v).view(shape)


def relative_position_index(window: int, device: torch.device) -> Tensor:
    """int64 [N*N]: row of the bias table for each (query, key): (dy + w - 1) * (2w - 1) + dx + w -
    1; (dy, dx) = query - key.
    """
    y, x = (
        axis.flatten()
        for axis in torch.meshgrid(*2 * [torch.arange(window, device=device)], indexing="ij")
    )
    dy, dx = y[:, None] - y, x[:, None] - x
    return ((dy + window - 1) * (2 * window - 1) + dx + window - 1).flatten()


def shift_mask(
    height: int,
    width: int,
    window: int,
    shift: int,
    legacy: bool,
    device: torch.device,
    dtype: torch.dtype,
) -> Tensor:
    """[windows,1,N,N]: BLOCKED where a rolled window holds two tokens that are not together in the
    picture, else 0.

    Swin, section 3.2. `legacy` is a slip of the published code, with which its weights were trained
    (ResShift issue 81): only the last row of windows is masked, and its tokens are parted by their
    column within the window.
    """
    y, x = torch.arange(height, device=device)[:, None], torch.arange(width, device=device)
    in_last_row = (y >= height - window).int()
    if legacy:
        region = in_last_row * (1 + (x % window >= window - shift).int())
    else:
        region = (
            3 * (in_last_row + (y >= height - shift).int())
            + (x >= width - window).int()
            + (x >= width - shift).int()
        )
    region = rearrange(region, "(i y) (j x) -> (i j) 1 (y x)", y=window, x=window)
    return BLOCKED * (region[..., :, None] != region[..., None, :]).to(dtype)


@lru_cache(maxsize=32)
def _cached(build: Callable[..., Tensor], *key: Hashable) -> Tensor:
    # a tensor made in inference mode could never be used in training again
    with torch.inference_mode(False):
        return build(*key)


def _constant(build: Callable[..., Tensor], *key: Hashable) -> Tensor:
    """`build(*key)`, kept for the last 32 keys. A graph being compiled builds it itself: its
    tensors must not be cached.
    """
    return build(*key) if torch.compiler.is_compiling() else _cached(build, *key)


# -------------------------------------------------------------------------------------------- parts


def _feature_extractor(cfg: ResShiftNetConfig) -> tuple[nn.Module, int]:
    """Halves the condition until it has the size of z_t, doubling the channels from 16; -> module
    and its output channels.
    """
    if cfg.cond_factor == 1:
        return nn.Identity(), cfg.cond_channels
    layers, channels, width = [], cfg.cond_channels, 16
    for _ in range(cfg.cond_factor.bit_length() - 1):
        layers += [nn.Conv2d(channels, width, 3, padding=1), nn.SiLU()]
        layers += [Downsample(width, 2 * width)]
        channels = width = 2 * width
    return nn.Sequential(*layers), channels
