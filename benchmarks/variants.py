"""Variants of DREAM's loss (`variant_losses.py`), trained for equal time, seed by seed, and scored on
the same pictures.

First the time of a step of each is taken, all in turns; then each takes as many steps as fit into the
time of the plain loss. The same command goes on where it was stopped, and what has its row is not
trained again.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from ldm_dream.config.data import DataConfig
from ldm_dream.data.validation import validation_pairs
from ldm_dream.dtypes import name_of
from ldm_dream.stopping import stoppable
from ldm_dream.upscaling.upscaler import Upscaler

from .choices import PLAIN
from .paper import PATIENCE, STAYS, alone, enlarged, scores
from .paper_systems import STEPS, Point
from .peer_scores import Scorer
from .record import Measured, append, asked_for, complete, read
from .tables import text
from .trainings import diffusion_run, pace, train

SCORED = ("psnr_y", "lpips", "lite0_distance")


def main(args: argparse.Namespace) -> None:
    args.device = "cuda" if torch.cuda.is_available() else "cpu"  # as training chooses
    run, runs, file = diffusion_run(args.config, args.set), Path(args.runs), Path(args.json)
    data = DataConfig(val=tuple(args.hr), degradation=run.data.degradation)
    pairs = validation_pairs(data, run.scale, args.limit, args.crop)
    names = dict.fromkeys([PLAIN, *args.variants])
    tools = {name: ["-m", "benchmarks.variant_losses", name] for name in names}
    recipe = {"config": args.config, "set": args.set}
    scorer = Scorer(args, SCORED)
    rows = read(file) if file.exists() else []
    known = {asked_for(row["subject"], row["variant"], row["settings"]) for row in rows}
    with stoppable(STAYS, PATIENCE), alone(runs):
        seconds = pace(runs, recipe, args.set, {name: [] for name in names}, tools)
        for seed, name in ((seed, name) for seed in args.seeds for name in names):
            asked = {"set": args.set, "seed": seed, "full": run.train.steps, "pictures": args.hr}
            asked |= {"count": len(pairs), "crop": args.crop, "sampling": args.sampling}
            if asked_for(args.config, name, asked) in known:
                continue
            steps = round(run.train.steps * seconds[PLAIN] / seconds[name])
            print(f"{name}, seed {seed}: {steps} steps", flush=True)
            place = runs / f"{name.replace(' ', '-')}-{seed}"
            train(
                args.config, place, [*args.set, f"seed={seed}", f"train.steps={steps}"], tools[name]
            )
            upscaler = Upscaler.from_pretrained(place / "model")
            metrics = {"step_seconds": seconds[name], "training_steps": steps}
            for count in args.sampling:
                made = enlarged(upscaler, pairs, Point(1.0, STEPS, count))
                found = scores(scorer, made, pairs)
                metrics |= {f"{score}/{count}": values for score, values in found.items()}
            row = Measured(args.config, name, asked | {"dtype": name_of(upscaler.dtype)}, metrics)
            append(args.json, complete(args, "variants", [row]))
    print(text("variants", read(file)))
