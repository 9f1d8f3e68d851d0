"""What a run builds beside its network (`networks.py`): autoencoder and process; how it samples, and
what DREAM does. Imports no torch.
"""

from __future__ import annotations

from math import log, log1p
from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

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

# -------------------------------------------------------------------------------------- autoencoder

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


# ------------------------------------------------------------------------------------------ process

Timesteps = Annotated[int, Field(ge=2, le=100_000)]
Beta = Annotated[float, Field(ge=1e-9, lt=1)]
LEAST_SIGNAL = 1e-30  # of a DDPM's last step: abar, which float32 must hold


class DDPMConfig(Strict):
    """Variance-preserving process on a fixed schedule of betas (Ho et al., arXiv 2006.11239)."""

    kind: Literal["ddpm"] = "ddpm"
    predictions: ClassVar[tuple[str, ...]] = ("eps", "z0", "v")
    samplers: ClassVar[tuple[str, ...]] = ("ancestral", "ddim", "dpm-solver++")
    has_noise: ClassVar[bool] = True
    num_timesteps: Timesteps = Field(default=2000, description="Steps of the schedule (SR3: 2000).")
    beta_start: Beta = Field(default=1e-6, description="beta of the first step (SR3: 1e-6).")
    beta_end: Beta = Field(default=1e-2, description="beta of the last step (SR3: 1e-2).")
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

    @model_validator(mode="after")
    def _the_picture_is_never_all_gone(self):
        if self.respace and self.respace > self.num_timesteps:
            raise ValueError(
                f"respace={self.respace} keeps more steps than num_timesteps={self.num_timesteps} has"
            )
        # betas lie between the two ends: the mean of log(1 - beta) is at most that of the ends
        signal = self.num_timesteps / 2 * (log1p(-self.beta_start) + log1p(-self.beta_end))
        if signal < log(LEAST_SIGNAL):
            raise ValueError(
                f"num_timesteps={self.num_timesteps} with beta from {self.beta_start:g} to {self.beta_end:g} "
                "leaves nothing of the picture long before the last step; lower beta_end or num_timesteps"
            )
        return self

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
    num_timesteps: Timesteps = Field(default=15, description="Steps (ResShift: 15, v3: 4).")
    kappa: float = Field(
        default=2.0,
        ge=1e-3,
        le=1e3,
        description="Standard deviation of the noise in z_t over sqrt(eta).",
    )
    min_noise_level: float = Field(
        default=0.04,
        ge=1e-6,
        lt=1,
        description="Standard deviation of the noise at the first step, for kappa >= 1 (ResShift: 0.04, v3: 0.2).",
    )
    sqrt_eta_end: float = Field(default=0.99, gt=0, lt=1, description="sqrt(eta) of the last step.")
    power: float = Field(
        default=0.3,
        ge=0.01,
        le=100,
        description="Exponent p of the schedule (Eq. 9); a smaller one is noisier early.",
    )
    normalize_input: bool = Field(
        default=True, description="The network sees z_t / sqrt(1 + kappa^2 eta), as published."
    )

    @model_validator(mode="after")
    def _grows(self):
        if self.sqrt_eta_start >= self.sqrt_eta_end:
            raise ValueError(
                f"sqrt_eta_end={self.sqrt_eta_end:g} is not above the first step's {self.sqrt_eta_start:g}, "
                "which min_noise_level and kappa give; the noise must grow"
            )
        return self

    @property
    def sqrt_eta_start(self) -> float:
        """sqrt(eta) of the first step."""
        return min(self.min_noise_level / self.kappa, self.min_noise_level)

    @property
    def steps(self) -> int:
        return self.num_timesteps


class FlowConfig(Strict):
    """Linear interpolation z_t = (1 - sigma) z0 + sigma eps with sigma = (t + 1) / num_timesteps."""

    kind: Literal["flow"] = "flow"
    predictions: ClassVar[tuple[str, ...]] = ("z0", "v")  # its last step is pure noise
    samplers: ClassVar[tuple[str, ...]] = ("ancestral", "ddim", "dpm-solver++")
    has_noise: ClassVar[bool] = True
    num_timesteps: Timesteps = Field(default=1000, description="Steps between picture and noise.")

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


Steps = Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]


class Sampling(Strict):
    """How the reverse process is walked."""

    kind: Literal["ancestral", "ddim", "dpm-solver++", "resshift"] = Field(
        default="ancestral", description="The sampler; which of them fit is said at each process."
    )
    steps: Annotated[int, Field(ge=1)] | Steps | None = Field(
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
        le=1000,
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
