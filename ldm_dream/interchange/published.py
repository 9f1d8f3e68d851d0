"""Published checkpoints -> our config, state dict and run, by the rows of `systems/`.

The system is known by its keys, its config is read off the shapes, the network is built from it
without memory (meta device), and the keys must then agree exactly: whatever is missing, extra or of
another shape stops the import by name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from ldm_dream.config.autoencoder import VQGANConfig
from ldm_dream.config.files import with_overrides
from ldm_dream.config.process import DDPMConfig
from ldm_dream.config.run import DiffusionRun, Run
from ldm_dream.errors import CheckpointImportError, shown
from ldm_dream.interchange.system import Config, Facts, PublishedSystem
from ldm_dream.interchange.systems import SYSTEMS


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
    except (ValueError, IndexError, ZeroDivisionError, AttributeError) as error:
        raise CheckpointImportError(
            f"{path}: looks like {system.name}, but its shapes fit no network: {_reason(error)}."
        ) from None
    state = translate(system, state)
    _compare(path, system, expected, state)
    return config, state


def import_first_stage(
    state: Mapping[str, Tensor], path: str
) -> tuple[VQGANConfig, dict[str, Tensor]] | None:
    """The autoencoder beside the network in one file (LDM), as `import_state` gives the network;
    None where there is none. Raises CheckpointImportError.
    """
    first_stage = _system(state, path).models(state, path).first_stage
    if not first_stage:
        return None
    config, state = import_state(first_stage, f"{path}, first_stage_model")
    if not isinstance(config, VQGANConfig):
        raise CheckpointImportError(f"{path}: first_stage_model is no VQGAN.")
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
    `first_stage`: the one in the file; `schedule`: that in the file (`read_schedule`), without
    which SR3, IDM and LDM are taken to have their authors' published one.
    """
    facts = Facts(filename, autoencoder, first_stage, schedule)
    try:
        return _system_of(config).run(config, facts)
    except ValidationError as error:
        raise CheckpointImportError(
            f"{shown(filename)}: its network fits no run: {_reason(error)}."
        ) from None


def tell(
    run: Run, filename: str, schedule: DDPMConfig | None, told: list[str]
) -> tuple[Run, dict[str, Any]]:
    """A `published_run` with what its user tells (`a.b=value`) -> the run, and what is assumed: the
    keys that nothing in the file tells, with the values of the published model of these shapes.
    Raises CheckpointImportError where there is none and the user does not tell.
    """
    config = _config_of(run)
    untold = _system_of(config).untold(config, Facts(filename, schedule=schedule))
    given = {text.partition("=")[0].strip() for text in told}
    left = {key: value for key, value in untold.items() if key not in given}
    if missing := [key for key, value in left.items() if value is None]:
        raise CheckpointImportError(
            f"{shown(filename)}: nothing in it tells {', '.join(missing)}, and it is no published model that is known; "
            f"say what it was trained with: --set {' '.join(f'{key}=...' for key in missing)}."
        )
    return with_overrides(run, told) if told else run, left


def check_told(run: Run, state: Mapping[str, Tensor], path: str) -> None:
    """Whether the weights fit a run that its user changed. Raises CheckpointImportError."""
    config = _config_of(run)
    system = _system_of(config)
    with torch.device("meta"):
        _compare(f"{path}, with --set", system, system.build(config).state_dict(), state)


def published_card(path: Path, run: Run, assumed: Mapping[str, Any] | None = None) -> str:
    """Model card in Markdown: where the weights come from (SHA-256 of the file at `path`), the
    publisher's terms, what is `assumed` of them and what is not known.
    """
    config = _config_of(run)
    words = ", ".join(f"{key}={value}" for key, value in (assumed or {}).items())
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return (
        f"# {shown(path.stem)}\n\n"
        f"Imported from `{shown(path.name)}` (SHA-256 {digest.hexdigest()}) by `ldm-dream import`.\n\n"
        f"- Licence: that of the published file. As published: {_system_of(config).licence}.\n"
        f"- Assumed, as of the published model, since nothing in the file tells: {words or 'nothing'}.\n"
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


def _config_of(run: Run) -> Config:
    return run.network if isinstance(run, DiffusionRun) else run.autoencoder


def _reason(error: Exception) -> str:
    """Of a config that pydantic refuses, its first mistake alone."""
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        return f"{place}: {message}" if place else message
    return " ".join(str(error).split())


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
