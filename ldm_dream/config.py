"""Every knob of a run: pydantic models over YAML, `base:` inheritance, `--set a.b=value`.

Read top to bottom: what is built (autoencoder, network, process), how it is trained (loss, data, train), how it samples.
Imports no torch, so `--help` and `--dry-run` answer at once. A mistake in a config is a `ConfigError`: one sentence with
the file, the key and the nearest name that exists.
"""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from .config_errors import explain
from .errors import UserError


class ConfigError(UserError, ValueError):
    """A user's mistake in a config or an override; its text is complete for the user."""


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


# ------------------------------------------------------------------------------------------------ what is built


class PixelConfig(Strict):
    """No autoencoder: the process runs on pixels in [-1, 1]."""

    kind: Literal["pixel"] = "pixel"


class VQGANConfig(Strict):
    """VQGAN in the layout of LDM's vq-f4 (published defaults: 55,322,782 parameters). Field names are those of its `ddconfig`."""

    kind: Literal["vqgan"] = "vqgan"
    pretrained: str | None = None  # bundled name or model folder: its architecture replaces the fields below
    ch: int = Field(128, ge=1)  # width of the full-resolution level
    ch_mult: tuple[int, ...] = (1, 2, 4)  # one entry a level, highest resolution first; factor = 2 ** (levels - 1)
    num_res_blocks: int | tuple[int, ...] = 2  # residual blocks a level in the encoder; the decoder has one more
    attn_resolutions: tuple[int, ...] = ()  # attention after each block where the feature size is one of these ...
    resolution: int = Field(256, ge=1)  # ... when the input has this size
    mid_attention: bool = True  # global attention at the lowest resolution; off = purely convolutional (local)
    norm: Literal["group", "none"] = "group"  # group = 32 groups as published; none = local, tiled equals untiled
    z_channels: int = Field(3, ge=1)
    embed_dim: int = Field(3, ge=1)  # latent channels
    n_embed: int = Field(8192, ge=2)  # codes in the codebook
    codebook_groups: int = Field(
        1, ge=1
    )  # channels are looked up in this many groups in one shared codebook (product quantisation)
    quantize: bool = True  # decode() looks the latent up in the codebook first
    latent_scale: float = Field(1.0, gt=0)  # encode() multiplies by it, decode() divides: about 1 / std of the latents

    @model_validator(mode="after")
    def _groups_divide(self):
        if self.embed_dim % self.codebook_groups:
            raise ValueError(f"codebook_groups={self.codebook_groups} does not divide embed_dim={self.embed_dim}")
        return self

    @property
    def factor(self) -> int:
        return 2 ** (len(self.ch_mult) - 1)


class TAESDConfig(Strict):
    """Tiny autoencoder of the TAESD family, 8x down, without a codebook (defaults: TAEF2). Not trained here, only imported."""

    kind: Literal["taesd"] = "taesd"
    pretrained: str | None = None  # model folder: its architecture replaces the fields below
    latent_channels: int = Field(32, ge=1)  # TAESD 4, TAEF1 and TAESD3 16, TAEF2 32
    group_norm_branch: bool = True  # TAEF2: a branch with a group norm in the blocks of the lowest resolution
    latent_scale: float = Field(1.0, gt=0)  # as VQGANConfig.latent_scale


AutoencoderConfig = Annotated[PixelConfig | VQGANConfig | TAESDConfig, Field(discriminator="kind")]


class ResShiftNetConfig(Strict):
    """Swin U-Net of ResShift (published x4 defaults: 118,593,583 parameters)."""

    kind: Literal["resshift"] = "resshift"
    image_size: int = Field(64, ge=1)  # training size of z_t: decides which levels have attention and which windows shift
    in_channels: int = Field(3, ge=1)  # channels of z_t
    out_channels: int = Field(3, ge=1)
    cond_channels: int = Field(3, ge=0)  # channels of the condition, concatenated after z_t
    cond_factor: Literal[1, 2, 4, 8] = 1  # size of the condition over size of z_t (published x2: 2)
    patch_size: int = Field(1, ge=1)  # latents are folded by this much into channels before the first convolution (published: 1)
    model_channels: int = Field(160, ge=1)
    channel_mult: tuple[int, ...] = (1, 2, 2, 4)
    num_res_blocks: int | tuple[int, ...] = 2
    attention_resolutions: tuple[int, ...] = (64, 32, 16, 8)  # feature sizes (at image_size) with a Swin layer
    swin_depth: int = Field(2, ge=1)
    swin_embed_dim: int = Field(192, ge=1)
    num_head_channels: int = Field(32, ge=1)
    window_size: int = Field(8, ge=1)
    mlp_ratio: float = Field(4, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    norm: Literal["group", "layer"] = "group"  # group = 32 groups over space; layer = over channels at each position (local)
    legacy_mask: bool = False  # the published weights were trained with a wrong shift mask: they need True


class DDPMConfig(Strict):
    """Variance-preserving process; betas linear in t. `respace: n` keeps steps int(i * num_timesteps / n) of the schedule."""

    kind: Literal["ddpm"] = "ddpm"
    num_timesteps: int = Field(2000, ge=1)
    beta_start: float = Field(1e-6, gt=0, lt=1)
    beta_end: float = Field(1e-2, gt=0, lt=1)
    schedule: Literal["linear", "sqrt_linear"] = "linear"  # sqrt_linear: linear in sqrt(beta), what LDM calls "linear"
    respace: int | None = Field(None, ge=1)  # paper's latent SR: 50 of 2000


class ResidualShiftConfig(Strict):
    """ResShift's process. sqrt_eta runs from min(min_noise_level / kappa, min_noise_level) to sqrt_eta_end."""

    kind: Literal["residual_shift"] = "residual_shift"
    num_timesteps: int = Field(15, ge=2)
    kappa: float = Field(2.0, gt=0)
    min_noise_level: float = Field(0.04, gt=0, lt=1)
    sqrt_eta_end: float = Field(0.99, gt=0, lt=1)
    power: float = Field(0.3, gt=0)
    normalize_input: bool = True  # the network sees z_t / sqrt(1 + kappa^2 eta_t)


class FlowConfig(Strict):
    """Linear interpolation z_t = (1 - sigma) z0 + sigma eps with sigma = (t + 1) / num_timesteps."""

    kind: Literal["flow"] = "flow"
    num_timesteps: int = Field(1000, ge=2)


ProcessConfig = Annotated[DDPMConfig | ResidualShiftConfig | FlowConfig, Field(discriminator="kind")]


class SamplerConfig(Strict):
    kind: Literal["ancestral", "ddim", "dpm-solver++", "resshift"] = "resshift"
    steps: int | None = Field(None, ge=1)  # None = every step of the process
    eta: float = Field(0.0, ge=0, le=1)  # ddim only: 0 deterministic, 1 ancestral variance


# ------------------------------------------------------------------------------------------------ how it is trained


class DiffusionLossConfig(Strict):
    kind: Literal["l1", "l2"] = "l1"
    strength: float = Field(0.0, ge=0, le=1)  # 0 = plain diffusion loss, 1 = DREAM
    p: float = Field(1.0, ge=0)  # exponent of the adaptive strength; 1 DREAM, 0 DRM
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


class DataConfig(Strict):
    train: tuple[str, ...] = ()  # folders of HR pictures, searched recursively; relative to the working folder
    val: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()  # parts of a path that leave a picture out
    patch: int = Field(128, ge=8)  # HR pixels a side
    augment: bool = True  # the eight flips and rotations
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
    compile: bool = False  # torch.compile of the repeated blocks
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
    network: ResShiftNetConfig = ResShiftNetConfig()
    process: ProcessConfig = ResidualShiftConfig()
    prediction: Literal["eps", "z0", "v"] = "z0"
    condition: tuple[Literal["lr", "z_lr"], ...] = ("lr",)  # lr: LR pixels; z_lr: latent of the upsampled LR picture
    sampler: SamplerConfig = SamplerConfig()
    loss: DiffusionLossConfig = DiffusionLossConfig()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    lpips_weights: str | None = None  # AlexNet + LPIPS heads as one state dict, for losses and validation


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


Run = DiffusionRun | AutoencoderRun
_RUN = TypeAdapter(Annotated[Run, Field(discriminator="task")])
_TASKS = {"diffusion": DiffusionRun, "autoencoder": AutoencoderRun}


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
    """Deep merge. A section that gets another `kind` of autoencoder, network or process starts empty: the old keys belonged to
    the old kind. (loss and sampler have a `kind` too, but one set of keys.)"""
    for key, value in new.items():
        here = (*path, key)
        old = into.get(key)
        if not isinstance(value, dict):
            into[key] = value
        else:
            other_kind = isinstance(old, dict) and "kind" in value and value["kind"] != old.get("kind")
            if not isinstance(old, dict) or (other_kind and here in {("autoencoder",), ("network",), ("process",)}):
                into[key] = {}
            _merge(into[key], value, origin, source, here)
        origin[here] = source


def _near_files(path: Path) -> str:
    if not path.parent.is_dir():
        return ""
    near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.yaml")], n=1, cutoff=0.4)
    return f" Did you mean {path.parent / near[0]}?" if near else ""
