"""The start of a run: the same run as before, its autoencoder kept, and what is known of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from ldm_dream.config.run import DiffusionRun, Run
from ldm_dream.model_folder import own_autoencoder, read_tensors, write_tensors
from ldm_dream.training import distributed
from ldm_dream.training.card import Facts
from ldm_dream.training.check import KEPT_AUTOENCODER
from ldm_dream.training.checkpoint import Checkpoint
from ldm_dream.training.run_folder import changes, record, refuse_another_run, run_of
from ldm_dream.writing import whole_file


@dataclass(frozen=True)
class Start:
    """run: with the architecture and digest of its autoencoder. autoencoder: weights for the model
    folder, None of a bundled one. history: a row for each start of the run, the last one is this.
    said: what the user is to know.
    """

    run: Run
    autoencoder: dict[str, Tensor] | None = None
    history: list[dict[str, Any]] = field(default_factory=list)
    said: list[str] = field(default_factory=list)

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
    """Compare with the checkpoint that `run_dir` holds, keep the autoencoder there, and record the start; the first
    process writes and the others wait for it. Raises RunFolderError, ModelError, WriteError.
    """
    then, meta = (run_of(found, run_dir), found.meta) if found else (None, {})
    kept = run_dir / KEPT_AUTOENCODER
    tensors = None
    if isinstance(run, DiffusionRun):
        run, tensors = _with_autoencoder(run, then, kept)
    changed = changes(then, run) if then else {}
    refuse_another_run(run_dir, changed)
    history = list(meta.get("history", []))
    if rank.is_first:
        if tensors is not None and not (then and kept.is_file()):
            with whole_file(kept) as draft:
                write_tensors(draft, tensors)
        history.append(record(run_dir, run, meta.get("step", 0), changed))
    distributed.wait()
    said = [
        f"changed since the last checkpoint: {key} {a} -> {b}" for key, (a, b) in changed.items()
    ]
    return Start(run, tensors, history, said)


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
