"""Knobs of the networks. A model folder needs them, and those of `model.py`, to be loaded.

Adding a network = its class here, with the paper's values as defaults, and its row in
NetworkConfig. Imports no torch.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from ldm_dream.config.model import Strict

# ------------------------------------------------------------------------ knobs that networks share

ImageSize = Annotated[
    int,
    Field(
        ge=1,
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
    tuple[int, ...],
    Field(
        description="Channels of each level as multiples of model_channels, highest resolution first."
    ),
]
ResBlocks = Annotated[
    int,
    Field(ge=1, description="Residual blocks a level on the way down; one more on the way up."),
]
AttentionSizes = Annotated[
    tuple[int, ...],
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

    any_scale: ClassVar[bool] = False  # trained at random scales, too

    @property
    def largest_scale(self) -> float:
        """The end of those scales."""
        return 1.0


class ResShiftNetConfig(NetworkKnobs):
    """Swin U-Net of ResShift (published x4 defaults: 118,593,583 parameters)."""

    kind: Literal["resshift"] = "resshift"
    image_size: int = Field(
        default=64,
        ge=1,
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
        description="Side of the squares of z_t that are folded into channels before the first "
        "convolution (published: 1).",
    )
    model_channels: ModelChannels = Field(default=160, ge=1)
    channel_mult: ChannelMult = (1, 2, 2, 4)
    num_res_blocks: int | tuple[int, ...] = Field(
        default=2,
        description="Residual blocks a level on the way down, one number or one for each level; "
        "one more on the way up.",
    )
    attention_resolutions: tuple[int, ...] = Field(
        default=(64, 32, 16, 8),
        description="Sizes of features, for a z_t of image_size, that have a Swin layer after the "
        "first block; the middle always has one.",
    )
    swin_depth: int = Field(
        default=2, ge=1, description="Blocks of a Swin layer; every second one has shifted windows."
    )
    swin_embed_dim: int = Field(default=192, ge=1, description="Channels inside a Swin layer.")
    num_head_channels: HeadChannels = 32
    window_size: int = Field(
        default=8, ge=1, description="Side of an attention window in features."
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


class SR3Config(NetworkKnobs):
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


class LDMConfig(NetworkKnobs):
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
    attention_resolutions: tuple[int, ...] = Field(
        default=(8,),
        description="Sizes of features, for a z_t of image_size, that have attention after each "
        "block; the middle always has it. LDM's own configs list image_size / size.",
    )
    num_head_channels: HeadChannels = 32
    dropout: Dropout = 0.0
    norm: Norm = "group"


class IDMConfig(NetworkKnobs):
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

    model_channels: ModelChannels = Field(default=64, ge=2)
    channel_mult: ChannelMult = Field(default=(1, 2, 4, 8, 8), min_length=1)
    num_res_blocks: ResBlocks = 2
    attention_resolutions: AttentionSizes = (16,)
    norm_groups: NormGroups = 32
    dropout: Dropout = 0.2
    encoder_blocks: int = Field(
        default=16, ge=1, description="Residual blocks of the encoder of the LR picture, an EDSR."
    )
    encoder_channels: int = Field(default=64, ge=1, description="Channels of that encoder.")
    max_scale: float = Field(
        default=8.0,
        gt=1,
        description="Largest scale in training, at which the scale's position is 1; at scale 1 it "
        "is 0.",
    )


NetworkConfig = Annotated[
    ResShiftNetConfig | SR3Config | IDMConfig | LDMConfig, Field(discriminator="kind")
]
KINDS_OF_ANY_SCALE = [
    kind.model_fields["kind"].default for kind in NetworkKnobs.__subclasses__() if kind.any_scale
]
