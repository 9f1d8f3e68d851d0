"""Knobs of the networks. A model folder needs them, and those of `autoencoder.py` and
`process.py`, to be loaded.

Adding a network = its class here, with the paper's values as defaults, and its row in
NetworkConfig. Imports no torch.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, get_args

from pydantic import Field, model_validator

from ldm_dream.config.strict import (
    GROUPS,
    Blocks,
    Levels,
    Side,
    Strict,
    each_level,
    not_too_many,
    unet_weights,
)

# ------------------------------------------------------------------------ knobs that networks share

ImageSize = Annotated[
    Side,
    Field(
        description="Side of z_t in training; with attention_resolutions it decides which levels "
        "have attention.",
    ),
]
InChannels = Annotated[int, Field(ge=1, description="Channels of z_t.")]
OutChannels = Annotated[int, Field(ge=1, description="Channels of the output, as of z_t.")]
CondAfter = Annotated[
    int, Field(ge=0, description="Channels of the condition, which is concatenated after z_t.")
]
ModelChannels = Annotated[int, Field(description="Channels that channel_mult multiplies.")]
ChannelMult = Annotated[
    Levels,
    Field(
        description="Channels of each level as multiples of model_channels, highest resolution first."
    ),
]
ResBlocks = Annotated[
    Blocks,
    Field(description="Residual blocks a level on the way down; one more on the way up."),
]
AttentionSizes = Annotated[
    tuple[Side, ...],
    Field(
        description="Sizes of features, for a z_t of image_size, that have attention after each "
        "block; the middle always has it."
    ),
]
HeadChannels = Annotated[int, Field(ge=1, description="Channels of one attention head.")]
NormGroups = Annotated[
    int, Field(ge=1, description="Groups of the group norm; divides the channels of every level.")
]
Dropout = Annotated[
    float, Field(ge=0, lt=1, description="Probability of dropout inside a residual block.")
]
Norm = Annotated[
    Literal["group", "layer"],
    Field(
        description="group: 32 groups over the whole picture, as published; layer: over the "
        "channels at each position, so that tiles agree with the whole picture."
    ),
]


# ------------------------------------------------------------------------------------- the networks


class NetworkKnobs(Strict):
    """What a run asks of a network of any kind. Each kind also has `cond_factor`, the size of the
    condition over that of z_t, as a knob or fixed; None: the network takes the LR picture, at its
    own size.
    """

    if TYPE_CHECKING:  # every kind has them, each with its own defaults and range
        kind: Any
        image_size: Any
        in_channels: Any
        out_channels: Any
        cond_channels: Any

    any_scale: ClassVar[bool] = False  # trained at random scales, too

    @property
    def largest_scale(self) -> float:
        """The end of those scales."""
        return 1.0

    @model_validator(mode="after")
    def _can_be_built(self):
        """Raises ValueError for what cannot be built, or would be too large."""
        self._check()
        not_too_many(self.least_parameters, f"network.kind={self.kind}")
        return self

    def _check(self) -> None:
        """What this kind asks of its knobs. Raises ValueError."""

    @property
    def least_parameters(self) -> float:
        """As many the network has at least."""
        return 0.0


class UNetKnobs(NetworkKnobs):
    """What all U-Nets here have: levels of residual blocks, each half as large as the one before."""

    if TYPE_CHECKING:
        model_channels: Any
        channel_mult: Any
        num_res_blocks: Any

    def _check(self) -> None:
        levels = len(self.channel_mult)
        patch = getattr(self, "patch_size", 1)
        if self.image_size // patch >> (levels - 1) == 0:
            raise ValueError(
                f"image_size={self.image_size} is too small for {levels} levels; "
                f"use {patch << (levels - 1)} or more"
            )

    @property
    def blocks(self) -> list[int]:
        """Residual blocks of each level on the way down."""
        return each_level(self.num_res_blocks, len(self.channel_mult))

    @property
    def least_parameters(self) -> float:
        ends = 9 * self.model_channels * (self.in_channels + self.cond_channels + self.out_channels)
        embedding = 4 * self.model_channels**2
        return ends + embedding + unet_weights(self.model_channels, self.channel_mult, self.blocks)


class ResShiftNetConfig(UNetKnobs):
    """Swin U-Net of ResShift (published x4 defaults: 118,593,583 parameters)."""

    kind: Literal["resshift"] = "resshift"
    image_size: Side = Field(
        default=64,
        description="Side of z_t in training; decides which levels have attention and which "
        "windows shift.",
    )
    in_channels: InChannels = 3
    out_channels: OutChannels = 3
    cond_channels: CondAfter = 3
    cond_factor: Literal[1, 2, 4, 8] = Field(
        default=1, description="Side of the condition over that of z_t (published x2 network: 2)."
    )
    patch_size: int = Field(
        default=1,
        ge=1,
        le=64,
        description="Side of the squares of z_t that are folded into channels before the first "
        "convolution (published: 1).",
    )
    model_channels: ModelChannels = Field(default=160, ge=1)
    channel_mult: ChannelMult = (1, 2, 2, 4)
    num_res_blocks: Blocks | tuple[Blocks, ...] = Field(
        default=2,
        description="Residual blocks a level on the way down, one number or one for each level; "
        "one more on the way up.",
    )
    attention_resolutions: tuple[Side, ...] = Field(
        default=(64, 32, 16, 8),
        description="Sizes of features, for a z_t of image_size, that have a Swin layer after the "
        "first block; the middle always has one.",
    )
    swin_depth: int = Field(
        default=2,
        ge=1,
        le=100,
        description="Blocks of a Swin layer; every second one has shifted windows.",
    )
    swin_embed_dim: int = Field(default=192, ge=1, description="Channels inside a Swin layer.")
    num_head_channels: HeadChannels = 32
    window_size: int = Field(
        default=8, ge=1, le=64, description="Side of an attention window in features."
    )
    mlp_ratio: float = Field(
        default=4, gt=0, description="Hidden channels of a Swin block's MLP over swin_embed_dim."
    )
    dropout: Dropout = 0.0
    norm: Norm = "group"
    legacy_mask: bool = Field(
        default=False,
        description="Shifted windows are masked in the wrong way that the published weights were "
        "trained with and need.",
    )

    def _check(self) -> None:
        super()._check()
        if self.swin_embed_dim % self.num_head_channels:
            raise ValueError(
                f"num_head_channels={self.num_head_channels} does not divide swin_embed_dim={self.swin_embed_dim}"
            )
        if int(self.swin_embed_dim * self.mlp_ratio) < 1:
            raise ValueError(
                f"mlp_ratio={self.mlp_ratio:g} leaves no channel of swin_embed_dim={self.swin_embed_dim}"
            )
        for name, width in (
            ("model_channels", self.model_channels * math.gcd(*self.channel_mult)),
            ("swin_embed_dim", self.swin_embed_dim),
        ):
            _norm_fits(self.norm, name, width)

    @property
    def least_parameters(self) -> float:
        window = min(self.window_size, self.image_size // self.patch_size)
        embed = self.swin_embed_dim
        bias = (2 * window - 1) ** 2 * (embed // self.num_head_channels)
        swin = self.swin_depth * (4 * embed**2 + 2 * embed**2 * self.mlp_ratio + bias)
        ends = 9 * self.patch_size**2 * (self.in_channels + self.out_channels)
        return super().least_parameters + swin + ends * self.model_channels


class SR3Config(UNetKnobs):
    """U-Net of SR3 (published 16 -> 128 face defaults: 97,807,491 parameters)."""

    kind: Literal["sr3"] = "sr3"
    image_size: ImageSize = 128
    in_channels: InChannels = 3
    out_channels: OutChannels = 3
    cond_channels: int = Field(
        default=3, ge=0, description="Channels of the condition, which is concatenated before z_t."
    )
    model_channels: ModelChannels = Field(default=64, ge=2, multiple_of=2)
    channel_mult: ChannelMult = (1, 2, 4, 8, 8)
    num_res_blocks: ResBlocks = 2
    attention_resolutions: AttentionSizes = (16,)
    norm_groups: NormGroups = 32
    dropout: Dropout = 0.2

    cond_factor: ClassVar[int] = 1  # the condition is as large as z_t

    def _check(self) -> None:
        super()._check()
        _groups_divide(self.norm_groups, self.model_channels)


class LDMConfig(UNetKnobs):
    """U-Net of LDM-SR, latent-diffusion's bsr_sr (published defaults: 113,622,563 parameters)."""

    kind: Literal["ldm"] = "ldm"
    cond_factor: ClassVar[int] = 1  # the condition is as large as z_t
    image_size: ImageSize = 64
    in_channels: InChannels = 3
    out_channels: OutChannels = 3
    cond_channels: CondAfter = 3
    model_channels: ModelChannels = Field(default=160, ge=1)
    channel_mult: ChannelMult = (1, 2, 2, 4)
    num_res_blocks: ResBlocks = 2
    attention_resolutions: tuple[Side, ...] = Field(
        default=(8,),
        description="Sizes of features, for a z_t of image_size, that have attention after each "
        "block; the middle always has it. LDM's own configs list image_size / size.",
    )
    num_head_channels: HeadChannels = 32
    dropout: Dropout = 0.0
    norm: Norm = "group"

    def _check(self) -> None:
        super()._check()
        _norm_fits(self.norm, "model_channels", self.model_channels)
        last = len(self.channel_mult) - 1
        attending = [
            mult
            for level, mult in enumerate(self.channel_mult)
            if level == last or self.image_size >> level in self.attention_resolutions
        ]
        width = self.model_channels * math.gcd(*attending)
        if width % self.num_head_channels:
            raise ValueError(
                f"num_head_channels={self.num_head_channels} does not divide the {width} channels of a level with attention"
            )


class IDMConfig(UNetKnobs):
    """IDM: SR3's U-Net with implicit decoders, for any scale (published 16 -> 128 defaults:
    99,801,670 parameters).
    """

    kind: Literal["idm"] = "idm"
    image_size: ImageSize = 128
    in_channels: InChannels = 3
    out_channels: OutChannels = 3
    cond_channels: int = Field(default=3, ge=1, description="Channels of the LR picture.")
    cond_factor: ClassVar[None] = None  # the LR picture comes at its own size
    any_scale: ClassVar[bool] = True

    @property
    def largest_scale(self) -> float:
        return self.max_scale

    model_channels: ModelChannels = Field(default=64, ge=2, multiple_of=2)
    channel_mult: ChannelMult = (1, 2, 4, 8, 8)
    num_res_blocks: ResBlocks = 2
    attention_resolutions: AttentionSizes = (16,)
    norm_groups: NormGroups = 32
    dropout: Dropout = 0.2
    encoder_blocks: int = Field(
        default=16,
        ge=1,
        le=1000,
        description="Residual blocks of the encoder of the LR picture, an EDSR.",
    )
    encoder_channels: int = Field(default=64, ge=1, description="Channels of that encoder.")
    max_scale: float = Field(
        default=8.0,
        gt=1,
        le=1000,
        description="Largest scale in training, at which the scale's position is 1; at scale 1 it "
        "is 0.",
    )

    def _check(self) -> None:
        super()._check()
        _groups_divide(self.norm_groups, self.model_channels)

    @property
    def least_parameters(self) -> float:
        return super().least_parameters + 18 * self.encoder_blocks * self.encoder_channels**2


def _groups_divide(groups: int, channels: int) -> None:
    """The first convolution has as many channels as model_channels, all others multiples of it."""
    if channels % groups:
        raise ValueError(
            f"norm_groups={groups} does not divide model_channels={channels}; use a divisor of it"
        )


def _norm_fits(norm: str, name: str, width: int) -> None:
    if norm == "group" and width % GROUPS:
        raise ValueError(
            f"{name} gives {width} channels, which norm=group cannot part into {GROUPS} groups; "
            f"use multiples of {GROUPS}, or norm: layer"
        )


NetworkConfig = Annotated[
    ResShiftNetConfig | SR3Config | IDMConfig | LDMConfig, Field(discriminator="kind")
]
KINDS_OF_ANY_SCALE = [
    kind.model_fields["kind"].default
    for kind in get_args(get_args(NetworkConfig)[0])
    if kind.any_scale
]
