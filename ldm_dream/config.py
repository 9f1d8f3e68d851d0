"""Every knob of a run: pydantic models over YAML, `base:` inheritance, `--set a.b=value`.

What is built (autoencoder, network, process, sampler) stands in `config_models.py`; here is how it is trained (loss, data, train)
and how a config is read. Imports no torch, so `--help` and `--dry-run` answer at once. A mistake in a config is a `ConfigError`:
one sentence with the file, the key and the nearest name that exists.
"""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, Field, TypeAdapter, ValidationError, field_validator, model_validator

from .config_errors import explain
from .config_models import (
    AutoencoderConfig,
    NetworkConfig,
    PixelConfig,
    ProcessConfig,
    ResidualShiftConfig,
    ResShiftNetConfig,
    SamplerConfig,
    Strict,
    TAESDConfig,
    VQGANConfig,
)
from .errors import UserError


class ConfigError(UserError, ValueError):
    """A user's mistake in a config or an override; its text is complete for the user."""


# ------------------------------------------------------------------------------------------------ how it is trained


class DiffusionLossConfig(Strict):
    kind: Literal["l1", "l2", "huber"] = "l1"  # huber: square up to an error of 1, straight beyond
    strength: float = Field(0.0, ge=0, le=1)  # 0 = plain diffusion loss, 1 = DREAM
    p: float = Field(1.0, ge=0)  # exponent of the adaptive strength; 1 DREAM, 0 DRM
    min_lam: float = Field(0.0, ge=0, le=1)  # samples whose lam is below are left as they are; the extra pass is spared for them
    fraction: float = Field(1.0, gt=0, le=1)  # share of each batch that DREAM rectifies, largest lam first; less costs less time
    estimate_precision: Literal["same", "bf16"] = "same"  # of DREAM's extra pass; same = train.precision
    pixel: float = Field(0.0, ge=0)  # weight of L1 between decoded z0 estimate and hr
    lpips: float = Field(0.0, ge=0)  # weight of LPIPS between decoded z0 estimate and hr (needs lpips_weights)
    decode_samples: int = Field(4, ge=1)  # samples of the batch that are decoded for the two terms above


class AutoencoderLossConfig(Strict):
    l1: float = Field(1.0, ge=0)
    lpips: float = Field(1.0, ge=0)
    codebook: float = Field(1.0, ge=0)
    codebook_start: int = Field(0, ge=0)  # until this step latents go unquantised; then the codebook begins as random latents
    commitment: float = Field(0.25, ge=0)  # beta, on the commitment term as in the paper (taming's legacy puts it on the other)
    adversarial: float = Field(0.0, ge=0)  # factor on the adaptive weight of the hinge PatchGAN; 0 = no discriminator
    adversarial_start: int = Field(0, ge=0)  # step from which the discriminator counts
    revive_after: int = Field(200, ge=1)  # a code unused for so many steps is moved onto a random latent of the batch


def _ordered(pair: tuple) -> tuple:
    if pair[0] > pair[1]:
        raise ValueError(f"{list(pair)} runs backwards; give [least, most]")
    return pair


def _odd(pair: tuple[int, int]) -> tuple[int, int]:
    if not (pair[0] % 2 and pair[1] % 2):
        raise ValueError(f"{list(pair)} has an even number; a kernel has a middle, so give odd ones")
    return pair


def _around_one(pair: tuple[float, float]) -> tuple[float, float]:
    if not pair[0] <= 1 <= pair[1]:
        raise ValueError(f"{list(pair)} leaves out 1; give [at most 1, at least 1]")
    return pair


def _not_all_zero(weights: tuple[float, ...]) -> tuple[float, ...]:
    if sum(weights) == 0:
        raise ValueError("all weights are 0; give at least one above 0")
    return weights


Probability = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Sizes = Annotated[tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]], AfterValidator(_ordered), AfterValidator(_odd)]
Qualities = Annotated[tuple[Annotated[int, Field(ge=1, le=100)], Annotated[int, Field(ge=1, le=100)]], AfterValidator(_ordered)]
Range = Annotated[tuple[Positive, Positive], AfterValidator(_ordered)]
RangeFromZero = Annotated[tuple[NotNegative, NotNegative], AfterValidator(_ordered)]
RangeAroundOne = Annotated[tuple[Positive, Positive], AfterValidator(_around_one)]
Scales = Annotated[tuple[Annotated[float, Field(ge=1)], Annotated[float, Field(ge=1)]], AfterValidator(_ordered)]
Weights3 = Annotated[tuple[NotNegative, NotNegative, NotNegative], AfterValidator(_not_all_zero)]
Weights6 = Annotated[
    tuple[NotNegative, NotNegative, NotNegative, NotNegative, NotNegative, NotNegative], AfterValidator(_not_all_zero)
]


class BicubicConfig(Strict):
    """LR pictures are made by MATLAB's bicubic imresize and rounded to 8 bits, as for the classical benchmarks."""

    kind: Literal["bicubic"] = "bicubic"


class FirstOrder(Strict):
    """Blur, resize, noise and JPEG with the ranges of Real-ESRGAN's first order. Draws are uniform within [least, most]."""

    blur_prob: Probability = 1.0
    kernel_size: Sizes = (7, 21)  # side of the blur kernel in pixels, odd
    kernel_weights: Weights6 = (0.45, 0.25, 0.12, 0.03, 0.12, 0.03)  # Gaussian, generalised, plateau: each isotropic, anisotropic
    sinc_prob: Probability = 0.1  # share of blurs by a sinc filter (ringing) instead of these
    sigma: Range = (0.2, 3.0)  # spread along each axis of the kernel (Gaussian: its standard deviation), pixels
    beta_generalized: RangeAroundOne = (0.5, 4.0)  # shape exponent, 1 = Gaussian; half of the draws below 1, half above
    beta_plateau: RangeAroundOne = (1.0, 2.0)  # likewise for the plateau kernel
    resize_weights: Weights3 = (0.2, 0.7, 0.1)  # up, down, keep
    resize: RangeAroundOne = (0.15, 1.5)  # factor: down within [first, 1], up within [1, second]
    gaussian_noise_prob: Probability = 0.5  # the rest gets Poisson noise
    gaussian_sigma: RangeFromZero = (1.0, 30.0)  # standard deviation, in grey levels of 255
    poisson_scale: RangeFromZero = (0.05, 3.0)  # factor on the shot noise of as many photons as there are grey levels
    gray_noise_prob: Probability = 0.4  # noise alike in the three channels
    jpeg_quality: Qualities = (30, 95)  # libjpeg's quality, 4:2:0


class SecondOrder(FirstOrder):
    """Likewise for the second order, as in ResShift (Real-ESRGAN: kernel_size up to 21). `resize` is a factor on the LR size."""

    blur_prob: Probability = 0.8
    kernel_size: Sizes = (7, 15)
    sigma: Range = (0.2, 1.5)
    resize_weights: Weights3 = (0.3, 0.4, 0.3)
    resize: RangeAroundOne = (0.3, 1.2)
    gaussian_sigma: RangeFromZero = (1.0, 25.0)
    poisson_scale: RangeFromZero = (0.05, 2.5)


class BlindConfig(Strict):
    """Degradation of unknown make: blur, resize, noise and JPEG, all at random, up to twice (Real-ESRGAN, arXiv 2107.10833)."""

    kind: Literal["blind"] = "blind"
    first: FirstOrder = FirstOrder()
    second: SecondOrder = SecondOrder()
    second_order_prob: Probability = (
        0.5  # of blur, resize and noise a second time; the second JPEG is always there (Real-ESRGAN: 1)
    )
    final_sinc_prob: Probability = 0.8  # a sinc filter before or behind the last JPEG
    final_sinc_size: Sizes = (7, 21)  # its side in LR pixels, odd


DegradationConfig = Annotated[BicubicConfig | BlindConfig, Field(discriminator="kind")]


class DataConfig(Strict):
    train: tuple[str, ...] = ()  # folders of HR pictures, searched recursively; relative to the working folder
    val: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()  # parts of a path that leave a picture out
    patch: int = Field(128, ge=8)  # HR pixels a side
    scales: Scales | None = None  # IDM: a micro-batch has HR at a scale drawn from [least, most], at most `scale`; None = `scale`
    augment: Literal["none", "hflip", "dihedral"] = "dihedral"  # hflip: left and right swapped; dihedral: all 8 flips and turns
    degradation: DegradationConfig = BicubicConfig()  # how LR pictures are made of HR ones
    max_bad_fraction: float = Field(0.1, ge=0, le=1)  # more unreadable files than this stop the run
    cache_latents: int = Field(0, ge=0)  # train on so many fixed patches, each encoded once and kept in memory; 0 = off


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
    compile: bool | None = None  # torch.compile of the repeated blocks; None = on CUDA, where sizes are fixed
    log_every: int = Field(50, ge=1)
    val_every: int = Field(1000, ge=1)
    val_images: int = Field(8, ge=0)
    val_crop: int | None = Field(256, ge=16)  # centre crop of validation pictures, HR pixels; None = whole
    save_every: int = Field(500, ge=1)
    keep_checkpoints: int = Field(2, ge=1)
    init_from: str | None = None  # model folder whose weights start the run (fine-tuning)
    freeze: tuple[str, ...] = ()  # parameters whose names begin so stay as they are


class DiffusionRun(Strict):
    """`task: diffusion`: super-resolution by a conditional diffusion model in the autoencoder's latent space."""

    task: Literal["diffusion"] = "diffusion"
    description: str = ""
    expected: str = "not run"
    seed: int = Field(0, ge=0)
    scale: int = Field(4, ge=1)
    autoencoder: AutoencoderConfig = PixelConfig()
    network: NetworkConfig = ResShiftNetConfig()
    process: ProcessConfig = ResidualShiftConfig()
    prediction: Literal["eps", "z0", "v"] = "z0"
    condition: tuple[Literal["lr", "z_lr"], ...] = ("lr",)  # lr: LR pixels; z_lr: latent of the upsampled LR picture
    sampler: SamplerConfig = SamplerConfig()
    loss: DiffusionLossConfig = DiffusionLossConfig()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    lpips_weights: str | None = None  # AlexNet + LPIPS heads as one state dict, for losses and validation

    @model_validator(mode="after")
    def _regression_has_nothing_to_rectify(self):
        if self.process.kind == "regression" and (self.prediction != "z0" or self.loss.strength):
            raise ValueError("process.kind=regression has no noise; set prediction: z0 and loss.strength: 0")
        return self

    @model_validator(mode="after")
    def _sampler_fits_the_process(self):
        process, sampler, steps = self.process.kind, self.sampler.kind, self.process.steps
        if sampler not in self.process.samplers:
            options = " or ".join(self.process.samplers)
            raise ValueError(f"sampler.kind={sampler} does not fit process.kind={process}; set it to {options}")
        if (self.sampler.steps or 1) > steps:
            raise ValueError(f"sampler.steps={self.sampler.steps} is more than the {steps} of the process; set at most {steps}")
        return self

    @model_validator(mode="after")
    def _idm_sees_the_lr_picture(self):
        if self.network.kind == "idm" and (self.condition != ("lr",) or self.autoencoder.kind != "pixel"):
            raise ValueError("network.kind=idm works on pixels and takes the LR picture; set condition: [lr], no autoencoder")
        return self

    @model_validator(mode="after")
    def _pixels_are_no_latents(self):
        if self.data.cache_latents and self.autoencoder.kind == "pixel":
            raise ValueError("data.cache_latents has no effect with autoencoder.kind=pixel, which encodes nothing; leave it out")
        return self

    @model_validator(mode="after")
    def _scales_are_those_that_the_network_knows(self):
        if self.data.scales is None:
            return self
        if self.network.kind != "idm":
            raise ValueError(f"data.scales is for network.kind=idm; leave it out, {self.network.kind} knows one scale")
        most = min(self.scale, self.network.max_scale)
        if self.data.scales[1] > most:
            raise ValueError(f"data.scales={list(self.data.scales)} ends above scale or network.max_scale; {most:g} is the most")
        if self.train.compile:
            raise ValueError("train.compile is for one size and data.scales brings another at each step; leave out one of them")
        return self


class AutoencoderRun(Strict):
    """`task: autoencoder`: a VQGAN trained with L1 + LPIPS + hinge PatchGAN. A `taesd` is imported, never trained."""

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
_RUN = TypeAdapter(Annotated[Run, Field(discriminator="task")])
_TASKS = {"diffusion": DiffusionRun, "autoencoder": AutoencoderRun}
# sections whose keys depend on their `kind`; loss and sampler have a `kind` too, but one set of keys
_KEYS_BY_KIND = {("autoencoder",), ("network",), ("process",), ("data", "degradation")}


# ------------------------------------------------------------------------------------------------ reading


class _Loader(yaml.SafeLoader):
    """SafeLoader for which 2e-4 is a number (YAML 1.1 wants 2.0e-4) and a key given twice is a mistake."""


class _Dumper(yaml.SafeDumper):
    """SafeDumper that quotes a text such as "2e-4", which _Loader would read as a number."""


for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d[\d_]*)(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
    )


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict:
    keys = [loader.construct_object(key) for key, _ in node.value]
    for key in keys:
        if keys.count(key) > 1:
            raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} is given twice", node.start_mark)
    return yaml.SafeLoader.construct_mapping(loader, node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def load_config(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> Run:
    """Read a YAML config with its `base:` chain, apply `a.b=value` overrides, validate. Raises ConfigError."""
    values, origin = _read(Path(path), chain=())
    # a changed `kind` empties its section, so it goes before the keys that were meant for the new kind
    for text in sorted(overrides, key=lambda text: not text.partition("=")[0].rstrip().endswith(".kind")):
        key, sign, value = text.partition("=")
        if not sign or key.strip() in ("", "base"):
            raise ConfigError(f"--set {text}: write it as a.b=value, such as train.steps=1000; `base` belongs into the file.")
        _merge(values, _nested(key.strip().split("."), _parse(value, f"--set {text}")), origin, f"--set {text}")
    return validate(values, origin, str(path))


def validate(values: dict, origin: dict[tuple, str], where: str) -> Run:
    """dict -> Run; `origin` says which file each key came from, for the message; keys without one come from `where`."""
    values = {"task": "diffusion", **values}
    if values["task"] == "autoencoder" and isinstance(values.get("autoencoder"), dict):
        values["autoencoder"] = {"kind": "vqgan", **values["autoencoder"]}
    try:
        return _RUN.validate_python(values)
    except ValidationError as error:
        raise ConfigError(explain(error, _TASKS, values, origin, where)) from None


def dump_config(run: Run) -> str:
    """The resolved config as YAML text; `load_config` reads it back to an equal object."""
    return yaml.dump(run.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False, width=120)


def _read(path: Path, chain: tuple[Path, ...]) -> tuple[dict, dict[tuple, str]]:
    """One file merged over its bases -> (values, which file each key came from). chain: the files that led here."""
    path = path.resolve()
    asked = f" (the `base` of {chain[-1]})" if chain else ""
    if path in chain:
        raise ConfigError(f"{path}: `base` leads in a circle: {' -> '.join(p.name for p in (*chain, path))}; remove one of them.")
    if not path.is_file():
        raise ConfigError(f"{path}: no such config file{asked}.{_near_files(path)}")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as a text file in UTF-8{asked}: {error}.") from None
    values = {} if (parsed := _parse(text, str(path))) is None else parsed
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: a config is a mapping of keys to values, this is a {type(values).__name__}.")
    base = values.pop("base", None)
    if not isinstance(base, str | None):
        raise ConfigError(f"{path}: `base` is {base!r}; it is the name of one config file, relative to this one.")
    merged, origin = _read(path.parent / base, (*chain, path)) if base else ({}, {})
    _merge(merged, values, origin, str(path))
    return merged, origin


def _parse(text: str, where: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506  (_Loader is a SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        raise ConfigError(f"{where}: line {mark.line + 1}, column {mark.column + 1}: {error.problem}.") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date such as 2024-13-01
        raise ConfigError(f"{where}: not valid YAML: {' '.join(str(error).split())}.") from None


def _nested(keys: list[str], value: Any) -> dict:
    for key in reversed(keys):
        value = {key: value}
    return value


def _merge(into: dict, new: dict, origin: dict[tuple, str], source: str, path: tuple = ()) -> None:
    """Deep merge. A section of _KEYS_BY_KIND that gets another `kind` starts empty: the old keys belonged to the old kind."""
    for key, value in new.items():
        here = (*path, key)
        old = into.get(key)
        if not isinstance(value, dict):
            into[key] = value
        else:
            other_kind = isinstance(old, dict) and "kind" in value and value["kind"] != old.get("kind")
            if not isinstance(old, dict) or (other_kind and here in _KEYS_BY_KIND):
                into[key] = {}
            _merge(into[key], value, origin, source, here)
        origin[here] = source


def _near_files(path: Path) -> str:
    if not path.parent.is_dir():
        return ""
    near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.yaml")], n=1, cutoff=0.4)
    return f" Did you mean {path.parent / near[0]}?" if near else ""
