"""The autoencoder between pictures and latents. Imports no torch."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from ldm_dream.config.strict import (
    GROUPS,
    Blocks,
    Levels,
    Name,
    Side,
    Strict,
    each_level,
    not_too_many,
    unet_weights,
)

Pretrained = Annotated[
    Name | None,
    Field(
        description="A bundled name, a model folder or `hf:owner/name`: its architecture replaces "
        "the knobs below; null: those count."
    ),
]
Sha256 = Annotated[
    str | None,
    Field(
        pattern="^[0-9a-f]{64}$",
        description="Digest of the pretrained weights, which a run fills in when it starts; other "
        "weights are then refused.",
    ),
]
LatentScale = Annotated[
    float,
    Field(
        ge=1e-6,
        le=1e6,
        description="`encode` multiplies the latent by it and `decode` divides; about 1 over the "
        "standard deviation of the latents.",
    ),
]


class PixelConfig(Strict):
    """No autoencoder: the process runs on pixels in [-1, 1]."""

    kind: Literal["pixel"] = "pixel"
    pretrained: ClassVar[None] = None
    channels: ClassVar[int] = 3
    factor: ClassVar[int] = 1


class VQGANConfig(Strict):
    """VQGAN in the layout of LDM's vq-f4 (published defaults: 55,322,782 parameters). The names
    down to embed_dim are those of its `ddconfig`.
    """

    kind: Literal["vqgan"] = "vqgan"
    pretrained: Pretrained = None
    sha256: Sha256 = None
    ch: int = Field(
        default=128, ge=1, description="Channels of the level with the highest resolution."
    )
    ch_mult: Levels = Field(
        default=(1, 2, 4),
        description="Channels of each level as multiples of `ch`, highest resolution first; the "
        "latent is smaller by patch * 2 ** (levels - 1).",
    )
    patch: Literal[1, 2, 4, 8] = Field(
        default=1,
        description="Squares of so many pixels a side become channels before the first convolution, "
        "and pixels again behind the last: all work is done at a size smaller by this.",
    )
    num_res_blocks: Blocks | tuple[Blocks, ...] = Field(
        default=2,
        description="Residual blocks a level, one number or one for each level; the decoder has "
        "one more.",
    )
    attn_resolutions: tuple[Side, ...] = Field(
        default=(),
        description="Sizes of features that have attention after each block, for an input of "
        "`resolution` pixels.",
    )
    resolution: Side = Field(default=256, description="Side of that input in pixels.")
    mid_attention: bool = Field(
        default=True,
        description="Global attention at the lowest resolution; false: only convolutions, which "
        "see a bounded neighbourhood.",
    )
    norm: Literal["group", "none"] = Field(
        default="group",
        description="group: 32 groups over the whole picture, as published; none: no norm, so that "
        "tiles agree with the whole picture.",
    )
    z_channels: int = Field(
        default=3,
        ge=1,
        description="Channels of the encoder's output, which a 1x1 convolution brings to embed_dim.",
    )
    embed_dim: int = Field(default=3, ge=1, description="Channels of the latent.")
    n_embed: int = Field(default=8192, ge=2, description="Codes in the codebook.")
    codebook_groups: int = Field(
        default=1,
        ge=1,
        description="Groups of channels that are looked up separately in the one codebook (product "
        "quantisation); divides embed_dim.",
    )
    quantize: bool = Field(
        default=True, description="`decode` looks the latent up in the codebook first."
    )
    latent_scale: LatentScale = 1.0

    @model_validator(mode="after")
    def _can_be_built(self):
        if self.embed_dim % self.codebook_groups:
            raise ValueError(
                f"codebook_groups={self.codebook_groups} does not divide embed_dim={self.embed_dim}"
            )
        if self.norm == "group" and self.ch % GROUPS:
            raise ValueError(
                f"norm=group has {GROUPS} groups, which do not divide ch={self.ch}; "
                f"use ch = {GROUPS}, {2 * GROUPS}, ... or norm: none"
            )
        codes = self.n_embed * self.embed_dim + 2 * self.z_channels * self.embed_dim
        ends = 9 * self.ch * (6 * self.patch**2 + 2 * self.z_channels)
        not_too_many(codes + ends + unet_weights(self.ch, self.ch_mult, self.blocks), "one")
        return self

    @property
    def blocks(self) -> list[int]:
        """Residual blocks of each level on the way down."""
        return each_level(self.num_res_blocks, len(self.ch_mult))

    @property
    def channels(self) -> int:
        """Of the latent."""
        return self.embed_dim

    def size(self, level: int) -> int:
        """Of the features of a level, for an input of `resolution` pixels."""
        return self.resolution // self.patch // 2**level

    @property
    def factor(self) -> int:
        return self.patch * 2 ** (len(self.ch_mult) - 1)


class TAESDConfig(Strict):
    """Tiny autoencoder of the TAESD family, 8x down, without a codebook (defaults: TAEF2). Not
    trained here, only imported.
    """

    kind: Literal["taesd"] = "taesd"
    pretrained: Pretrained = None
    sha256: Sha256 = None
    factor: ClassVar[int] = 8
    latent_channels: int = Field(
        default=32,
        ge=1,
        le=65_536,
        description="Channels of the latent: TAESD 4, TAEF1 and TAESD3 16, TAEF2 32.",
    )
    group_norm_branch: bool = Field(
        default=True,
        description="A branch with a group norm in the blocks of the lowest resolution, as in TAEF2.",
    )
    latent_scale: LatentScale = 1.0

    @property
    def channels(self) -> int:
        """Of the latent."""
        return self.latent_channels


AutoencoderConfig = Annotated[PixelConfig | VQGANConfig | TAESDConfig, Field(discriminator="kind")]
