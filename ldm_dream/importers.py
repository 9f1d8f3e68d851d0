"""Published checkpoints -> our config and state dict: which keys a layout has, what they are called here, what carries nothing.

A layout is a row of LAYOUTS. Its config is read off the shapes, the network is built from it without memory (meta device), and
the keys must then agree exactly: whatever is missing, extra or of another shape stops the import by name.
Files are read with `weights_only=True`: a pickle that wants to run code is refused.
"""

from __future__ import annotations

import hashlib
import pickle
import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from .autoencoder import build_autoencoder
from .config import AutoencoderRun, DiffusionRun, Run
from .config_models import LDMConfig, ResidualShiftConfig, ResShiftNetConfig, TAESDConfig, VQGANConfig
from .errors import CheckpointImportError
from .ldm_checkpoint import is_ldm, ldm_config, ldm_run, split_ldm
from .networks import build_network

Config = ResShiftNetConfig | VQGANConfig | TAESDConfig | LDMConfig


@dataclass(frozen=True)
class Layout:
    """One published key layout. `renames` are (published, ours) pieces of a key."""

    name: str
    mark: str  # regular expression that some key of this layout, and of no other, matches
    renames: tuple[tuple[str, str], ...]
    drops: str  # regular expression of keys that hold nothing the network needs
    read_config: Callable[[Mapping[str, Tensor]], Config]
    build: Callable[[Config], nn.Module]

    def ours(self, key: str) -> str:
        for published, own in self.renames:
            key = key.replace(published, own)
        return key

    def published(self, key: str) -> str:
        for published, own in self.renames:
            key = key.replace(own, published)
        return key


# ------------------------------------------------------------------------------------------------ configs from shapes


def resshift_config(state: Mapping[str, Tensor]) -> ResShiftNetConfig:
    """What the shapes of ResShift's U-Net say. Dropout leaves no trace; without an extractor, z_t is as wide as the output."""
    model_channels = state["time_embed.0.weight"].shape[1]
    out_channels = state["out.2.weight"].shape[0]
    widths: list[list[int]] = [[]]  # output channels of each residual block, level by level
    swin_levels = {}
    for i in range(1, _count(state, "input_blocks")):
        if _has(state, f"input_blocks.{i}.0.op"):
            widths.append([])
            continue
        widths[-1].append(state[f"input_blocks.{i}.0.in_layers.2.weight"].shape[0])
        if _has(state, f"input_blocks.{i}.1"):
            swin_levels[len(widths) - 1] = f"input_blocks.{i}.1"
    levels = len(widths)
    layers = {**swin_levels, levels - 1: swin_levels.get(levels - 1, "middle_block.1")}
    windows = {level: _window(state, layer) for level, layer in {**layers, levels: "middle_block.1"}.items()}
    image_size = _image_size(state, layers, windows, levels)

    embed = state["middle_block.1.patch_embed.proj.weight"].shape[0]
    heads = state["middle_block.1.blocks.0.attn.relative_position_bias_table"].shape[1]
    extractor = [int(key.split(".")[1]) for key in state if re.match(r"feature_extractor\.\d+\.op\.weight", key)]
    in_channels = out_channels
    cond_channels = state["input_blocks.0.0.weight"].shape[1] - in_channels
    if extractor:
        cond_channels = state["feature_extractor.0.weight"].shape[1]
        in_channels = state["input_blocks.0.0.weight"].shape[1] - state[f"feature_extractor.{max(extractor)}.op.weight"].shape[0]
    return ResShiftNetConfig(
        image_size=image_size,
        in_channels=in_channels,
        out_channels=out_channels,
        cond_channels=cond_channels,
        cond_factor=2 ** len(extractor),
        model_channels=model_channels,
        channel_mult=tuple(_ratio(level[0], model_channels, "channels of a level over model_channels") for level in widths),
        num_res_blocks=_one_or_each([len(level) for level in widths]),
        attention_resolutions=tuple(image_size >> level for level in swin_levels),
        swin_depth=_count(state, "middle_block.1.blocks"),
        swin_embed_dim=embed,
        num_head_channels=_ratio(embed, heads, "swin_embed_dim over heads"),
        window_size=max(windows.values()),
        mlp_ratio=state["middle_block.1.blocks.0.mlp.fc1.weight"].shape[0] / embed,
        legacy_mask=True,
    )


def _window(state: Mapping[str, Tensor], layer: str) -> int:
    rows = state[f"{layer}.blocks.0.attn.relative_position_bias_table"].shape[0]
    return (round(rows**0.5) + 1) // 2  # rows = (2 * window - 1) ** 2


def _image_size(state: Mapping[str, Tensor], layers: dict[int, str], windows: dict[int, int], levels: int) -> int:
    """Training size of z_t. A shifted block keeps its mask [windows,N,N]; without any, one window covers the deepest level."""
    for level, layer in layers.items():
        if f"{layer}.blocks.1.attn_mask" in state:
            return round(state[f"{layer}.blocks.1.attn_mask"].shape[0] ** 0.5) * windows[level] << level
    return windows[levels] << (levels - 1)


def vqgan_config(state: Mapping[str, Tensor]) -> VQGANConfig:
    """What the shapes of a VQGAN say. `resolution` leaves no trace and only places attention, so it keeps its default."""
    ch = state["encoder.conv_in.weight"].shape[0]
    levels = _count(state, "encoder.down")
    resolution = VQGANConfig.model_fields["resolution"].default
    mults = [
        _ratio(state[f"encoder.down.{i}.block.0.conv1.weight"].shape[0], ch, "channels of a level over ch") for i in range(levels)
    ]
    return VQGANConfig(
        ch=ch,
        ch_mult=tuple(mults),
        num_res_blocks=_one_or_each([_count(state, f"encoder.down.{i}.block") for i in range(levels)]),
        attn_resolutions=tuple(resolution >> i for i in range(levels) if _has(state, f"encoder.down.{i}.attn")),
        mid_attention=_has(state, "encoder.mid.attn_1"),
        z_channels=state["encoder.conv_out.weight"].shape[0],
        embed_dim=state["quant_conv.weight"].shape[0],
        n_embed=state["quantize.embedding.weight"].shape[0],
    )


def taesd_config(state: Mapping[str, Tensor]) -> TAESDConfig:
    """What the shapes of a TAESD say."""
    return TAESDConfig(latent_channels=state["encoder.14.weight"].shape[0], group_norm_branch=_has(state, "encoder.11.pool"))


def _has(state: Mapping[str, Tensor], prefix: str) -> bool:
    return any(key.startswith(prefix + ".") for key in state)


def _count(state: Mapping[str, Tensor], prefix: str) -> int:
    """Children of `prefix`, which are numbered from 0."""
    numbers = [int(match[1]) for key in state if (match := re.match(rf"{re.escape(prefix)}\.(\d+)\.", key))]
    return max(numbers, default=-1) + 1


def _ratio(part: int, whole: int, what: str) -> int:
    if part % whole:
        raise ValueError(f"{what} is {part} / {whole}, which is no whole number")
    return part // whole


def _one_or_each(counts: list[int]) -> int | tuple[int, ...]:
    return counts[0] if len(set(counts)) == 1 else tuple(counts)


# ------------------------------------------------------------------------------------------------ layouts


RESSHIFT = Layout(
    name="ResShift U-Net",
    mark=r"^middle_block\.1\.blocks\.\d+\.",
    renames=((".patch_embed.proj.", ".patch_embed."), (".patch_unembed.proj.", ".patch_unembed.")),
    drops=r"\.(attn_mask|relative_position_index)$",  # follow from the sizes; the official code does not read them either
    read_config=resshift_config,
    build=build_network,
)
VQGAN = Layout(
    name="VQGAN (LDM vq-f4, ResShift vq-f4 and vq-f8, taming)",
    mark=r"^quantize\.embedding\.",
    renames=(),
    drops=r"^loss\.",  # LPIPS and discriminator, which LDM and taming save along
    read_config=vqgan_config,
    build=build_autoencoder,
)
TAESD = Layout(
    name="TAESD (TAEF1, TAEF2, ...)",
    mark=r"^(encoder|decoder)\.\d+\.conv\.0\.",
    renames=(),
    drops=r"^$",
    read_config=taesd_config,
    build=build_autoencoder,
)
LDM = Layout(
    name="LDM-SR U-Net",
    mark=r"^middle_block\.1\.qkv\.",
    renames=(),
    drops=r"^$",
    read_config=ldm_config,
    build=build_network,
)
LAYOUTS = (RESSHIFT, VQGAN, TAESD, LDM)


def load_published(path: str | Path) -> tuple[Config, dict[str, Tensor]]:
    """Published file -> (config, state dict under our keys, in the file's dtype). Raises CheckpointImportError."""
    path = Path(path)
    state = read_checkpoint(path)
    return import_state(_both_halves(path, state) if "1.conv.0.weight" in state or "1.weight" in state else state, str(path))


def load_first_stage(path: str | Path) -> tuple[Config, dict[str, Tensor]] | None:
    """The autoencoder inside an LDM checkpoint, as `load_published` gives its network; None where there is none."""
    state = strip_prefixes(read_checkpoint(Path(path)))
    first_stage = split_ldm(state, str(path)).first_stage if is_ldm(state) else {}
    return import_state(first_stage, f"{path}, first_stage_model") if first_stage else None


def _both_halves(path: Path, half: dict[str, Tensor]) -> dict[str, Tensor]:
    """TAESD is published as NAME_encoder and NAME_decoder, whose keys are bare numbers: either file stands for both."""
    ours = next((name for name in ("encoder", "decoder") if name in path.name), None)
    if ours is None:
        raise CheckpointImportError(
            f"{path}: one half of a TAESD, but its name holds neither 'encoder' nor 'decoder'; name it so."
        )
    other = "decoder" if ours == "encoder" else "encoder"
    halves = {ours: half, other: read_checkpoint(path.with_name(path.name.replace(ours, other)))}
    return {f"{name}.{key}": value for name, state in halves.items() for key, value in state.items()}


def import_state(state: Mapping[str, Tensor], path: str) -> tuple[Config, dict[str, Tensor]]:
    """Published state dict -> (config, state dict under our keys). `path` is for the messages of CheckpointImportError."""
    state = strip_prefixes(state)
    if is_ldm(state):
        state = split_ldm(state, path).unet
    layout = next((layout for layout in LAYOUTS if any(re.search(layout.mark, key) for key in state)), None)
    if layout is None:
        known = "; ".join(layout.name for layout in LAYOUTS)
        raise CheckpointImportError(f"{path}: unknown layout (first key {next(iter(state))!r}); known are: {known}.")
    try:
        config = layout.read_config(state)
        with torch.device("meta"):
            expected = layout.build(config).state_dict()
    except KeyError as error:
        raise CheckpointImportError(f"{path}: looks like {layout.name}, but the key {error} is missing.") from None
    except (ValueError, IndexError) as error:
        raise CheckpointImportError(f"{path}: looks like {layout.name}, but its shapes fit no network: {error}.") from None
    state = translate(layout, state)
    _compare(path, layout, expected, state)
    return config, state


def translate(layout: Layout, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Published keys -> ours, without those that carry nothing."""
    return {layout.ours(key): value for key, value in state.items() if not re.search(layout.drops, key)}


def strip_prefixes(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Takes off what DDP (`module.`) and torch.compile (`_orig_mod.`) put before keys, in any order and number."""
    return {re.sub(r"^(module\.|_orig_mod\.)+", "", key): value for key, value in state.items()}


def _compare(path: str, layout: Layout, expected: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    misshapen = [
        f"{layout.published(key)} {list(state[key].shape)} instead of {list(expected[key].shape)}"
        for key in expected
        if key in state and state[key].shape != expected[key].shape
    ]
    found = {
        "missing": [layout.published(key) for key in expected if key not in state],
        "extra": [layout.published(key) for key in state if key not in expected],
        "of another shape": misshapen,
    }
    parts = [
        f"{len(keys)} {kind} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})" for kind, keys in found.items() if keys
    ]
    if parts:
        raise CheckpointImportError(f"{path}: looks like {layout.name}, but of its {len(expected)} keys: {'; '.join(parts)}.")


# ------------------------------------------------------------------------------------------------ files


class _Inert:
    """Stands in for a class that old checkpoints only name, as a key of Lightning's callback state."""


INERT = ("pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",)


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Tensors of a .safetensors file or a torch pickle (flat, or under `state_dict`), mapped rather than read where possible."""
    if not path.is_file():
        raise CheckpointImportError(f"{path}: no such file.")
    try:
        if path.suffix == ".safetensors":
            values = load_file(path)
        else:
            with torch.serialization.safe_globals([(_Inert, name) for name in INERT]):
                values = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # torch raises anything from KeyError to OSError on a broken file
        wanted = re.search(r"Unsupported.*?GLOBAL (\S+)|Unsupported (\w+)", str(error))
        if isinstance(error, pickle.UnpicklingError) and wanted:
            raise CheckpointImportError(
                f"{path}: refused, because reading it would run code ({wanted[1] or wanted[2]}); "
                "give a file that holds tensors only, best as safetensors."
            ) from None
        raise CheckpointImportError(
            f"{path}: truncated, or no checkpoint at all ({type(error).__name__}); download it again."
        ) from None
    values = values.get("state_dict", values) if isinstance(values, dict) else values
    if not isinstance(values, dict) or not values or not all(isinstance(value, Tensor) for value in values.values()):
        raise CheckpointImportError(f"{path}: holds no state dict; expected keys with tensors, flat or under 'state_dict'.")
    return dict(values)


# ------------------------------------------------------------------------------------------------ model folders


PROCESSES = {
    15: ResidualShiftConfig(),
    4: ResidualShiftConfig(num_timesteps=4, min_noise_level=0.2),
}  # steps -> published schedule
AUTOENCODERS = {  # latent channels -> the autoencoder that the published networks were trained behind
    3: VQGANConfig(),
    8: VQGANConfig(
        ch=64, ch_mult=(1, 2, 4, 8), num_res_blocks=(1, 2, 3, 4), resolution=512, z_channels=8, embed_dim=8, n_embed=4096
    ),
}


def published_run(config: Config, filename: str, autoencoder: str | None = None, first_stage: VQGANConfig | None = None) -> Run:
    """The run a published model belongs to. The steps, which weights do not tell, are in its name (`.._s4.pth`); else 15.

    `autoencoder`: name or folder of an imported VQGAN, for networks that work on latents; `first_stage`: the one in the file.
    """
    if isinstance(config, VQGANConfig | TAESDConfig):
        return AutoencoderRun(description=f"imported from {filename}", autoencoder=config)
    if isinstance(config, LDMConfig):
        return ldm_run(config, filename, VQGANConfig(pretrained=autoencoder) if autoencoder else first_stage or VQGANConfig())
    if config.cond_channels != 3 or config.in_channels not in AUTOENCODERS:
        raise CheckpointImportError(
            f"{filename}: a network with {config.in_channels} latent and {config.cond_channels} condition channels is none of "
            f"ResShift's super-resolution models, which have {' or '.join(map(str, AUTOENCODERS))} and 3."
        )
    vqgan = AUTOENCODERS[config.in_channels]
    steps = re.search(r"_s(\d+)", filename)
    steps = int(steps[1]) if steps else 15
    if steps not in PROCESSES:
        raise CheckpointImportError(
            f"{filename}: no published schedule has {steps} steps; known are {', '.join(map(str, PROCESSES))}."
        )
    kappa = 1.0 if re.search(r"bicsrx4_opencv", filename) else PROCESSES[steps].kappa
    return DiffusionRun(
        description=f"imported from {filename}",
        scale=vqgan.factor // config.cond_factor,
        autoencoder=VQGANConfig(pretrained=autoencoder) if autoencoder else vqgan,
        network=config,
        process=PROCESSES[steps].model_copy(update={"kappa": kappa}),
    )


def published_card(path: Path, run: Run) -> str:
    """Model card: where the weights come from, and what is not known about them."""
    terms = "S-Lab License 1.0 (non-commercial)"
    if isinstance(run, AutoencoderRun):
        terms = "MIT" if isinstance(run.autoencoder, TAESDConfig) else "LDM, taming: MIT; ResShift: S-Lab License 1.0"
    elif isinstance(run.network, LDMConfig):
        terms = "MIT"
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return (
        f"# {path.stem}\n\nImported from `{path.name}` (SHA-256 {digest.hexdigest()}) by `tools/import_checkpoint.py`.\n\n"
        f"- Licence: that of the published file. As published: {terms}.\n"
        "- Training data: see the publisher.\n- Measured figures: none by this project.\n"
    )
