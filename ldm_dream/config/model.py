"""What a run builds: autoencoder, network, process, sampler. The knobs of `config.py` that a model
folder needs to be loaded.

Adding a network = its class here, with the paper's values as defaults, and its row in
NetworkConfig. Imports no torch.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Strict(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False
    )


# ------------------------------------------------------------------------------------ what is built


class PixelConfig(Strict):
    """No autoencoder: the process runs on pixels in [-1, 1]."""

    kind: Literal["pixel"] = "pixel"


class VQGANConfig(Strict):
    """VQGAN in the layout of LDM's vq-f4 (published defaults: 55,322,782 parameters). Field names
    are those of its `ddconfig`.
    """

    kind: Literal["vqgan"] = "vqgan"
    pretrained: str | None = (
        None  # bundled name or model folder: its architecture replaces the fields below
    )
    ch: int = Field(128, ge=1)  # width of the full-resolution level
    ch_mult: tuple[int, ...] = (
        1,
        2,
        4,
    )  # one entry a level, highest resolution first; factor = 2 ** (levels - 1)
    num_res_blocks: int | tuple[int, ...] = (
        2  # residual blocks a level in the encoder; the decoder has one more
    )
    attn_resolutions: tuple[
        int, ...
    ] = ()  # attention after each block where the feature size is one of these ...
    resolution: int = Field(256, ge=1)  # ... when the input has this size
    mid_attention: bool = (
        True  # global attention at the lowest resolution; off = purely convolutional (local)
    )
    norm: Literal["group", "none"] = (
        "group"  # group = 32 groups as published; none = local, tiled equals untiled
    )
    z_channels: int = Field(3, ge=1)
    embed_dim: int = Field(3, ge=1)  # latent channels
    n_embed: int = Field(8192, ge=2)  # codes in the codebook
    codebook_groups: int = Field(
        1, ge=1
    )  # channels are looked up in this many groups in one shared codebook (product quantisation)
    quantize: bool = True  # decode() looks the latent up in the codebook first
    latent_scale: float = Field(
        1.0, gt=0
    )  # encode() multiplies by it, decode() divides: about 1 / std of the latents

    @model_validator(mode="after")
    def _groups_divide(self):
        if self.embed_dim % self.codebook_groups:
            raise ValueError(
                f"codebook_groups={self.codebook_groups} does not divide embed_dim={self.embed_dim}"
            )
        return self

    @property
    def factor(self) -> int:
        return 2 ** (len(self.ch_mult) - 1)


class TAESDConfig(Strict):
    """Tiny autoencoder of the TAESD family, 8x down, without a codebook (defaults: TAEF2). Not
    trained here, only imported.
    """

    kind: Literal["taesd"] = "taesd"
    pretrained: str | None = None  # model folder: its architecture replaces the fields below
    latent_channels: int = Field(32, ge=1)  # TAESD 4, TAEF1 and TAESD3 16, TAEF2 32
    group_norm_branch: bool = (
        True  # TAEF2: a branch with a group norm in the blocks of the lowest resolution
    )
    latent_scale: float = Field(1.0, gt=0)  # as VQGANConfig.latent_scale


AutoencoderConfig = Annotated[PixelConfig | VQGANConfig | TAESDConfig, Field(discriminator="kind")]


class ResShiftNetConfig(Strict):
    """Swin U-Net of ResShift (published x4 defaults: 118,593,583 parameters)."""

    kind: Literal["resshift"] = "resshift"
    image_size: int = Field(
        64, ge=1
    )  # training size of z_t: decides which levels have attention and which windows shift
    in_channels: int = Field(3, ge=1)  # channels of z_t
    out_channels: int = Field(3, ge=1)
    cond_channels: int = Field(3, ge=0)  # channels of the condition, concatenated after z_t
    cond_factor: Literal[1, 2, 4, 8] = 1  # size of the condition over size of z_t (published x2: 2)
    patch_size: int = Field(
        1, ge=1
    )  # latents are folded by this much into channels before the first convolution (published: 1)
    model_channels: int = Field(160, ge=1)
    channel_mult: tuple[int, ...] = (1, 2, 2, 4)
    num_res_blocks: int | tuple[int, ...] = 2
    attention_resolutions: tuple[int, ...] = (
        64,
        32,
        16,
        8,
    )  # feature sizes (at image_size) with a Swin layer
    swin_depth: int = Field(2, ge=1)
    swin_embed_dim: int = Field(192, ge=1)
    num_head_channels: int = Field(32, ge=1)
    window_size: int = Field(8, ge=1)
    mlp_ratio: float = Field(4, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    norm: Literal["group", "layer"] = (
        "group"  # group = 32 groups over space; layer = over channels at each position (local)
    )
    legacy_mask: bool = (
        False  # the published weights were trained with a wrong shift mask: they need True
    )


class SR3Config(Strict):
    """U-Net of SR3 (published 16 -> 128 face defaults: 97,807,491 parameters)."""

    kind: Literal["sr3"] = "sr3"
    image_size: int = Field(128, ge=1)  # training size of z_t: decides which levels have attention
    in_channels: int = Field(3, ge=1)  # channels of z_t
    out_channels: int = Field(3, ge=1)
    cond_channels: int = Field(3, ge=0)  # channels of the condition, concatenated before z_t
    model_channels: int = Field(64, ge=2, multiple_of=2)
    channel_mult: tuple[int, ...] = (1, 2, 4, 8, 8)
    num_res_blocks: int = Field(2, ge=1)
    attention_resolutions: tuple[int, ...] = (
        16,
    )  # feature sizes (at image_size) with attention after each block; the middle always has it
    norm_groups: int = Field(32, ge=1)
    dropout: float = Field(0.2, ge=0, lt=1)

    cond_factor: ClassVar[int] = 1  # size of the condition over size of z_t


class LDMConfig(Strict):
    """U-Net of LDM-SR, latent-diffusion's bsr_sr (published defaults: 113,622,563 parameters)."""

    kind: Literal["ldm"] = "ldm"
    cond_factor: ClassVar[int] = 1  # the condition is as large as z_t
    image_size: int = Field(64, ge=1)  # training size of z_t: decides which levels have attention
    in_channels: int = Field(3, ge=1)  # channels of z_t
    out_channels: int = Field(3, ge=1)
    cond_channels: int = Field(3, ge=0)  # channels of the condition, concatenated after z_t
    model_channels: int = Field(160, ge=1)
    channel_mult: tuple[int, ...] = (1, 2, 2, 4)
    num_res_blocks: int = Field(2, ge=1)
    attention_resolutions: tuple[int, ...] = (
        8,
    )  # feature sizes (at image_size) with attention; LDM lists image_size / size
    num_head_channels: int = Field(32, ge=1)
    dropout: float = Field(0.0, ge=0, lt=1)
    norm: Literal["group", "layer"] = (
        "group"  # group = 32 groups over space; layer = over channels at each position
    )


class IDMConfig(Strict):
    """IDM: SR3's U-Net with implicit decoders, for any scale (published 16 -> 128 defaults:
    99,801,670 parameters).
    """

    kind: Literal["idm"] = "idm"
    image_size: int = Field(128, ge=1)  # training size of z_t: decides which levels have attention
    in_channels: int = Field(3, ge=1)  # channels of z_t
    out_channels: int = Field(3, ge=1)
    cond_channels: int = Field(3, ge=1)  # channels of the LR picture
    cond_factor: ClassVar[None] = None  # the LR picture comes at its own size
    model_channels: int = Field(64, ge=2)
    channel_mult: tuple[int, ...] = Field(
        (1, 2, 4, 8, 8), min_length=1
    )  # one entry a level, highest resolution first
    num_res_blocks: int = Field(
        2, ge=1
    )  # residual blocks a level on the way down; one more on the way up
    attention_resolutions: tuple[int, ...] = (
        16,
    )  # feature sizes (at image_size) with attention after each block
    norm_groups: int = Field(32, ge=1)
    dropout: float = Field(0.2, ge=0, lt=1)
    encoder_blocks: int = Field(16, ge=1)  # residual blocks of the LR encoder, an EDSR
    encoder_channels: int = Field(64, ge=1)
    max_scale: float = Field(
        8.0, gt=1
    )  # scale at position 1; scale 1 is position 0. Training draws scales between them


NetworkConfig = Annotated[
    ResShiftNetConfig | SR3Config | IDMConfig | LDMConfig, Field(discriminator="kind")
]


class DDPMConfig(Strict):
    """Variance-preserving process; betas linear in t. `respace: n` keeps steps int(i *
    num_timesteps / n) of the schedule.
    """

    kind: Literal["ddpm"] = "ddpm"
    predictions: ClassVar[tuple[str, ...]] = ("eps", "z0", "v")
    samplers: ClassVar[tuple[str, ...]] = ("ancestral", "ddim", "dpm-solver++")
    has_noise: ClassVar[bool] = True
    num_timesteps: int = Field(2000, ge=1)
    beta_start: float = Field(1e-6, gt=0, lt=1)
    beta_end: float = Field(1e-2, gt=0, lt=1)
    schedule: Literal["linear", "sqrt_linear"] = (
        "linear"  # sqrt_linear: linear in sqrt(beta), what LDM calls "linear"
    )
    respace: int | None = Field(None, ge=1)  # paper's latent SR: 50 of 2000
    # training draws sqrt(abar) between two neighbouring steps, which one batch shares, as SR3 does
    continuous: bool = False

    @property
    def steps(self) -> int:
        return self.respace or self.num_timesteps


class ResidualShiftConfig(Strict):
    """ResShift's process. sqrt_eta runs from min(min_noise_level / kappa, min_noise_level) to
    sqrt_eta_end.
    """

    kind: Literal["residual_shift"] = "residual_shift"
    predictions: ClassVar[tuple[str, ...]] = ("eps", "z0", "v")
    samplers: ClassVar[tuple[str, ...]] = ("ancestral", "ddim", "resshift")
    has_noise: ClassVar[bool] = True
    num_timesteps: int = Field(15, ge=2)
    kappa: float = Field(2.0, gt=0)
    min_noise_level: float = Field(0.04, gt=0, lt=1)
    sqrt_eta_end: float = Field(0.99, gt=0, lt=1)
    power: float = Field(0.3, gt=0)
    normalize_input: bool = True  # the network sees z_t / sqrt(1 + kappa^2 eta_t)

    @property
    def steps(self) -> int:
        return self.num_timesteps


class FlowConfig(Strict):
    """Linear interpolation z_t = (1 - sigma) z0 + sigma eps with sigma = (t + 1) / num_timesteps."""

    kind: Literal["flow"] = "flow"
    predictions: ClassVar[tuple[str, ...]] = ("eps", "z0", "v")
    samplers: ClassVar[tuple[str, ...]] = ("ancestral", "ddim", "dpm-solver++")
    has_noise: ClassVar[bool] = True
    num_timesteps: int = Field(1000, ge=2)

    @property
    def steps(self) -> int:
        return self.num_timesteps


class RegressionConfig(Strict):
    """No diffusion: z_t is the enlarged LR picture, from which z0 is predicted in one call
    (Regression in DREAM's Table 2).
    """

    kind: Literal["regression"] = "regression"
    predictions: ClassVar[tuple[str, ...]] = ("z0",)
    samplers: ClassVar[tuple[str, ...]] = ("ancestral", "ddim")
    has_noise: ClassVar[bool] = False
    steps: ClassVar[int] = 1


ProcessConfig = Annotated[
    DDPMConfig | ResidualShiftConfig | FlowConfig | RegressionConfig, Field(discriminator="kind")
]


class Sampling(Strict):
    """How the reverse process is walked."""

    kind: Literal["ancestral", "ddim", "dpm-solver++", "resshift"] = "ancestral"
    steps: int | None = Field(None, ge=1)  # None = every step of the process
    eta: float = Field(0.0, ge=0, le=1)  # ddim only: 0 deterministic, 1 ancestral variance


class Dream(Strict):
    """The loss in the space of the prediction, and DREAM (CVPR 2024, Algorithm 3) on top of it."""

    kind: Literal["l1", "l2", "huber"] = "l1"  # huber: square up to an error of 1, straight beyond
    strength: float = Field(0.0, ge=0, le=1)  # 0 = plain diffusion loss, 1 = DREAM
    p: float = Field(1.0, ge=0)  # exponent of the adaptive strength; 1 DREAM, 0 DRM
    min_lam: float = Field(
        0.0, ge=0, le=1
    )  # samples whose lam is below are left as they are; the extra pass is spared for them
    fraction: float = Field(
        1.0, gt=0, le=1
    )  # share of each batch that DREAM rectifies, largest lam first; less costs less time
    estimate_precision: Literal["same", "bf16"] = (
        "same"  # of DREAM's extra pass; same = train.precision
    )
