"""Every knob of a run: what it builds (`model.py`), what it sees (`data.py`), and here its loss,
its training and itself.

Imports no torch, so `--help` and `--dry-run` answer at once.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from ldm_dream.config.data import DataConfig
from ldm_dream.config.model import (
    AutoencoderConfig,
    Dream,
    NetworkConfig,
    PixelConfig,
    ProcessConfig,
    ResidualShiftConfig,
    ResShiftNetConfig,
    Sampling,
    Strict,
    TAESDConfig,
    VQGANConfig,
)

# -------------------------------------------------------------------------------- how it is trained


class DiffusionLossConfig(Dream):
    """DREAM's loss, and two terms on the decoded picture."""

    pixel: float = Field(0.0, ge=0)  # weight of L1 between decoded z0 estimate and hr
    lpips: float = Field(
        0.0, ge=0
    )  # weight of LPIPS between decoded z0 estimate and hr (needs lpips_weights)
    decode_samples: int = Field(
        4, ge=1
    )  # samples of the batch that are decoded for the two terms above


class AutoencoderLossConfig(Strict):
    l1: float = Field(1.0, ge=0)
    lpips: float = Field(1.0, ge=0)
    codebook: float = Field(1.0, ge=0)
    codebook_start: int = Field(
        0, ge=0
    )  # until this step latents go unquantised; then the codebook begins as random latents
    commitment: float = Field(
        0.25, ge=0
    )  # beta, on the commitment term as in the paper (taming's legacy puts it on the other)
    adversarial: float = Field(
        0.0, ge=0
    )  # factor on the adaptive weight of the hinge PatchGAN; 0 = no discriminator
    adversarial_start: int = Field(0, ge=0)  # step from which the discriminator counts
    revive_after: int = Field(
        200, ge=1
    )  # a code unused for so many steps is moved onto a random latent of the batch


class TrainConfig(Strict):
    steps: int = Field(10_000, ge=1)
    batch_size: int = Field(16, ge=1)  # samples a device and step, before accumulation
    accumulate: int = Field(1, ge=1)
    optimizer: Literal["adamw", "adam"] = "adamw"
    learning_rate: float = Field(5e-5, gt=0)
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = Field(0.0, ge=0)
    warmup_steps: int = Field(0, ge=0)
    decay: Literal["none", "cosine"] = "cosine"
    learning_rate_end: float = Field(0.0, ge=0)
    clip_grad: float | None = Field(1.0, gt=0)
    ema: float = Field(0.999, ge=0, lt=1)
    precision: Literal["fp32", "bf16"] = "bf16"  # bf16 = autocast; weights stay fp32
    channels_last: bool = True
    compile: bool | None = (
        None  # torch.compile of the repeated blocks; None = on CUDA, where sizes are fixed
    )
    log_every: int = Field(50, ge=1)
    val_every: int = Field(1000, ge=1)
    val_images: int = Field(8, ge=0)
    val_crop: int | None = Field(
        256, ge=16
    )  # centre crop of validation pictures, HR pixels; None = whole
    save_every: int = Field(500, ge=1)
    keep_checkpoints: int = Field(2, ge=1)
    init_from: str | None = None  # model folder whose weights start the run (fine-tuning)
    freeze: tuple[str, ...] = ()  # parameters whose names begin so stay as they are


class DiffusionRun(Strict):
    """`task: diffusion`: super-resolution by a conditional diffusion model in the autoencoder's
    latent space.
    """

    task: Literal["diffusion"] = "diffusion"
    description: str = ""
    expected: str = "not run"
    seed: int = Field(0, ge=0)
    scale: int = Field(4, ge=1)
    autoencoder: AutoencoderConfig = PixelConfig()
    network: NetworkConfig = ResShiftNetConfig()
    process: ProcessConfig = ResidualShiftConfig()
    prediction: Literal["eps", "z0", "v"] = "z0"
    condition: tuple[Literal["lr", "z_lr"], ...] = (
        "lr",
    )  # lr: LR pixels; z_lr: latent of the upsampled LR picture
    sampler: Sampling = Sampling()
    loss: DiffusionLossConfig = DiffusionLossConfig()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    lpips_weights: str | None = (
        None  # AlexNet + LPIPS heads as one state dict, for losses and validation
    )

    @model_validator(mode="after")
    def _process_allows_prediction_and_dream(self):
        process = self.process
        if self.prediction not in process.predictions:
            options = " or ".join(process.predictions)
            raise ValueError(
                f"prediction={self.prediction} does not fit process.kind={process.kind}; set it to {options}"
            )
        if self.loss.strength and not process.has_noise:
            raise ValueError(
                f"process.kind={process.kind} has no noise for DREAM to rectify; set loss.strength: 0"
            )
        return self

    @model_validator(mode="after")
    def _process_allows_sampler_and_steps(self):
        process, sampler = self.process, self.sampler
        if sampler.kind not in process.samplers:
            options = " or ".join(process.samplers)
            raise ValueError(
                f"sampler.kind={sampler.kind} does not fit process.kind={process.kind}; set it to {options}"
            )
        if (sampler.steps or 1) > process.steps:
            raise ValueError(
                f"sampler.steps={sampler.steps} is more than the {process.steps} of the process; "
                f"set at most {process.steps}"
            )
        return self

    @model_validator(mode="after")
    def _idm_sees_the_lr_picture(self):
        if self.network.kind == "idm" and (
            self.condition != ("lr",) or self.autoencoder.kind != "pixel"
        ):
            raise ValueError(
                "network.kind=idm works on pixels and takes the LR picture; set condition: [lr], no autoencoder"
            )
        return self

    @model_validator(mode="after")
    def _pixels_are_no_latents(self):
        if self.data.cache_latents and self.autoencoder.kind == "pixel":
            raise ValueError(
                "data.cache_latents has no effect with autoencoder.kind=pixel, which encodes nothing; leave it out"
            )
        return self

    @model_validator(mode="after")
    def _scales_are_those_that_the_network_knows(self):
        if self.data.scales is None:
            return self
        if self.network.kind != "idm":
            raise ValueError(
                f"data.scales is for network.kind=idm; leave it out, {self.network.kind} knows one scale"
            )
        most = min(self.scale, self.network.max_scale)
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
    """`task: autoencoder`: a VQGAN trained with L1 + LPIPS + hinge PatchGAN. A `taesd` is imported,
    never trained.
    """

    task: Literal["autoencoder"] = "autoencoder"
    description: str = ""
    expected: str = "not run"
    seed: int = Field(0, ge=0)
    autoencoder: Annotated[VQGANConfig | TAESDConfig, Field(discriminator="kind")] = VQGANConfig()
    loss: AutoencoderLossConfig = AutoencoderLossConfig()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    lpips_weights: str | None = None

    @field_validator("data")
    @classmethod
    def _only_hr(cls, data: DataConfig) -> DataConfig:
        for knob in ("degradation", "scales", "cache_latents"):
            if getattr(data, knob) != DataConfig.model_fields[knob].default:
                raise ValueError(f"{knob} has no effect: an autoencoder sees only HR; leave it out")
        return data


Run = DiffusionRun | AutoencoderRun
