"""Published checkpoints -> our config, state dict and run, by the rows of `systems/`.

The system is known by its keys, its config is read off the shapes, the network is built from it
without memory (meta device), and the keys must then agree exactly: whatever is missing, extra or of
another shape stops the import by name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ldm_dream.config.model import DDPMConfig, VQGANConfig
from ldm_dream.config.run import DiffusionRun, Run
from ldm_dream.errors import CheckpointImportError
from ldm_dream.interchange.checkpoint_file import read_checkpoint
from ldm_dream.interchange.schedule import read_schedule
from ldm_dream.interchange.system import Config, Facts, PublishedSystem
from ldm_dream.interchange.systems import SYSTEMS


def load_published(path: str | Path) -> tuple[Config, dict[str, Tensor]]:
    """Published file -> (config, state dict under our keys, in the file's dtype). Raises
    CheckpointImportError.
    """
    return import_state(read_checkpoint(Path(path)), str(path))


def load_first_stage(path: str | Path) -> tuple[VQGANConfig, dict[str, Tensor]] | None:
    """The autoencoder beside the network in one file (LDM), as `load_published` gives the network;
    None where there is none. Raises CheckpointImportError.
    """
    state = read_checkpoint(Path(path))
    first_stage = _system(state, str(path)).models(state, str(path)).first_stage
    if not first_stage:
        return None
    config, state = import_state(first_stage, f"{path}, first_stage_model")
    if not isinstance(config, VQGANConfig):
        raise CheckpointImportError(f"{path}: first_stage_model is no VQGAN.")
    return config, state


def load_schedule(path: str | Path) -> DDPMConfig | None:
    """The noise schedule that an SR3, IDM or LDM checkpoint was trained with, from its buffers;
    None where it has none. Raises CheckpointImportError for one that no config can say.
    """
    return read_schedule(read_checkpoint(Path(path)), str(path))


def import_state(state: Mapping[str, Tensor], path: str) -> tuple[Config, dict[str, Tensor]]:
    """Published state dict -> (config, state dict under our keys). `path` says where it came from,
    as CheckpointImportError tells it; beside it lie files that belong to it (TAESD's other half).
    """
    system = _system(state, path)
    state = system.models(state, path).network
    try:
        config = system.read_config(state)
        with torch.device("meta"):
            expected = system.build(config).state_dict()
    except KeyError as error:
        raise CheckpointImportError(
            f"{path}: looks like {system.name}, but the key {error} is missing."
        ) from None
    except (ValueError, IndexError) as error:
        raise CheckpointImportError(
            f"{path}: looks like {system.name}, but its shapes fit no network: {error}."
        ) from None
    state = translate(system, state)
    _compare(path, system, expected, state)
    return config, state


def translate(system: PublishedSystem, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Published keys -> ours, without those that carry nothing."""
    dropped = system.dropped(state)
    return {system.ours(key): value for key, value in state.items() if key not in dropped}


def published_run(
    config: Config,
    filename: str,
    autoencoder: str | None = None,
    first_stage: VQGANConfig | None = None,
    schedule: DDPMConfig | None = None,
) -> Run:
    """The run a published model belongs to: process, prediction, condition, sampler, scale. Raises
    CheckpointImportError for a network that is none of its authors' super-resolution models.

    `autoencoder`: name or folder of an imported VQGAN, for networks that work on latents;
    `first_stage`: the one in the file; `schedule`: that in the file (`load_schedule`), without
    which SR3, IDM and LDM are taken to have their authors' published one.
    """
    facts = Facts(filename, autoencoder, first_stage, schedule)
    return _system_of(config).run(config, facts)


def published_card(path: Path, run: Run) -> str:
    """Model card in Markdown: where the weights come from (SHA-256 of the file at `path`), the
    publisher's terms, and what is not known about them.
    """
    config = run.network if isinstance(run, DiffusionRun) else run.autoencoder
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return (
        f"# {path.stem}\n\nImported from `{path.name}` (SHA-256 {digest.hexdigest()}) by `tools/import_checkpoint.py`.\n\n"
        f"- Licence: that of the published file. As published: {_system_of(config).licence}.\n"
        "- Training data: see the publisher.\n- Measured figures: none by this project.\n"
    )


def _system(state: Mapping[str, Tensor], path: str) -> PublishedSystem:
    """The row that a state dict is of."""
    system = next((system for system in SYSTEMS if system.marks(state)), None)
    if system is None:
        known = "; ".join(system.name for system in SYSTEMS)
        raise CheckpointImportError(
            f"{path}: unknown layout (first key {next(iter(state))!r}); known are: {known}."
        )
    return system


def _system_of(config: Config) -> PublishedSystem:
    return next(system for system in SYSTEMS if system.config is type(config))


def _compare(
    path: str, system: PublishedSystem, expected: Mapping[str, Tensor], state: Mapping[str, Tensor]
) -> None:
    misshapen = [
        f"{system.published(key)} {list(state[key].shape)} instead of {list(expected[key].shape)}"
        for key in expected
        if key in state and state[key].shape != expected[key].shape
    ]
    found = {
        "missing": [system.published(key) for key in expected if key not in state],
        "extra": [system.published(key) for key in state if key not in expected],
        "of another shape": misshapen,
    }
    parts = [
        f"{len(keys)} {kind} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})"
        for kind, keys in found.items()
        if keys
    ]
    if parts:
        raise CheckpointImportError(
            f"{path}: looks like {system.name}, but of its {len(expected)} keys: {'; '.join(parts)}."
        )
