"""A model folder to give away: of a run's best or last model, or of one of its checkpoints."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from torch import Tensor

from ldm_dream.config.run import AutoencoderRun, DiffusionRun, Run
from ldm_dream.errors import UserError
from ldm_dream.model_config import AUTOENCODER, WEIGHTS, find_model, read_run
from ldm_dream.model_folder import load_autoencoder, read_tensors, save_model
from ldm_dream.networks import build_network
from ldm_dream.networks.autoencoders import build_autoencoder
from ldm_dream.training.autoencoder import latent_scale
from ldm_dream.training.card import card
from ldm_dream.training.checkpoint import Checkpoint, latest_checkpoint, read_checkpoint
from ldm_dream.training.log import METRICS, validations
from ldm_dream.training.run_folder import run_of
from ldm_dream.training.start import Start
from ldm_dream.writing import check_folder, whole_folder


class ReleaseError(UserError, ValueError):
    """What cannot be released; its text is complete for the user."""


def release(source: Path, folder: Path, pictures: tuple[str, ...] = ()) -> str:
    """Write a model folder from a run folder (its best model, else its last, else its newest
    checkpoint), a model folder, or one checkpoint, with the averaged weights; -> what it was made
    from. pictures: of an autoencoder, on which `latent_scale` is measured. Raises ReleaseError,
    ModelError, WriteError, DataError, before anything is written.
    """
    is_checkpoint = (source / "meta.json").is_file()
    run_dir = source.resolve()
    if is_checkpoint and run_dir.parent.name == "checkpoints":
        run_dir = run_dir.parent.parent
    _check_target(folder, run_dir)
    if is_checkpoint:
        found = read_checkpoint(source)
    elif ((model := find_model(source)) / WEIGHTS).is_file():
        if pictures:
            run, state = read_run(model), read_tensors(model / WEIGHTS)
            run, said = _scaled(run, state, pictures)
            save_model(folder, run, state, (model / "README.md").read_text(encoding="utf-8"))
            return f"{model}; {said}"
        _copy(model, folder)
        return str(model)
    elif (found := latest_checkpoint(source)) is None:
        raise ReleaseError(f"{source}: has no model and no checkpoint yet; train it further.")
    said = _from_checkpoint(found, run_dir, folder, pictures)
    return f"the averaged weights of step {found.step}{said}"


def _scaled(run: Run, state: dict[str, Tensor], pictures: tuple[str, ...]) -> tuple[Run, str]:
    """The run of an autoencoder, with the `latent_scale` that brings its latents of patches of
    `pictures` to unit variance, and what was found. Raises ReleaseError, DataError.
    """
    if not isinstance(run, AutoencoderRun):
        raise ReleaseError("this is no autoencoder; leave out --latent-scale.")
    if run.loss.teacher:
        raise ReleaseError("its latents are those of its teacher; leave out --latent-scale.")
    data = run.data.model_copy(update={"train": pictures, "exclude": (), "val_fraction": 0})
    scale = latent_scale(run.model_copy(update={"data": data}), state)
    autoencoder = run.autoencoder.model_copy(update={"latent_scale": scale})
    said = f"latents: standard deviation {1 / scale:.4f}, latent_scale: {scale:.4f}"
    return run.model_copy(update={"autoencoder": autoencoder}), said


def averaged_state(run: Run, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a checkpoint -> state dict of the run's model with its averaged parameters. Raises
    ReleaseError for one that is missing.
    """
    diffuses = isinstance(run, DiffusionRun)
    with torch.device("meta"):
        model = build_network(run.network) if diffuses else build_autoencoder(run.autoencoder)
    # as the objective's `trained` has it
    prefix = "trained." if diffuses and not run.loss.adversarial else "trained.model."
    names = {name: prefix + name for name in model.state_dict()}
    names |= {name: f"ema.{i}" for i, (name, _) in enumerate(model.named_parameters())}
    own = model.state_dict()
    for name, key in names.items():
        if key not in tensors or tensors[key].shape != own[name].shape:
            raise ReleaseError(f"the checkpoint lacks {key}, or it is of another model.")
    return {name: tensors[key] for name, key in names.items()}


def _check_target(folder: Path, run_dir: Path) -> None:
    """A folder of training's own is never replaced, nor is one that is no model."""
    if folder.resolve().is_relative_to(run_dir):
        raise ReleaseError(f"{folder}: is the run's own; name a folder outside {run_dir}.")
    check_folder(folder, holds=WEIGHTS)


def _copy(model: Path, folder: Path) -> None:
    for path in model.glob("*.safetensors"):
        read_tensors(path)  # raises for a damaged one
    with whole_folder(folder) as draft:
        for path in (*model.glob("*.safetensors"), model / "config.yaml", model / "README.md"):
            if path.is_file():
                shutil.copyfile(path, draft / path.name)


def _from_checkpoint(
    found: Checkpoint, run_dir: Path, folder: Path, pictures: tuple[str, ...]
) -> str:
    run = run_of(found, run_dir)
    state = averaged_state(run, found.tensors)
    said = ""
    if pictures:
        run, said = _scaled(run, state, pictures)
    earlier = {"command": "", "commit": None, "versions": {}, "changed": {}, "step": 0}
    history = found.meta.get("history") or [earlier]
    start = Start(run, _autoencoder(run, run_dir), history=history)
    counts = found.meta.get("counts", {})
    facts = start.facts(run_dir.name, found.step, counts, validations(run_dir / METRICS))
    save_model(folder, run, state, card(run, facts), start.autoencoder)
    return said and f"; {said}"


def _autoencoder(run: Run, run_dir: Path) -> dict[str, Tensor] | None:
    """The run's own copy; None where it stands on a bundled one or on pixels."""
    if not isinstance(run, DiffusionRun):
        return None
    load_autoencoder(run.autoencoder, run_dir)  # raises for another than that of the run
    kept = run_dir / AUTOENCODER
    return read_tensors(kept) if kept.is_file() else None
