"""What a run keeps in a checkpoint and takes back from it: weights, averages, moments, means."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from ldm_dream.config.files import dump_config
from ldm_dream.errors import UserError
from ldm_dream.training import distributed
from ldm_dream.training.checkpoint import (
    Checkpoint,
    flatten_optimizer,
    latest_checkpoint,
    restore_optimizer,
    save_checkpoint,
)

if TYPE_CHECKING:
    from ldm_dream.training.trainer import Trainer


class StateError(UserError, RuntimeError):
    """A checkpoint that does not fit the run; its text is complete for the user."""


SEEN = 30  # seconds in which a shared disk shows the same files on all machines


def newest_for_all(run_dir: Path) -> Checkpoint | None:
    """The newest whole checkpoint, the same in every process. Raises ModelError, StateError."""
    found = latest_checkpoint(run_dir)
    wanted = distributed.of_first_object(found and found.step)
    for _ in range(SEEN):
        if (found and found.step) == wanted:
            break
        time.sleep(1)
        found = latest_checkpoint(run_dir)
    seen = distributed.gathered(found and found.step)
    if any(step != wanted for step in seen):
        raise StateError(
            f"{run_dir}: its newest checkpoint is of step {wanted} for the first process and of "
            f"{', '.join(map(str, seen[1:]))} for the others; it must be one folder for all, and whole."
        )
    return found


def save(trainer: Trainer, run_dir: Path, step: int) -> None:
    """Called in every process; the first one writes."""
    tensors = {f"mean.{name}": pair for name, pair in trainer.means.state().items()}
    if not trainer.rank.is_first:
        return
    tensors |= {f"trained.{k}": v for k, v in trainer.objective.trained.state_dict().items()}
    tensors |= {f"ema.{i}": v for i, v in enumerate(trainer.ema)}
    tensors |= {f"scaler.{name}": v for name, v in trainer.precision.state().items()}
    for part, optimizer in zip(trainer.objective.parts, trainer.optimizers):
        tensors |= flatten_optimizer(part.name, optimizer)
    meta = {
        "config": dump_config(trainer.run),
        "micro_batches": trainer.micro_batches,
        "pictures": trainer.pictures,
        "counts": trainer.counts,
        "precision": trainer.precision.name,
        "history": trainer.start.history,
    }
    train = trainer.run.train
    save_checkpoint(run_dir, step, tensors, meta, train.keep_checkpoints, train.keep_every)


def resume(trainer: Trainer, found: Checkpoint, run_dir: Path) -> int:
    """-> its step. Raises StateError for one that lacks something or is of other data."""
    _refuse_other_pictures(trainer, found, run_dir)
    trainer.micro_batches = found.meta.get("micro_batches", trainer.micro_batches)
    state, trained = _named(found, "trained."), trainer.objective.trained
    own = trained.state_dict()
    if state.keys() != own.keys() or any(state[k].shape != own[k].shape for k in own):
        raise StateError(
            f"{run_dir} holds a run of another model; "
            "give another --run-dir or the config it was started with."
        )
    parts = [part.name for part in trainer.objective.parts if part.start < found.step]
    wanted = [f"ema.{i}" for i in range(len(trainer.ema))] + [f"optimizer.{p}." for p in parts]
    wanted += ["scaler.scale"] if trainer.precision.scaler.is_enabled() else []
    for name in wanted:
        if not any(key.startswith(name) for key in found.tensors):
            raise StateError(
                f"{run_dir}: the checkpoint of step {found.step} lacks {name.rstrip('.')}; "
                "it is no whole checkpoint, put another back."
            )
    trained.load_state_dict(state)
    for i, average in enumerate(trainer.ema):
        average.copy_(found.tensors[f"ema.{i}"])
    for part, optimizer in zip(trainer.objective.parts, trainer.optimizers):
        restore_optimizer(part.name, optimizer, found.tensors)
    trainer.precision.restore(_named(found, "scaler."))
    trainer.means.sums = {k: v.to(trainer.device) for k, v in _named(found, "mean.").items()}
    return found.step


def _named(found: Checkpoint, mark: str):
    return {k.removeprefix(mark): v for k, v in found.tensors.items() if k.startswith(mark)}


def _refuse_other_pictures(trainer: Trainer, found: Checkpoint, run_dir: Path) -> None:
    then = found.meta.get("pictures", trainer.pictures)
    if then != trainer.pictures:
        raise StateError(
            f"data.train: holds {trainer.pictures['count']} pictures that are not the "
            f"{then['count']} by name and size that the run in {run_dir} was started with; put "
            "those back, or give another --run-dir with train.init_from."
        )
