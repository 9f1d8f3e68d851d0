"""The tables and figures of DREAM's paper (arXiv 2312.00210): trains what is missing, scores it, and
writes `docs/paper.html`.

One training at a time, each in a folder of `--runs`; a training that was stopped goes on, and what
has its row already is not measured again, so the same command goes on where it was. The standard
arm takes as many more steps as its steps are shorter: it is scored after as many steps as the others
and after as much time.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from ldm_dream.config.data import DataConfig
from ldm_dream.config.run import DiffusionRun
from ldm_dream.data.images import from_tensor
from ldm_dream.data.validation import validation_pairs
from ldm_dream.dtypes import name_of
from ldm_dream.errors import UserError
from ldm_dream.model_folder import load_model
from ldm_dream.scoring.evaluation import bicubic
from ldm_dream.stopping import stoppable
from ldm_dream.training.release import release
from ldm_dream.upscaling.upscaler import Upscaler
from ldm_dream.writing import whole_file

from .discrepancy import Pairs, batches, discrepancies
from .paper_page import drawing, strip_of, write
from .paper_systems import (
    ARMS,
    BICUBIC,
    DISCREPANCY,
    DREAM,
    FIGURES,
    MAIN,
    ORIGINAL,
    SHARES,
    STANDARD,
    STEPS,
    SYSTEMS,
    TABLES,
    TIME,
    Job,
    Point,
    System,
    jobs,
    points,
)
from .peer_scores import Found, Scorer
from .record import Measured, append, asked_for, complete, read
from .tables import grid
from .trainings import PATIENCE, STAYS, alone, diffusion_run, pace, refuse_own, train

SCORED = ("psnr_y", "ssim_y", "lpips", "lite0_distance", "consistency_x1e5")
OWN = ("seed", "loss.strength", "loss.p", "train.keep_every", "train.save_every")  # knobs
SHOWN = 6  # pictures of each system that the page shows


def main(args: argparse.Namespace) -> None:
    drawing()  # asked before the hours of training
    args.device = "cuda" if torch.cuda.is_available() else "cpu"  # as training chooses
    systems = args.systems or list(SYSTEMS[args.scale])
    if unknown := set(systems) - SYSTEMS[args.scale].keys():
        raise UserError(
            f"--systems {' '.join(sorted(unknown))}: not known at --scale {args.scale}; choose of "
            f"{', '.join(SYSTEMS[args.scale])}."
        )
    refuse_own(args.set, OWN, "paper")
    everything = args.table is None and args.figure is None
    tables = list(TABLES) if everything else args.table or []
    figures = list(FIGURES) if everything else args.figure or []
    queue = list(jobs(args.scale, tables, figures, systems, args.seeds))
    with stoppable(STAYS, PATIENCE), alone(Path(args.runs)):
        paper = Paper(args)
        if args.estimate:
            print(grid(*paper.estimate(queue)))
            return
        for number, job in enumerate(queue, 1):
            print(f"{number} of {len(queue)}: {job.system}, {job.arm}, seed {job.seed}", flush=True)
            paper.make(job)
    write(Path(args.json), Path(args.page), args.scale)
    print(args.page)


class Training(NamedTuple):
    """last: what is equal with the other arms -> its last step then; step_seconds: of its arm."""

    folder: Path
    last: dict[str, int]
    step_seconds: float

    def step(self, point: Point) -> int:
        return round(point.share * self.last[point.equal])


class Paper:
    """What a call of the command has in common."""

    def __init__(self, args: argparse.Namespace):
        self.args = args
        self.scorer = Scorer(args, SCORED)
        path = Path(args.json)
        rows = read(path) if path.exists() else []
        wanted = {*self.scorer.scores, *self.scorer.sets}  # a row that lacks one is measured again
        self.known = {
            asked_for(row["subject"], row["variant"], row["settings"])
            for row in rows
            if "kind" in row["settings"] or wanted <= row["metrics"].keys()
        }

    def settings(self, job: Job) -> dict[str, Any]:
        """What all rows of a training have in common."""
        args, system = self.args, SYSTEMS[self.args.scale][job.system]
        full = diffusion_run(system.config, args.set).train.steps
        asked = {"scale": args.scale, "set": args.set, "seed": job.seed, "full": full}
        return asked | {"pictures": system.hr, "count": system.count, "crop": system.crop}

    def left(self, job: Job) -> tuple[list[Point], bool]:
        """Points of a training that have no row yet, and whether its discrepancy has none."""
        system, asked = SYSTEMS[self.args.scale][job.system], self.settings(job)

        def has(about: dict[str, Any]) -> bool:
            return asked_for(job.system, job.arm, asked | about) in self.known

        left = [point for point in points(job.arm, system) if not has(point._asdict())]
        return left, job.arm in MAIN and not has(_gaps(system))

    def is_done(self, job: Job) -> bool:
        return self.left(job) == ([], False)

    def make(self, job: Job) -> None:
        """Train it, unless that is done, and score every point of it that has no row yet."""
        args, system = self.args, SYSTEMS[self.args.scale][job.system]
        run, asked = diffusion_run(system.config, args.set), self.settings(job)
        pairs = {scale: _pairs(system, run, scale) for scale in (None, *system.scales)}
        self._bicubic(job, asked, pairs, run.scale)
        if self.is_done(job):
            return
        left, gaps_left = self.left(job)
        done = self._train(job, system, run)
        end = Point(1.0, STEPS, system.sampling[-1])
        upscaler, at = None, None
        for point in sorted(left, key=done.step):
            if upscaler is None or at != done.step(point):
                at = done.step(point)
                with released(done.folder, at) as model:
                    upscaler = Upscaler.from_pretrained(model)
            pictures = enlarged(upscaler, pairs[point.enlarge], point)
            metrics = {"training_steps": at, "step_seconds": done.step_seconds}
            metrics |= scores(self.scorer, pictures, pairs[point.enlarge])
            if point == end and job.seed == args.seeds[0]:
                self._show(job, pictures)
            about = asked | point._asdict()
            self._keep(job.system, job.arm, about, metrics, name_of(upscaler.dtype))
        if gaps_left:
            with released(done.folder, done.step(end)) as folder:
                model = load_model(folder)
            found = discrepancies(
                model, pairs[None], end.steps, self.scorer.scores.get("lpips"), args.device
            )
            self._keep(job.system, job.arm, asked | _gaps(system), found, "fp32")

    def _train(self, job: Job, system: System, run: DiffusionRun) -> Training:
        """Raises UserError where no checkpoint would lie at the shares that are scored."""
        args, full = self.args, run.train.steps
        if full * SHARES[0] % 1:
            raise UserError(
                f"train.steps={full}: scores are taken at {SHARES[0]} of it; give a multiple of "
                f"{1 / SHARES[0]:g}."
            )
        seconds = self._pace(job.system)
        last = {STEPS: full, TIME: full}
        if job.arm == STANDARD:
            last[TIME] = round(full * max(1, seconds[DREAM] / seconds[STANDARD]))
        every = round(full * SHARES[0])
        knobs = [f"seed={job.seed}", f"train.steps={last[TIME]}", f"train.keep_every={every}"]
        saved = max(n for n in range(1, run.train.save_every + 1) if every % n == 0)
        knobs += [f"train.save_every={saved}", "train.val_images=0"]  # it is scored afterwards
        folder = Path(args.runs) / job.folder
        train(system.config, folder, [*args.set, *ARMS[job.arm], *knobs])
        return Training(folder, last, seconds[STANDARD if job.arm == STANDARD else DREAM])

    def _pace(self, name: str) -> dict[str, float]:
        """Seconds of a step of the MAIN arms, measured once."""
        args, system = self.args, SYSTEMS[self.args.scale][name]
        recipe = {"config": system.config, "set": args.set}
        arms = {arm: ARMS[arm] for arm in MAIN}
        return pace(Path(args.runs) / name, recipe, args.set, arms)

    def estimate(self, queue: list[Job]) -> tuple[list[str], list[list[str]]]:
        """Hours of training that are left on this machine, from steps that are measured: head and lines
        of a table. Every arm takes about the time of p = 1.
        """
        lines, total = [], 0.0
        for name in dict.fromkeys(job.system for job in queue):
            steps = diffusion_run(SYSTEMS[self.args.scale][name].config, self.args.set).train.steps
            count = sum(job.system == name and not self.is_done(job) for job in queue)
            hours = steps * self._pace(name)[DREAM] / 3600
            total += count * hours
            lines.append([name, f"{steps}", f"{count}", f"{hours:.1f}", f"{count * hours:.1f}"])
        lines.append(["all", "", "", "", f"{total:.1f}"])
        return ["system", "steps", "trainings", "hours each", "hours"], lines

    def _bicubic(
        self, job: Job, asked: dict[str, Any], pairs: dict[int | None, Pairs], own: int
    ) -> None:
        for scale, found in pairs.items():
            about = {**asked, "seed": None, "enlarge": scale}
            if asked_for(job.system, BICUBIC, about) in self.known:
                continue
            made = [bicubic(from_tensor(lr), scale or own) for _, _, lr in found]
            if scale is None:
                self._show(Job(job.system, BICUBIC, 0), made)
                self._show(Job(job.system, ORIGINAL, 0), [from_tensor(hr) for _, hr, _ in found])
            self._keep(job.system, BICUBIC, about, scores(self.scorer, made, found), "fp32")

    def _keep(
        self, subject: str, variant: str, asked: dict[str, Any], metrics: dict[str, Any], dtype: str
    ) -> None:
        """At once: a command that is stopped loses nothing that it has measured."""
        row = Measured(subject, variant, {**asked, "dtype": dtype}, metrics)
        append(self.args.json, complete(self.args, "paper", [row]))
        self.known.add(asked_for(subject, variant, asked))

    def _show(self, job: Job, pictures: list[np.ndarray]) -> None:
        """The first pictures, side by side in one file beside the rows."""
        target = strip_of(Path(self.args.json), self.args.scale, job.system, job.arm)
        target.parent.mkdir(parents=True, exist_ok=True)
        strip = np.concatenate(pictures[:SHOWN], axis=1)
        with whole_file(target) as draft:
            Image.fromarray(strip).save(draft, "WEBP", lossless=True)


def _gaps(system: System) -> dict[str, Any]:
    """Settings of the row of `discrepancy.py`."""
    return {"kind": DISCREPANCY, "steps": system.sampling[-1]}


@contextmanager
def released(folder: Path, step: int) -> Iterator[Path]:
    """The model folder of a checkpoint."""
    with tempfile.TemporaryDirectory() as place:
        release(folder / f"checkpoints/step-{step:08d}", Path(place) / "model")
        yield Path(place) / "model"


def _pairs(system: System, run: DiffusionRun, scale: int | None) -> Pairs:
    data = DataConfig(val=system.hr, degradation=run.data.degradation)
    return validation_pairs(data, scale or run.scale, system.count, system.crop)


def enlarged(upscaler: Upscaler, pairs: Pairs, point: Point) -> list[np.ndarray]:
    """uint8 [H,W,3] each, from the same noise for every model."""
    how: dict[str, Any] = {"steps": point.steps, "seed": 0, "color_fix": "none"}
    if point.enlarge:
        how |= {"scale": point.enlarge, "native_scale": True}
    made: list[np.ndarray] = []
    for few in batches(pairs):
        lr = torch.cat([lr for _, _, lr in few])
        made += [from_tensor(one[None]) for one in upscaler((lr + 1) / 2, **how) * 2 - 1]
    return made


def scores(
    scorer: Scorer, pictures: list[np.ndarray], pairs: Pairs
) -> dict[str, float | list[float]]:
    found = Found()
    for sr, (_, hr, lr) in zip(pictures, pairs):
        scorer.add(found, sr, from_tensor(hr), from_tensor(lr))
    return scorer.metrics(found)
