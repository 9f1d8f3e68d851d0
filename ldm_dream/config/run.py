"""Every knob of a run: what it builds (`autoencoder.py`, `networks.py`, `process.py`), what it
sees (`data.py`), and here its loss, its training and itself.

Imports no torch, so `--help` and `--dry-run` answer at once.
"""

from __future__ import annotations

import os
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from ldm_dream.config import fits
from ldm_dream.config.autoencoder import AutoencoderConfig, PixelConfig, TAESDConfig, VQGANConfig
from ldm_dream.config.data import DataConfig
from ldm_dream.config.networks import KINDS_OF_ANY_SCALE, NetworkConfig, ResShiftNetConfig
from ldm_dream.config.process import Dream, ProcessConfig, ResidualShiftConfig, Sampling
from ldm_dream.config.strict import Name, Strict
from ldm_dream.config.train import TrainConfig

# -------------------------------------------------------------------------------- how it is trained


class AdversarialConfig(Strict):
    """A hinge PatchGAN that judges the pictures (VQGAN, arXiv 2012.09841, Sec. 3.1)."""

    adversarial: float = Field(
        default=0.0,
        ge=0,
        description="Factor on the adaptive weight of the hinge PatchGAN; 0: no discriminator.",
    )
    adversarial_start: int = Field(
        default=0, ge=0, description="Step from which the discriminator is trained and counts."
    )
    discriminator_channels: int = Field(
        default=64, ge=1, le=1024, description="Channels of the PatchGAN's first layer."
    )
    discriminator_layers: int = Field(
        default=3,
        ge=1,
        le=5,
        description="Layers of the PatchGAN that halve the picture; with 3 it sees 70 x 70 pixels.",
    )


# knob of the loss -> network of LPIPS, knob of the run that names its file
WEIGHTS: dict[str, tuple[Literal["alex", "vgg"], str]] = {
    "lpips": ("alex", "lpips_weights"),
    "lpips_vgg": ("vgg", "vgg_weights"),
}


class PerceptualConfig(Strict):
    """LPIPS (arXiv 1801.03924) in training."""

    lpips: float = Field(
        default=0.0,
        ge=0,
        description="Weight of LPIPS between the decoded estimate of z0 and HR; needs "
        "lpips_weights.",
    )
    lpips_vgg: float = Field(
        default=0.0,
        ge=0,
        description="Weight of LPIPS with VGG16 in place of AlexNet; needs vgg_weights.",
    )
    lpips_shift: int = Field(
        default=0,
        ge=0,
        le=16,
        description="LPIPS leaves out so many rows and columns, drawn at random on which sides; 3 "
        "shows AlexNet, which looks at every fourth pixel, all places.",
    )

    @property
    def perceptual(self) -> dict[str, float]:
        """Knob -> weight, of the terms that count."""
        return {name: weight for name in WEIGHTS if (weight := getattr(self, name))}


class DiffusionLossConfig(PerceptualConfig, AdversarialConfig, Dream):
    """DREAM's loss (arXiv 2312.00210), and terms on the decoded picture."""

    sampler_share: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Share of a batch, its first samples, whose step is one that `sampler` visits; "
        "those of the others are drawn from all.",
    )
    pixel: float = Field(
        default=0.0, ge=0, description="Weight of L1 between the decoded estimate of z0 and HR."
    )
    decode_samples: int = Field(
        default=4,
        ge=1,
        description="Samples of a batch, its first ones, that are decoded for `pixel`, `lpips`, "
        "`lpips_vgg` and `adversarial`.",
    )


class AutoencoderLossConfig(PerceptualConfig, AdversarialConfig):
    """Loss of a VQGAN (arXiv 2012.09841, Sec. 3.1): L1, LPIPS, codebook, and a hinge PatchGAN."""

    l1: float = Field(
        default=1.0, ge=0, description="Weight of L1 between the reconstruction and HR."
    )
    lpips: float = Field(
        default=1.0, ge=0, description="Weight of LPIPS likewise; above 0 it needs lpips_weights."
    )
    codebook: float = Field(
        default=1.0, ge=0, description="Weight of the term that moves codes towards latents."
    )
    codebook_start: int = Field(
        default=0,
        ge=0,
        description="Step until which latents go unquantised; then the codebook begins as random "
        "latents.",
    )
    commitment: float = Field(
        default=0.25,
        ge=0,
        description="Weight of the term that moves latents towards codes, beta in the paper "
        "(taming's legacy puts it on the other term).",
    )
    teacher: VQGANConfig | None = Field(
        default=None,
        description="An autoencoder, by its `pretrained`, whose latents this one learns, on its "
        "codebook: models that were trained on those latents fit this one too.",
    )
    latent: float = Field(
        default=0.0,
        ge=0,
        description="Weight of the mean square between the latents of both; above 0 with a teacher "
        "only.",
    )
    revive_after: int = Field(
        default=200,
        ge=1,
        description="Steps without use after which a code is moved onto a random latent of the "
        "batch.",
    )


# what a run that is resumed may change; any other knob would make it another run
MAY_CHANGE = (
    "description",
    "expected",
    "lpips_weights",  # a place on this disk, as these are:
    "vgg_weights",
    "inception_weights",
    "data.train",  # its pictures may not change
    "data.lr",  # likewise
    "data.val",
    "data.val_lr",
    "data.license",
    "data.keep_gib",
    "train.init_from",  # it was read at the first start
    "autoencoder.pretrained",  # its weights may not change (autoencoder.sha256)
    "train.steps",
    "train.learning_rate",
    "train.learning_rate_end",
    "train.warmup_steps",
    "train.decay",
    "train.compile",
    "train.gradient_checkpointing",
    "train.workers",
    "train.prefetch",
    "train.log_every",
    "train.val_every",
    "train.val_images",
    "train.val_crop",
    "train.val_distance",
    "train.best",
    "train.patience",
    "train.tracker",
    "train.save_every",
    "train.keep_checkpoints",
    "train.keep_every",
)

Description = Annotated[str, Field(description="What the run is, for its model card.")]
Expected = Annotated[
    str, Field(description="Figures of the finished run and the command that prints them.")
]
Seed = Annotated[int, Field(ge=0, lt=2**63, description="Seed of all random numbers of the run.")]
LpipsWeights = Annotated[
    Annotated[Name, AfterValidator(os.path.expanduser)] | None,
    Field(
        description="File with AlexNet's weights, torchvision's own or those with the heads of LPIPS "
        "beside them, for losses and validation; null: no LPIPS."
    ),
]
VggWeights = Annotated[
    Annotated[Name, AfterValidator(os.path.expanduser)] | None,
    Field(description="File with torchvision's VGG16, for loss.lpips_vgg; null: none."),
]


InceptionWeights = Annotated[
    Annotated[Name, AfterValidator(os.path.expanduser)] | None,
    Field(
        description="File with torch-fidelity's Inception, for train.val_distance: fid; null: the one "
        "in torch's cache."
    ),
]


def _best_is_measured(run):
    if run.train.best == "distance" and run.train.val_distance is None:
        raise ValueError("train.best=distance needs train.val_distance; name one, or choose psnr_y")
    if run.train.val_distance and run.train.val_images < 2:
        raise ValueError("train.val_distance compares sets; set train.val_images to 2 or more")
    if run.inception_weights is not None and run.train.val_distance != "fid":
        raise ValueError("inception_weights has no effect without train.val_distance: fid")
    if run.train.best == "lpips" and run.lpips_weights is None:
        raise ValueError("train.best=lpips needs lpips_weights; name them, or choose psnr_y")
    return run


Data = Annotated[DataConfig, Field(description="Pictures and how pairs are made of them.")]
Train = Annotated[TrainConfig, Field(description="How it is trained.")]


class DiffusionRun(Strict):
    """Super-resolution by a conditional diffusion model in the autoencoder's latent space."""

    task: Literal["diffusion"] = "diffusion"
    description: Description = ""
    expected: Expected = "not run"
    seed: Seed = 0
    scale: int = Field(default=4, ge=1, le=1000, description="Side of HR over side of LR.")
    autoencoder: AutoencoderConfig = Field(
        default=PixelConfig(), description="Between pictures and latents."
    )
    network: NetworkConfig = Field(default=ResShiftNetConfig(), description="The denoiser.")
    process: ProcessConfig = Field(
        default=ResidualShiftConfig(), description="The way between picture and noise."
    )
    prediction: Literal["eps", "z0", "v", "residual", "eps_scale", "flow"] = Field(
        default="z0",
        description="What the network predicts: noise, z0, v = a eps - s z0, residual = z_lr - z0, "
        "eps_scale = s eps or flow = eps - z0; which of them fit is said at each process.",
    )
    condition: tuple[Literal["lr", "z_lr"], ...] = Field(
        default=("lr",),
        description="What the network sees beside z_t, in this order: lr, the LR pixels; z_lr, the "
        "latent of the enlarged LR picture.",
    )
    sampler: Sampling = Field(default=Sampling(), description="How results are sampled.")
    loss: DiffusionLossConfig = Field(
        default=DiffusionLossConfig(), description="What is minimised."
    )
    data: Data = DataConfig()
    train: Train = TrainConfig()
    lpips_weights: LpipsWeights = None
    vgg_weights: VggWeights = None
    inception_weights: InceptionWeights = None

    @model_validator(mode="after")
    def _best_is_measured(self):
        return _best_is_measured(self)

    @model_validator(mode="after")
    def _process_allows_prediction_and_dream(self):
        fits.prediction(self)
        return self

    @model_validator(mode="after")
    def _process_allows_sampler_and_steps(self):
        fits.sampler(self)
        return self

    @model_validator(mode="after")
    def _a_network_of_the_lr_picture_works_on_pixels(self):
        takes_lr = self.network.cond_factor is None
        if takes_lr and (self.condition != ("lr",) or self.autoencoder.kind != "pixel"):
            raise ValueError(
                f"network.kind={self.network.kind} works on pixels and takes the LR picture; "
                "set condition: [lr], no autoencoder"
            )
        return self

    @model_validator(mode="after")
    def _parts_fit(self):
        fits.patches(self)
        fits.condition(self)
        fits.critic(self)
        fits.perceptual(self)
        fits.cache(self)
        if not self.autoencoder.pretrained:
            fits.latent(self, self.autoencoder)
        return self

    @model_validator(mode="after")
    def _scales_are_those_that_the_network_knows(self):
        if self.data.scales is None:
            return self
        if not self.network.any_scale:
            raise ValueError(
                f"data.scales is for network.kind={' or '.join(KINDS_OF_ANY_SCALE)}; "
                f"leave it out, {self.network.kind} knows one scale"
            )
        most = min(self.scale, self.network.largest_scale)
        if self.data.scales[1] > most:
            raise ValueError(
                f"data.scales={list(self.data.scales)} ends above scale or network.max_scale; {most:g} is the most"
            )
        if self.train.compile:
            raise ValueError(
                "train.compile is for one size and data.scales brings another at each step; leave out one of them"
            )
        return self


class AutoencoderRun(Strict):
    """A VQGAN trained with L1, LPIPS and a hinge PatchGAN; a `taesd` is imported, never trained. It
    sees only HR, so data.lr, data.val_lr, data.degradation, data.scales and data.cache_latents stay at
    their defaults.
    """

    scale: ClassVar[int] = 1  # of HR over the LR it sees, which is HR itself
    task: Literal["autoencoder"] = "autoencoder"
    description: Description = ""
    expected: Expected = "not run"
    seed: Seed = 0
    autoencoder: Annotated[VQGANConfig | TAESDConfig, Field(discriminator="kind")] = Field(
        default=VQGANConfig(),
        description="The autoencoder that is trained; its kind is vqgan unless given.",
    )
    loss: AutoencoderLossConfig = Field(
        default=AutoencoderLossConfig(), description="What is minimised."
    )
    data: Data = DataConfig()
    train: Train = TrainConfig()
    lpips_weights: LpipsWeights = None
    vgg_weights: VggWeights = None
    inception_weights: InceptionWeights = None

    @model_validator(mode="after")
    def _parts_fit(self):
        fits.patches(self)
        fits.autoencoder(self)
        fits.critic(self)
        fits.perceptual(self)
        fits.latent(self, self.autoencoder)
        return self

    @model_validator(mode="after")
    def _best_is_measured(self):
        return _best_is_measured(self)

    @model_validator(mode="after")
    def _a_teacher_teaches(self):
        teacher = self.loss.teacher
        if bool(teacher) != bool(self.loss.latent):
            raise ValueError(
                "loss.latent has no effect without loss.teacher, nor loss.teacher without loss.latent"
            )
        if teacher and not teacher.pretrained:
            raise ValueError("loss.teacher has no pretrained; name an autoencoder there")
        if teacher and "quantize" not in self.train.freeze:
            raise ValueError("the codebook of loss.teacher stays; set train.freeze: [quantize]")
        return self

    @property
    def keeps_latents(self) -> bool:
        """Whether its latents are older than the run: a teacher's, or those of a frozen encoder."""
        frozen = {"encoder", "quant_conv"} <= set(self.train.freeze)
        return self.loss.teacher is not None or frozen

    @field_validator("data")
    @classmethod
    def _only_hr(cls, data: DataConfig) -> DataConfig:
        for knob in ("lr", "val_lr", "degradation", "scales", "cache_latents"):
            if getattr(data, knob) != DataConfig.model_fields[knob].default:
                raise ValueError(f"{knob} has no effect: an autoencoder sees only HR; leave it out")
        return data

    @field_validator("train")
    @classmethod
    def _not_compiled(cls, train: TrainConfig) -> TrainConfig:
        if train.compile:
            raise ValueError("compile has no effect: an autoencoder is not compiled; leave it out")
        if train.gradient_checkpointing:
            raise ValueError("gradient_checkpointing has no effect on an autoencoder; leave it out")
        return train


Run = DiffusionRun | AutoencoderRun
TASKS: dict[str, type[Strict]] = {"diffusion": DiffusionRun, "autoencoder": AutoencoderRun}
