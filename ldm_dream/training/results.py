"""What a run hands out on its way: validations, the model, the best model; and whether it may end."""

from __future__ import annotations

from pathlib import Path

from ldm_dream.data.validation import validation_pairs
from ldm_dream.model_folder import save_model
from ldm_dream.training.card import card
from ldm_dream.training.log import Log
from ldm_dream.training.signals import Stop, StoppedAtOnce
from ldm_dream.training.trainer import Trainer
from ldm_dream.training.validation import validate


class Results:
    """Of one run, in every process: all of them validate, the first one writes."""

    def __init__(self, trainer: Trainer, run_dir: Path, log: Log, stop: Stop):
        self.trainer, self.run_dir, self.log, self.stop = trainer, run_dir, log, stop
        run = trainer.run
        cfg = run.train
        self.pairs = validation_pairs(
            run.data, run.scale, cfg.val_images, cfg.val_crop, trainer.files
        )
        # steps between two reports; one more at the last step
        self.every = cfg.val_every if self.pairs else cfg.save_every

    def report(self, step: int, stopped: bool) -> str | None:
        """Validate where that was not done, and write the model with the averaged weights; -> why the
        run ends before its last step, None: it goes on. Raises StoppedAtOnce, in every process, where
        a validation is due and a signal came, before it (stopped) or on its way.
        """
        cfg, run_dir = self.trainer.run.train, self.run_dir
        last = step >= cfg.steps
        if self.pairs and step and step not in self.log.validations:
            if stopped:
                raise StoppedAtOnce
            self.trainer.check_finite()
            grid = run_dir / "samples" / f"step-{step:08d}.png"
            with self.trainer.averaged():
                figures = validate(self.trainer, self.pairs, grid, self.stop)
                self.log.validations[step] = figures
                self._release("model", step)
                if best_step(self._comparable(), cfg.best) == step:
                    self._release("model-best", step)
                self.log(step, figures)  # last: a run that goes on does all of it again, or nothing
        elif (last and not (run_dir / "model" / "config.yaml").is_file()) or (
            not self.pairs and step
        ):
            self.trainer.check_finite()
            with self.trainer.averaged():
                self._release("model", step)
        return None if last else self._ended_early()

    def _ended_early(self) -> str | None:
        cfg, rows = self.trainer.run.train, self._comparable()
        best = best_step(rows, cfg.best)
        if cfg.patience is None or best is None:
            return None
        since = sum(step > best for step in rows)
        if since < cfg.patience:
            return None
        return (
            f"no better val/{cfg.best} than that of step {best} in {since} validations "
            f"(train.patience={cfg.patience})"
        )

    def _comparable(self) -> dict[int, dict[str, float]]:
        since = self.trainer.start.comparable_from
        return {at: row for at, row in self.log.validations.items() if at > since}

    def _release(self, name: str, step: int) -> None:
        """Write a model folder with the model's present weights."""
        trainer = self.trainer
        if not trainer.rank.is_first:
            return
        run_name = self.run_dir.resolve().name
        facts = trainer.start.facts(run_name, step, trainer.counts, self.log.validations)
        save_model(
            self.run_dir / name,
            trainer.run,
            trainer.objective.model.state_dict(),
            card(trainer.run, facts),
            trainer.start.autoencoder,
        )


def best_step(validations: dict[int, dict[str, float]], figure: str) -> int | None:
    """The first step with the best value of `figure`, of which higher is better but for distances."""
    sign = -1 if figure in ("lpips", "distance") else 1
    values = {step: row.get(f"val/{figure}") for step, row in validations.items()}
    known = {step: sign * value for step, value in values.items() if value is not None}
    return max(known, key=lambda step: (known[step], -step)) if known else None
