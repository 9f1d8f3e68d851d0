"""Published checkpoints -> our config and state dict, by the tables of `layouts.py`.

The layout is known by its keys, its config is read off the shapes, the network is built from it
without memory (meta device), and the keys must then agree exactly: whatever is missing, extra or of
another shape stops the import by name. Files are read with `weights_only=True`: a pickle that wants
to run code is refused.
"""

from __future__ import annotations

import hashlib
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from ldm_dream.config.model import (
    DDPMConfig,
    ResidualShiftConfig,
    Sampling,
    TAESDConfig,
    VQGANConfig,
)
from ldm_dream.config.networks import IDMConfig, LDMConfig, SR3Config
from ldm_dream.config.run import AutoencoderRun, DiffusionRun, Run
from ldm_dream.errors import CheckpointImportError
from ldm_dream.interchange.layouts import LAYOUTS, Config, Layout
from ldm_dream.interchange.ldm import PROCESS as LDM_PROCESS
from ldm_dream.interchange.ldm import is_ldm, ldm_run, split_ldm
from ldm_dream.interchange.schedule import read_schedule


def load_published(path: str | Path) -> tuple[Config, dict[str, Tensor]]:
    """Published file -> (config, state dict under our keys, in the file's dtype). Raises
    CheckpointImportError.
    """
    path = Path(path)
    state = read_checkpoint(path)
    return import_state(
        _both_halves(path, state) if "1.conv.0.weight" in state or "1.weight" in state else state,
        str(path),
    )


def load_first_stage(path: str | Path) -> tuple[Config, dict[str, Tensor]] | None:
    """The autoencoder inside an LDM checkpoint, as `load_published` gives its network; None where
    there is none.
    """
    state = strip_prefixes(read_checkpoint(Path(path)))
    first_stage = split_ldm(state, str(path)).first_stage if is_ldm(state) else {}
    return import_state(first_stage, f"{path}, first_stage_model") if first_stage else None


def load_schedule(path: str | Path) -> DDPMConfig | None:
    """The noise schedule that an SR3, IDM or LDM checkpoint was trained with, from its buffers;
    None where it has none.
    """
    return read_schedule(strip_prefixes(read_checkpoint(Path(path))), str(path))


def _both_halves(path: Path, half: dict[str, Tensor]) -> dict[str, Tensor]:
    """TAESD is published as NAME_encoder and NAME_decoder, whose keys are bare numbers: either file
    stands for both.
    """
    ours = next((name for name in ("encoder", "decoder") if name in path.name), None)
    if ours is None:
        raise CheckpointImportError(
            f"{path}: one half of a TAESD, but its name holds neither 'encoder' nor 'decoder'; name it so."
        )
    other = "decoder" if ours == "encoder" else "encoder"
    halves = {ours: half, other: read_checkpoint(path.with_name(path.name.replace(ours, other)))}
    return {
        f"{name}.{key}": value for name, state in halves.items() for key, value in state.items()
    }


def import_state(state: Mapping[str, Tensor], path: str) -> tuple[Config, dict[str, Tensor]]:
    """Published state dict -> (config, state dict under our keys). `path` is for the messages of
    CheckpointImportError.
    """
    state = strip_prefixes(state)
    if is_ldm(state):
        state = split_ldm(state, path).unet
    layout = next(
        (layout for layout in LAYOUTS if any(re.search(layout.mark, key) for key in state)), None
    )
    if layout is None:
        known = "; ".join(layout.name for layout in LAYOUTS)
        raise CheckpointImportError(
            f"{path}: unknown layout (first key {next(iter(state))!r}); known are: {known}."
        )
    try:
        config = layout.read_config(state)
        with torch.device("meta"):
            expected = layout.build(config).state_dict()
    except KeyError as error:
        raise CheckpointImportError(
            f"{path}: looks like {layout.name}, but the key {error} is missing."
        ) from None
    except (ValueError, IndexError) as error:
        raise CheckpointImportError(
            f"{path}: looks like {layout.name}, but its shapes fit no network: {error}."
        ) from None
    state = translate(layout, state)
    _compare(path, layout, expected, state)
    return config, state


def translate(layout: Layout, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Published keys -> ours, without those that carry nothing."""
    dropped = layout.dropped(state)
    return {layout.ours(key): value for key, value in state.items() if key not in dropped}


def strip_prefixes(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Takes off what DDP (`module.`) and torch.compile (`_orig_mod.`) put before keys, in any order
    and number.
    """
    return {re.sub(r"^(module\.|_orig_mod\.)+", "", key): value for key, value in state.items()}


def _compare(
    path: str, layout: Layout, expected: Mapping[str, Tensor], state: Mapping[str, Tensor]
) -> None:
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
        f"{len(keys)} {kind} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})"
        for kind, keys in found.items()
        if keys
    ]
    if parts:
        raise CheckpointImportError(
            f"{path}: looks like {layout.name}, but of its {len(expected)} keys: {'; '.join(parts)}."
        )


# -------------------------------------------------------------------------------------------- files


class _Inert:
    """Stands in for a class that old checkpoints only name, as a key of Lightning's callback state."""


INERT = ("pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",)


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Tensors of a .safetensors file or a torch pickle (flat, or under `state_dict`), mapped rather
    than read where possible.
    """
    if not path.is_file():
        raise CheckpointImportError(f"{path}: no such file.")
    try:
        if path.suffix == ".safetensors":
            values = load_file(path)
        else:
            with torch.serialization.safe_globals([(_Inert, name) for name in INERT]):
                values = torch.load(
                    path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
                )
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
    if (
        not isinstance(values, dict)
        or not values
        or not all(isinstance(value, Tensor) for value in values.values())
    ):
        raise CheckpointImportError(
            f"{path}: holds no state dict; expected keys with tensors, flat or under 'state_dict'."
        )
    return dict(values)


# ------------------------------------------------------------------------------------ model folders


PROCESSES = {
    15: ResidualShiftConfig(),
    4: ResidualShiftConfig(num_timesteps=4, min_noise_level=0.2),
}  # steps -> published schedule
# latent channels -> the autoencoder that the published networks were trained behind
AUTOENCODERS = {
    3: VQGANConfig(),
    8: VQGANConfig(
        ch=64,
        ch_mult=(1, 2, 4, 8),
        num_res_blocks=(1, 2, 3, 4),
        resolution=512,
        z_channels=8,
        embed_dim=8,
        n_embed=4096,
    ),
}


def published_run(
    config: Config,
    filename: str,
    autoencoder: str | None = None,
    first_stage: VQGANConfig | None = None,
    schedule: DDPMConfig | None = None,
) -> Run:
    """The run a published model belongs to. ResShift's steps, which no tensor tells, are in its
    name (`.._s4.pth`); else 15.

    `autoencoder`: name or folder of an imported VQGAN, for networks that work on latents;
    `first_stage`: the one in the file; `schedule`: that in the file (`load_schedule`), without
    which SR3, IDM and LDM are taken to have their authors' published one.
    """
    if isinstance(config, VQGANConfig | TAESDConfig):
        return AutoencoderRun(description=f"imported from {filename}", autoencoder=config)
    if isinstance(config, SR3Config):
        if config.cond_channels != config.in_channels:
            raise CheckpointImportError(
                f"{filename}: this SR3 network takes no low-resolution picture; import one that does."
            )
        return DiffusionRun(
            description=f"imported from {filename}",
            scale=8,  # 16 -> 128 and 64 -> 512
            network=config,
            process=(schedule or DDPMConfig()).model_copy(update={"continuous": True}),
            prediction="eps",
            condition=("z_lr",),
            sampler=Sampling(kind="ancestral"),
        )
    if isinstance(config, LDMConfig):
        vqgan = VQGANConfig(pretrained=autoencoder) if autoencoder else first_stage or VQGANConfig()
        return ldm_run(config, filename, vqgan, schedule or LDM_PROCESS)
    if isinstance(config, IDMConfig):
        return DiffusionRun(
            description=f"imported from {filename}",
            scale=int(config.max_scale),
            network=config,
            process=schedule or DDPMConfig(),
            prediction="eps",
            sampler=Sampling(kind="ancestral"),
        )
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


LICENCES = {  # network -> terms that its publishers state
    "resshift": "S-Lab License 1.0 (non-commercial)",
    "sr3": "SR3: Apache-2.0; DREAM: MIT",
    "idm": "none given, so all rights are the authors'",
    "ldm": "MIT",
}


def published_card(path: Path, run: Run) -> str:
    """Model card: where the weights come from, and what is not known about them."""
    if isinstance(run, DiffusionRun):
        terms = LICENCES[run.network.kind]
    else:
        terms = (
            "MIT"
            if isinstance(run.autoencoder, TAESDConfig)
            else "LDM, taming: MIT; ResShift: S-Lab License 1.0"
        )
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return (
        f"# {path.stem}\n\nImported from `{path.name}` (SHA-256 {digest.hexdigest()}) by `tools/import_checkpoint.py`.\n\n"
        f"- Licence: that of the published file. As published: {terms}.\n"
        "- Training data: see the publisher.\n- Measured figures: none by this project.\n"
    )
