"""IDM's denoiser: a U-Net whose decoder is an implicit function, so that any size can be asked for
(IDM, arXiv 2303.16491).

The LR picture goes through an EDSR and is enlarged to the size of z_t, next to which it enters
SR3's U-Net (arXiv 2104.07636). From the enlarged picture a second, convolutional branch makes
features for each level. On the way up, where SR3 doubles the size, IDM first mixes these into the
U-Net's features in proportions that depend on the scale, then samples the mixture at the positions
of the finer grid. Rows and columns have coordinates of their own: any height, width and real scale
will do, without padding.

Written from the paper and from recorded outputs of the published network, of which it has the
parameters that matter to the output; what `interchange/systems/idm.py` drops is the rest. Initial
values: PyTorch's, for equalised layers those of StyleGAN.

Symbols: x features [B,C,H,W]; emb what blocks receive of the noise level; level 0 is the highest
resolution.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ldm_dream.config.networks import IDMConfig
from ldm_dream.networks.base import Network
from ldm_dream.networks.layers import (
    Attention,
    Downsample,
    Dropout,
    EmbeddingMLP,
    GroupNorm,
    LastConv2d,
    noise_level_embedding,
)

DECODER_WIDTH = 256  # between the two layers of an implicit decoder, at every level


class IDM(Network):
    """LR encoder and U-Net; at the config's defaults the published 16 -> 128 network."""

    sees_noise_level = True
    cond_factor = None  # the LR picture comes at its own size

    def __init__(self, cfg: IDMConfig):
        super().__init__()
        self.repeated_blocks = (ResAttnBlock, ImplicitDecoder)
        self.encoder = LREncoder(cfg.cond_channels, cfg.encoder_channels, cfg.encoder_blocks)
        self.unet = ImplicitUNet(cfg)
        self.max_scale = cfg.max_scale
        # grids of a tile and of the whole agree at these; any size works
        self.multiple = self.align = 2 ** (len(cfg.channel_mult) - 1)

    def embed(self, t: Tensor) -> Tensor:
        """t [B], noise level sqrt(abar) in [0,1] -> what every block receives of it, [B,E]."""
        return self.unet.embed(t)

    def prepare(self, cond: Tensor, size: tuple[int, int]) -> tuple[Tensor, ...]:
        """LR picture [B,Cc,h,w] in [-1,1] for a z_t of `size` -> what `forward` takes of it, the
        same at every t: the picture, the enlarged one and the features of levels 1, 2, ...
        """
        if size[0] < cond.shape[-2] or size[1] < cond.shape[-1]:
            raise ValueError(
                f"z_t is {tuple(size)}, smaller than its LR picture {tuple(cond.shape[-2:])}; "
                "IDM enlarges by 1 or more."
            )
        picture = self.encoder(cond, size)
        return cond, picture, *self.unet.lr_branch(picture)

    def forward(
        self, z_t: Tensor, emb: Tensor, lr: Tensor, picture: Tensor, *levels: Tensor
    ) -> Tensor:
        """z_t [B,C,H,W], emb [B,E] and what `prepare` made of the LR picture -> eps [B,Cout,H,W].

        Of `lr` only the size counts: it says where the scale lies between 1 and `max_scale`.
        """
        scale = (z_t.shape[-2] / lr.shape[-2] + z_t.shape[-1] / lr.shape[-1]) / 2
        position = z_t.new_full((1,), (scale - 1) / (self.max_scale - 1), dtype=torch.float32)
        return self.unet(z_t, emb, picture, levels, position).to(z_t.dtype)


# --------------------------------------------------------------------------------------- LR picture


class LREncoder(nn.Module):
    """EDSR (arXiv 1707.02921) without its upsampler: features are enlarged by nearest neighbour,
    then become a picture again.
    """

    def __init__(self, channels: int, width: int, blocks: int):
        super().__init__()
        self.head = nn.Conv2d(channels, width, 3, padding=1)
        self.body = nn.Sequential(
            *(EDSRBlock(width) for _ in range(blocks)), nn.Conv2d(width, width, 3, padding=1)
        )
        self.tail = nn.Conv2d(width, channels, 3, padding=1)

    def forward(self, lr: Tensor, size: tuple[int, int]) -> Tensor:
        """[B,C,h,w] -> [B,C,*size]."""
        x = self.head(lr)
        return self.tail(F.interpolate(x + self.body(x), size, mode="nearest"))


class EDSRBlock(nn.Module):
    """x + conv(relu(conv(x)))."""

    def __init__(self, width: int):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class EqualConv2d(nn.Conv2d):
    """3x3 convolution with equalised learning rate: weights ~ N(0,1), scaled by 1/sqrt(fan_in) at
    run time (arXiv 1710.10196).
    """

    def __init__(self, channels: int, out_channels: int, stride: int = 1, bias: bool = True):
        super().__init__(channels, out_channels, 3, stride, padding=1, bias=bias)

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight / math.sqrt(self.weight[0].numel()), self.bias)


class BiasLeakyReLU(nn.Module):
    """sqrt(2) leaky_relu(x + bias, 0.2): keeps the variance of a normal x (StyleGAN2, arXiv
    1912.04958).
    """

    def __init__(self, channels: int):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(x + self.bias.to(x.dtype)[:, None, None], 0.2) * math.sqrt(2)


class Blur(nn.Module):
    """(1, 3, 1) / 5 along rows and columns, zeros outside: less aliasing in the strided convolution
    after it.
    """

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (1, 1, 1, 1))
        x = (x[..., :-2, :] + 3 * x[..., 1:-1, :] + x[..., 2:, :]) / 5
        return (x[..., :-2] + 3 * x[..., 1:-1] + x[..., 2:]) / 5


# -------------------------------------------------------------------------------------------- U-Net


class ImplicitUNet(nn.Module):
    """SR3's U-Net on [condition, z_t], with a branch of LR features and an implicit decoder between
    two levels.
    """

    def __init__(self, cfg: IDMConfig):
        super().__init__()
        widths = [cfg.model_channels * mult for mult in cfg.channel_mult]
        sizes = [cfg.image_size >> level for level in range(len(widths))]
        has_attention = [size in cfg.attention_resolutions for size in sizes]
        self.model_channels = cfg.model_channels
        self.noise_level_mlp = EmbeddingMLP(cfg.model_channels, cfg.model_channels)

        inputs = [cfg.model_channels, *widths[:-1]]  # of the LR branch at each level
        self.conv_body_first = nn.Sequential(
            EqualConv2d(cfg.cond_channels, cfg.model_channels, bias=False),
            BiasLeakyReLU(cfg.model_channels),
        )
        self.conv_body_down = nn.ModuleList(
            nn.Sequential(Blur(), EqualConv2d(c, out, stride=2, bias=False), BiasLeakyReLU(out))
            for c, out in zip(inputs[:-1], widths)
        )
        decoded = range(1, len(widths))  # levels that are decoded to the next higher resolution
        self.condition_scale1, self.condition_scale2 = (
            nn.ModuleDict({str(i): _linear_in_position(widths[i]) for i in decoded})
            for _ in range(2)
        )
        shifts = {str(i): nn.Sequential(EqualConv2d(inputs[i], widths[i])) for i in decoded}
        self.condition_shift = nn.ModuleDict(shifts)

        width = cfg.model_channels
        skips = [width]
        first = nn.Conv2d(cfg.cond_channels + cfg.in_channels, width, 3, padding=1)
        self.downs = nn.ModuleList([first])
        for level, out in enumerate(widths):
            for _ in range(cfg.num_res_blocks):
                self.downs.append(ResAttnBlock(cfg, width, out, has_attention[level]))
                width = out
                skips.append(width)
            if level < len(widths) - 1:
                self.downs.append(Downsample(width, width))
                skips.append(width)

        self.mid = nn.ModuleList(
            ResAttnBlock(cfg, width, width, attends) for attends in (True, False)
        )

        self.ups = nn.ModuleList()
        for level, out in reversed(list(enumerate(widths))):
            for _ in range(cfg.num_res_blocks + 1):
                self.ups.append(ResAttnBlock(cfg, width + skips.pop(), out, has_attention[level]))
                width = out
            if level > 0:
                self.ups.append(ImplicitDecoder(width))
        self.final_conv = _norm_act_conv(cfg, width, cfg.out_channels, conv=LastConv2d)

    def embed(self, t: Tensor) -> Tensor:
        return self.noise_level_mlp(noise_level_embedding(t, self.model_channels))

    def forward(
        self, z_t: Tensor, emb: Tensor, picture: Tensor, levels: Sequence[Tensor], position: Tensor
    ) -> Tensor:
        """z_t [B,C,H,W], emb [B,E], the enlarged LR picture [B,Cc,H,W], its features at levels 1, 2,
        ..., position [B] or [1]: where the scale lies between 1 (0) and `max_scale` (1)
        -> [B,Cout,H,W].
        """
        position = position[:, None].to(self.noise_level_mlp.dtype)
        x = torch.cat([picture, z_t], 1)
        skips = []
        for layer in self.downs:
            x = layer(x, emb) if isinstance(layer, ResAttnBlock) else layer(x)
            skips.append(x)
        for layer in self.mid:
            x = layer(x, emb)
        level = len(levels)
        for layer in self.ups:
            if isinstance(layer, ResAttnBlock):
                x = layer(torch.cat([x, skips.pop()], 1), emb)
            else:
                shares = (
                    self.condition_scale1[str(level)](position),
                    self.condition_scale2[str(level)](position),
                )
                x = layer(x, levels[level - 1], shares, skips[-1].shape[-2:])
                level -= 1
        return self.final_conv(x)

    def lr_branch(self, picture: Tensor) -> list[Tensor]:
        """[B,Cc,H,W] -> features of levels 1, 2, ..., sized like the U-Net's there."""
        x = self.conv_body_first(picture)
        features = []
        for level, down in enumerate(self.conv_body_down, start=1):
            x = down(x)
            features.append(self.condition_shift[str(level)](x))
        return features


class ResAttnBlock(nn.Module):
    """Residual block, then attention where its level has it."""

    def __init__(self, cfg: IDMConfig, channels: int, out_channels: int, attention: bool):
        super().__init__()
        self.res_block = ResBlock(cfg, channels, out_channels)
        self.attn = Attention(out_channels, cfg.norm_groups) if attention else nn.Identity()

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        return self.attn(self.res_block(x, emb))


class ResBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x))) + shift(emb)))), dropout before the second
    convolution.
    """

    def __init__(self, cfg: IDMConfig, channels: int, out_channels: int):
        super().__init__()
        self.noise_func = nn.Linear(cfg.model_channels, out_channels)
        self.block1 = _norm_act_conv(cfg, channels, out_channels)
        self.block2 = _norm_act_conv(cfg, out_channels, out_channels, cfg.dropout)
        self.res_conv = (
            nn.Conv2d(channels, out_channels, 1) if channels != out_channels else nn.Identity()
        )

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        shift = self.noise_func(emb)
        h = self.block1(x)
        h = h + shift[:, :, None, None].to(h.dtype)
        return self.res_conv(x) + self.block2(h)


# --------------------------------------------------------------------------------- implicit decoder


class ImplicitDecoder(nn.Module):
    """Mixes in LR features, then reads the mixture off at the cell centres of a finer grid (IDM,
    section 3.2; LIIF, 2012.09161).

    A position gets imnet(nearest feature, offset to it). The published imnet has no activation
    between its layers, so it is linear: it is applied to the features before they are spread, and
    to the offsets alone, which leave rows and columns apart.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.style = ScaleModulation(channels)
        self.imnet = nn.Sequential(
            nn.Linear(channels + 2, DECODER_WIDTH), nn.Linear(DECODER_WIDTH, channels)
        )

    def forward(
        self, x: Tensor, lr_features: Tensor, shares: tuple[Tensor, Tensor], size: tuple[int, int]
    ) -> Tensor:
        """x and lr_features [B,C,h,w], shares 2 x [B or 1,C] -> [B,C,*size], size at least (h,w)."""
        weight1, bias1, weight2, bias2 = self.imnet.parameters()  # of the two layers
        x = rearrange(self.style(x, lr_features, shares), "b c h w -> b h w c")
        channels = x.shape[-1]
        x = F.linear(F.linear(x, weight1[:, :channels], bias1), weight2, bias2)
        per_row, per_column = (weight2 @ weight1[:, channels:]).to(x.dtype).unbind(1)
        rows, down = nearest(size[0], x.shape[1], x.device)
        columns, right = nearest(size[1], x.shape[2], x.device)
        down, right = down.to(x.dtype)[:, None, None], right.to(x.dtype)[:, None]
        offsets = down * per_row + right * per_column  # [*size,C]
        x = x.index_select(1, rows).index_select(2, columns) + offsets
        return rearrange(x, "b h w c -> b c h w")


class ScaleModulation(nn.Module):
    """Features and LR features in proportions s1 : s2 with s1^2 + s2^2 = 1 (IDM, section 3.3), then
    bias and leaky ReLU.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.activate = BiasLeakyReLU(channels)

    def forward(self, x: Tensor, lr_features: Tensor, shares: tuple[Tensor, Tensor]) -> Tensor:
        s1, s2 = (share.float() for share in shares)
        norm = torch.rsqrt(s1**2 + s2**2 + 1e-8)
        s1, s2 = ((s * norm).to(x.dtype)[:, :, None, None] for s in (s1, s2))
        return self.activate(x * s1 + lr_features * s2)


def nearest(fine: int, coarse: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Both grids span the same length: for each of `fine` cells the coarse cell that its centre
    lies in (int64 [fine]), and the offset from that cell's centre (float32 [fine]) in half coarse
    cells, -1 to 1. A centre on a border (only where fine is odd) belongs to the later cell.
    """
    centre = (2 * torch.arange(fine, device=device) + 1) * coarse  # a coarse cell is 2 * fine long
    index = centre // (2 * fine)
    return index, (centre - (2 * index + 1) * fine).float() / fine


# -------------------------------------------------------------------------------------------- parts


def _norm_act_conv(
    cfg: IDMConfig,
    channels: int,
    out_channels: int,
    dropout: float = 0.0,
    conv: type[nn.Conv2d] = nn.Conv2d,
) -> nn.Sequential:
    norm = GroupNorm(channels, cfg.norm_groups, silu=True)
    last = conv(channels, out_channels, 3, padding=1)
    # the second place is the activation's, as published
    return nn.Sequential(norm, nn.Identity(), Dropout(dropout), last)


def _linear_in_position(channels: int) -> nn.Linear:
    """position [B,1] -> [B,channels]; at position 0 the same for features and LR features."""
    layer = nn.Linear(1, channels)
    nn.init.normal_(layer.weight)
    nn.init.ones_(layer.bias)
    return layer
