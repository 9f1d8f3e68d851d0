"""The start of a run: the same run as before, its autoencoder kept, and what is known of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from ldm_dream.config.run import DiffusionRun, Run
from ldm_dream.model_config import AUTOENCODER
from ldm_dream.model_folder import own_autoencoder, read_tensors, write_tensors
from ldm_dream.training import distributed
from ldm_dream.training.card import Facts
from ldm_dream.training.checkpoint import Checkpoint
from ldm_dream.training.run_folder import (
    changes,
    record,
    refuse_another_run,
    refuse_lost_checkpoints,
    run_of,
)
from ldm_dream.writing import whole_file

# knobs that make figures of validation incomparable with earlier ones
OF_VALIDATION = {
    "data.val",
    "data.val_lr",
    "lpips_weights",
    "train.val_images",
    "train.val_crop",
    "train.val_distance",
}


@dataclass(frozen=True)
class Start:
    """run: with the architecture and digest of its autoencoder, or of its teacher. autoencoder: weights for the model
    folder, None of a bundled one. changed: knob -> [value then, value now], against the checkpoint.
    history: a row for each start of the run, the last one is this.
    """

    run: Run
    autoencoder: dict[str, Tensor] | None = None
    changed: dict[str, list[Any]] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    resumes: bool = False
    precision: str | None = None  # in which the checkpoint was computed

    def record(self, run_dir: Path, step: int) -> None:
        """Write to the run folder what is started here; the first process calls it."""
        self.history.append(record(run_dir, self.run, step, self.changed))

    @property
    def said(self) -> list[str]:
        return [
            f"changed since the last checkpoint: {key} {then} -> {now}"
            for key, (then, now) in self.changed.items()
        ]

    @property
    def comparable_from(self) -> int:
        """Figures of validations up to this step were made of other pictures."""
        steps = [row["step"] for row in self.history if row["changed"].keys() & OF_VALIDATION]
        return max(steps, default=0)

    def facts(
        self, name: str, step: int, pictures: dict[str, int], validations: dict[int, dict]
    ) -> Facts:
        """For the model's card. pictures: folder -> count. validations: step -> figures."""
        validated = max((at for at in validations if at <= step), default=None)
        last = self.history[-1]
        return Facts(
            name=name,
            step=step,
            command=last["command"],
            commit=last["commit"],
            versions=last["versions"],
            pictures=pictures,
            validation=None if validated is None else validations[validated],
            validation_step=validated,
            history=[
                {"step": row["step"], "key": key, "old": old, "new": new}
                for row in self.history
                for key, (old, new) in row["changed"].items()
            ],
        )


def open_run(run: Run, run_dir: Path, rank: distributed.Rank, found: Checkpoint | None) -> Start:
    """Compare with the checkpoint that `run_dir` holds, and keep the autoencoder there. A new run is
    recorded here, before its data is read; one that goes on, when its checkpoint was taken over. The
    first process writes and the others wait for it. Raises RunFolderError, ModelError, WriteError.
    """
    then, meta = (run_of(found, run_dir), found.meta) if found else (None, {})
    kept = run_dir / AUTOENCODER
    tensors = None
    if isinstance(run, DiffusionRun):
        run, tensors = _with_autoencoder(run, then, kept)
    elif run.loss.teacher:
        teacher, _ = own_autoencoder(run.loss.teacher)
        run = run.model_copy(update={"loss": run.loss.model_copy(update={"teacher": teacher})})
    changed = changes(then, run) if then else {}
    refuse_another_run(run_dir, changed)
    start = Start(
        run,
        tensors,
        changed,
        list(meta.get("history", [])),
        found is not None,
        meta.get("precision"),
    )
    if rank.is_first and not found:
        refuse_lost_checkpoints(run_dir)
        start.record(run_dir, 0)
    if rank.is_first and tensors is not None and not (then and kept.is_file()):
        with whole_file(kept) as draft:
            write_tensors(draft, tensors)
    distributed.wait()
    return start


def _with_autoencoder(
    run: DiffusionRun, then: Run | None, kept: Path
) -> tuple[DiffusionRun, dict[str, Tensor] | None]:
    """The run's own copy counts, whatever became of the folder that it came from."""
    cfg, earlier = run.autoencoder, getattr(then, "autoencoder", None)
    if (
        earlier
        and earlier.kind == cfg.kind
        and kept.is_file()
        and (cfg.kind != "pixel" and earlier.pretrained == cfg.pretrained)
    ):
        known = earlier
        if cfg.kind == "vqgan":
            known = earlier.model_copy(update={"quantize": cfg.quantize})
        tensors = read_tensors(kept)
    else:
        known, tensors = own_autoencoder(cfg)
    return run.model_copy(update={"autoencoder": known}), tensors
