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

from .discrepancy import discrepancies
from .paper_others import made_by, others
from .paper_page import drawing, write
from .paper_pictures import strip_of
from .paper_systems import (
    ARMS,
    BICUBIC,
    DISCREPANCY,
    DREAM,
    FIGURES,
    MAIN,
    ORIGINAL,
    REGRESSION,
    SHARES,
    STANDARD,
    STEPS,
    SYSTEMS,
    TABLES,
    TIME,
    Job,
    Point,
    System,
    ends,
    jobs,
    points,
)
from .peer_scores import Scorer
from .record import Measured, answered, append, asked_for, complete
from .scored import Pairs, enlarged, scores
from .tables import grid
from .trainings import PATIENCE, STAYS, alone, diffusion_run, memory_gib, pace, refuse_own, train

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
        paper.check(queue)
        for system in dict.fromkeys(job.system for job in queue):
            paper.beside(system)
        for number, job in enumerate(queue, 1):
            print(f"{number} of {len(queue)}: {job.system}, {job.arm}, seed {job.seed}", flush=True)
            paper.make(job)
    write(Path(args.json), Path(args.page), args.scale)
    print(args.page)


class Training(NamedTuple):
    """last: what is equal with the other arms -> its last step then; step_seconds: of its arm."""

    folder: Path
    last: dict[str, int]
    step_seconds: float | None  # None: its time is not compared

    def step(self, point: Point) -> int:
        return round(point.share * self.last[point.equal])


class Paper:
    """What a call of the command has in common."""

    def __init__(self, args: argparse.Namespace):
        self.args, self.named = args, others(args.other)
        self.scorer = Scorer(args, SCORED)
        wanted = {*self.scorer.scores, *self.scorer.sets}  # a row that lacks one is measured again
        self.known = answered(
            Path(args.json),
            lambda row: "kind" in row["settings"] or wanted <= row["metrics"].keys(),
        )

    def check(self, queue: list[Job]) -> None:
        """Raises UserError for what would fail after hours."""
        if self.named and not queue:
            raise UserError("--other: nothing of this has pictures to score; leave it out.")
        for job in queue:
            if job.arm == REGRESSION:
                self._regression(job.system)

    def _regression(self, name: str) -> str:
        """Its config, which takes --set too."""
        config = SYSTEMS[self.args.scale][name].regression
        assert config  # else there is no such job
        diffusion_run(config, self.args.set)
        return config

    def settings(self, name: str, seed: int | None) -> dict[str, Any]:
        """What all rows of a training have in common. seed: None where nothing is trained."""
        args, system = self.args, SYSTEMS[self.args.scale][name]
        full = diffusion_run(system.config, args.set).train.steps
        asked = {"scale": args.scale, "set": args.set, "seed": seed, "full": full}
        return asked | {"pictures": system.hr, "count": system.count, "crop": system.crop}

    def left(self, job: Job) -> tuple[list[Point], bool]:
        """Points of a training that have no row yet, and whether its discrepancy has none."""
        system, asked = SYSTEMS[self.args.scale][job.system], self.settings(job.system, job.seed)

        def has(about: dict[str, Any]) -> bool:
            return asked_for(job.system, job.arm, asked | about) in self.known

        left = [point for point in points(job.arm, system) if not has(point._asdict())]
        return left, job.arm in MAIN and not has(_gaps(system))

    def is_done(self, job: Job) -> bool:
        return self.left(job) == ([], False)

    def make(self, job: Job) -> None:
        """Train it, unless that is done, and score every point of it that has no row yet."""
        args, system = self.args, SYSTEMS[self.args.scale][job.system]
        run, asked = diffusion_run(system.config, args.set), self.settings(job.system, job.seed)
        pairs = {scale: _pairs(system, run, scale) for scale in (None, *system.scales)}
        self._bicubic(job.system, pairs, run.scale)
        if self.is_done(job):
            return
        left, gaps_left = self.left(job)
        done = self._train(job, system, run)
        end = ends(job.arm, system)[-1]
        upscaler, at = None, None
        for point in sorted(left, key=done.step):
            if upscaler is None or at != done.step(point):
                at = done.step(point)
                with released(done.folder, at) as model:
                    upscaler = Upscaler.from_pretrained(model)
            how: dict[str, Any] = {"steps": point.steps, "seed": 0}
            if point.enlarge:
                how |= {"scale": point.enlarge, "native_scale": True}
            pictures = enlarged(upscaler, pairs[point.enlarge], **how)
            metrics: dict[str, Any] = {"training_steps": at}
            if done.step_seconds is not None:
                metrics["step_seconds"] = done.step_seconds
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
        config, last, own = system.config, {STEPS: full, TIME: full}, None
        if job.arm == REGRESSION:
            config = self._regression(job.system)
        else:
            seconds = self._pace(job.system)
            own = seconds[STANDARD if job.arm == STANDARD else DREAM]
            if job.arm == STANDARD:
                last[TIME] = round(full * max(1, seconds[DREAM] / own))
        every = round(full * SHARES[0])
        knobs = [f"seed={job.seed}", f"train.steps={last[TIME]}", f"train.keep_every={every}"]
        saved = max(n for n in range(1, run.train.save_every + 1) if every % n == 0)
        knobs += [f"train.save_every={saved}", "train.val_images=0"]  # it is scored afterwards
        folder = Path(args.runs) / job.folder
        train(config, folder, [*args.set, *ARMS.get(job.arm, []), *knobs])
        return Training(folder, last, own)

    def _pace(self, name: str) -> dict[str, float]:
        """Seconds of a step of the MAIN arms, measured once."""
        args, system = self.args, SYSTEMS[self.args.scale][name]
        recipe = {"config": system.config, "set": args.set}
        arms = {arm: ARMS[arm] for arm in MAIN}
        return pace(Path(args.runs) / name, recipe, args.set, arms)

    def estimate(self, queue: list[Job]) -> tuple[list[str], list[list[str]]]:
        """Hours of training that are left on this machine, and memory that it takes, from steps that are
        measured: head and lines of a table. Every arm takes about the time of p = 1, the
        regression less.
        """
        lines, total = [], 0.0
        for name in dict.fromkeys(job.system for job in queue):
            steps = diffusion_run(SYSTEMS[self.args.scale][name].config, self.args.set).train.steps
            count = sum(job.system == name and not self.is_done(job) for job in queue)
            hours = steps * self._pace(name)[DREAM] / 3600
            total += count * hours
            memory = memory_gib(Path(self.args.runs) / name, DREAM)
            held = "" if memory is None else f"{memory:.1f}"
            line = [name, f"{steps}", f"{count}", f"{hours:.1f}", f"{count * hours:.1f}", held]
            lines.append(line)
        lines.append(["all", "", "", "", f"{total:.1f}", ""])
        return ["system", "steps", "trainings", "hours each", "hours", "GiB"], lines

    def beside(self, name: str) -> None:
        """Rows of what --other names, as far as they are missing."""
        system, asked = SYSTEMS[self.args.scale][name], self.settings(name, None)
        run = diffusion_run(system.config, self.args.set)
        for other in self.named:
            about = asked | {"enlarge": None, "from": other.path}
            if asked_for(name, other.name, about) in self.known:
                print(f"{other.name}, {name}: has its row", flush=True)
                continue
            pairs = _pairs(system, run, None)
            made, dtype = made_by(other, system, pairs, run.scale)
            self._show(Job(name, other.name, 0), made)
            self._keep(name, other.name, about, scores(self.scorer, made, pairs), dtype)

    def _bicubic(self, name: str, pairs: dict[int | None, Pairs], own: int) -> None:
        asked = self.settings(name, None)
        for scale, found in pairs.items():
            about = asked | {"enlarge": scale}
            if asked_for(name, BICUBIC, about) in self.known:
                continue
            made = [bicubic(from_tensor(lr), scale or own) for _, _, lr in found]
            if scale is None:
                self._show(Job(name, BICUBIC, 0), made)
                self._show(Job(name, ORIGINAL, 0), [from_tensor(hr) for _, hr, _ in found])
            self._keep(name, BICUBIC, about, scores(self.scorer, made, found), "fp32")

    def _keep(
        self,
        subject: str,
        variant: str,
        asked: dict[str, Any],
        metrics: dict[str, Any],
        dtype: str | None,
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
