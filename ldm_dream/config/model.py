"""What a run builds beside its network (`networks.py`): autoencoder and process; how it samples, and
what DREAM does. Imports no torch.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator


class Strict(BaseModel):
    """A section: unknown keys are refused, values are finite and never change."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False
    )


# -------------------------------------------------------------------------------------- autoencoder

Pretrained = Annotated[
    str | None,
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
        gt=0,
        description="`encode` multiplies the latent by it and `decode` divides; about 1 over the "
        "standard deviation of the latents.",
    ),
]


class PixelConfig(Strict):
    """No autoencoder: the process runs on pixels in [-1, 1]."""

    kind: Literal["pixel"] = "pixel"


class VQGANConfig(Strict):
    """VQGAN in the layout of LDM's vq-f4 (published defaults: 55,322,782 parameters). The names
    down to embed_dim are those of its `ddconfig`.
    """

    kind: Literal["vqgan"] = "vqgan"
    pretrained: Pretrained = None
    sha256: Sha256 = None
    ch: int = Field(
        default=128, ge=1, description="Channels of the level with the full resolution."
    )
    ch_mult: tuple[int, ...] = Field(
        default=(1, 2, 4),
        description="Channels of each level as multiples of `ch`, highest resolution first; the "
        "latent is smaller by 2 ** (levels - 1).",
    )
    num_res_blocks: int | tuple[int, ...] = Field(
        default=2,
        description="Residual blocks a level, one number or one for each level; the decoder has "
        "one more.",
    )
    attn_resolutions: tuple[int, ...] = Field(
        default=(),
        description="Sizes of features that have attention after each block, for an input of "
        "`resolution` pixels.",
    )
    resolution: int = Field(default=256, ge=1, description="Side of that input in pixels.")
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
    pretrained: Pretrained = None
    sha256: Sha256 = None
    latent_channels: int = Field(
        default=32,
        ge=1,
        description="Channels of the latent: TAESD 4, TAEF1 and TAESD3 16, TAEF2 32.",
    )
    group_norm_branch: bool = Field(
        default=True,
        description="A branch with a group norm in the blocks of the lowest resolution, as in TAEF2.",
    )
    latent_scale: LatentScale = 1.0


AutoencoderConfig = Annotated[PixelConfig | VQGANConfig | TAESDConfig, Field(discriminator="kind")]


# ------------------------------------------------------------------------------------------ process


class DDPMConfig(Strict):
    """Variance-preserving process on a fixed schedule of betas (Ho et al., arXiv 2006.11239)."""

    kind: Literal["ddpm"] = "ddpm"
    predictions: ClassVar[tuple[str, ...]] = ("eps", "z0", "v")
    samplers: ClassVar[tuple[str, ...]] = ("ancestral", "ddim", "dpm-solver++")
    has_noise: ClassVar[bool] = True
    num_timesteps: int = Field(default=2000, ge=1, description="Steps of the schedule (SR3: 2000).")
    beta_start: float = Field(
        default=1e-6, gt=0, lt=1, description="beta of the first step (SR3: 1e-6)."
    )
    beta_end: float = Field(
        default=1e-2, gt=0, lt=1, description="beta of the last step (SR3: 1e-2)."
    )
    schedule: Literal["linear", "sqrt_linear"] = Field(
        default="linear",
        description="linear: beta is linear in t; sqrt_linear: its square root is, which LDM calls "
        '"linear".',
    )
    respace: int | None = Field(
        default=None,
        ge=1,
        description="Keep so many steps n of the schedule, int(i * num_timesteps / n); null: all. "
        "The paper's latent system keeps 50 of 2000.",
    )
    continuous: bool = Field(
        default=False,
        description="Training draws noise levels between two neighbouring steps, which one batch "
        "shares, as SR3 does.",
    )

    @property
    def steps(self) -> int:
        return self.respace or self.num_timesteps


class ResidualShiftConfig(Strict):
    """ResShift's process (arXiv 2307.12348), which shifts HR to LR. sqrt(eta) grows from
    min(min_noise_level / kappa, min_noise_level) to sqrt_eta_end.
    """

    kind: Literal["residual_shift"] = "residual_shift"
    predictions: ClassVar[tuple[str, ...]] = ("eps", "z0", "v")
    samplers: ClassVar[tuple[str, ...]] = ("ancestral", "ddim", "resshift")
    has_noise: ClassVar[bool] = True
    num_timesteps: int = Field(default=15, ge=2, description="Steps (ResShift: 15, v3: 4).")
    kappa: float = Field(
        default=2.0, gt=0, description="Standard deviation of the noise in z_t over sqrt(eta)."
    )
    min_noise_level: float = Field(
        default=0.04,
        gt=0,
        lt=1,
        description="Standard deviation of the noise at the first step, for kappa >= 1 (ResShift: 0.04, v3: 0.2).",
    )
    sqrt_eta_end: float = Field(default=0.99, gt=0, lt=1, description="sqrt(eta) of the last step.")
    power: float = Field(
        default=0.3,
        gt=0,
        description="Exponent p of the schedule (Eq. 9); a smaller one is noisier early.",
    )
    normalize_input: bool = Field(
        default=True, description="The network sees z_t / sqrt(1 + kappa^2 eta), as published."
    )

    @property
    def steps(self) -> int:
        return self.num_timesteps


class FlowConfig(Strict):
    """Linear interpolation z_t = (1 - sigma) z0 + sigma eps with sigma = (t + 1) / num_timesteps."""

    kind: Literal["flow"] = "flow"
    predictions: ClassVar[tuple[str, ...]] = ("eps", "z0", "v")
    samplers: ClassVar[tuple[str, ...]] = ("ancestral", "ddim", "dpm-solver++")
    has_noise: ClassVar[bool] = True
    num_timesteps: int = Field(default=1000, ge=2, description="Steps between picture and noise.")

    @property
    def steps(self) -> int:
        return self.num_timesteps


class RegressionConfig(Strict):
    """No diffusion: z_t is the enlarged LR picture, from which z0 is predicted in one call
    (Regression in DREAM's Table 2).
    """

    kind: Literal["regression"] = "regression"
    predictions: ClassVar[tuple[str, ...]] = ("z0",)
    samplers: ClassVar[tuple[str, ...]] = ("ancestral",)
    has_noise: ClassVar[bool] = False
    steps: ClassVar[int] = 1


ProcessConfig = Annotated[
    DDPMConfig | ResidualShiftConfig | FlowConfig | RegressionConfig, Field(discriminator="kind")
]


# ------------------------------------------------------------------------------- sampling and DREAM


class Sampling(Strict):
    """How the reverse process is walked."""

    kind: Literal["ancestral", "ddim", "dpm-solver++", "resshift"] = Field(
        default="ancestral", description="The sampler; which of them fit is said at each process."
    )
    steps: Annotated[int, Field(ge=1)] | tuple[Annotated[int, Field(ge=0)], ...] | None = Field(
        default=None,
        description="Calls of the network, evenly spaced; null: every step of the process; a list: "
        "these steps, descending, counted from 0.",
    )
    eta: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Noise of ddim: 0 is deterministic, 1 has the variance of ancestral; the "
        "other samplers do not read it.",
    )
    variance: Literal["posterior", "forward"] = Field(
        default="posterior",
        description='Of the noise that ancestral and resshift add: the posterior\'s ("fixed small") '
        'or the forward step\'s ("fixed large").',
    )

    @field_validator("steps")
    @classmethod
    def _descends(cls, steps: int | tuple[int, ...] | None):
        if isinstance(steps, tuple) and any(t <= u for t, u in zip(steps, steps[1:])):
            raise ValueError(f"{list(steps)} does not descend; give steps from noisy to clean")
        return steps

    @property
    def needs(self) -> int:
        """Steps that a process must have at least."""
        if isinstance(self.steps, tuple):
            return max(self.steps, default=0) + 1
        return self.steps or 1


class Dream(Strict):
    """The loss in the space of the prediction, and DREAM (CVPR 2024, Algorithm 3) on top of it."""

    kind: Literal["l1", "l2", "huber"] = Field(
        default="l1", description="huber: square up to an error of 1, straight beyond."
    )
    strength: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Factor on DREAM's rectification: 0 is the plain loss, 1 DREAM.",
    )
    p: float = Field(
        default=1.0,
        ge=0,
        description="Exponent of the adaptive strength: 1 is DREAM (its latent system: 3), 0 DRM.",
    )
    min_lam: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Samples whose lam = strength * weight(t) ** p is lower stay plain and "
        "skip the extra pass.",
    )
    estimate_precision: Literal["same", "bf16"] = Field(
        default="same",
        description="Precision of DREAM's extra pass; same: that of train.precision.",
    )
