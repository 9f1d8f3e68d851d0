"""Variants of DREAM's loss (`variant_losses.py`), trained for equal time, seed by seed, and scored on
the same pictures.

First the time of a step of each is taken, all in turns; then each takes as many steps as fit into the
time of the plain loss. The same command goes on where it was stopped, and what has its row is not
trained again.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import torch

from ldm_dream.config.autoencoder import PixelConfig
from ldm_dream.config.data import DataConfig
from ldm_dream.config.process import DDPMConfig
from ldm_dream.config.run import DiffusionRun
from ldm_dream.data.validation import validation_pairs
from ldm_dream.dtypes import name_of
from ldm_dream.errors import UserError
from ldm_dream.process import build_process
from ldm_dream.sampler import plan
from ldm_dream.stopping import stoppable
from ldm_dream.upscaling.upscaler import Upscaler

from .choices import PLAIN
from .peer_scores import Scorer
from .record import Measured, answered, append, asked_for, complete, read
from .scored import Pairs, check_comparable, enlarged, scores
from .tables import text
from .trainings import PATIENCE, STAYS, alone, diffusion_run, pace, refuse_own, train

SCORED = ("psnr_y", "lpips", "lite0_distance")
OWN = ("seed", "train.steps", "loss.strength", "loss.p", "loss.min_lam", "loss.min_shift")  # knobs


def main(args: argparse.Namespace) -> None:
    args.device = "cuda" if torch.cuda.is_available() else "cpu"  # as training chooses
    run, runs, file = diffusion_run(args.config, args.set), Path(args.runs), Path(args.json)
    data = DataConfig(val=tuple(args.hr), degradation=run.data.degradation)
    pairs = validation_pairs(data, run.scale, args.limit, args.crop)
    check(args, run, pairs)
    scorer = Scorer(args, SCORED)
    wanted = {f"{score}/{n}" for score in scorer.scores for n in args.sampling}
    known = answered(file, lambda row: wanted <= row["metrics"].keys())
    names = dict.fromkeys([PLAIN, *args.variants])
    tools = {name: ["-m", "benchmarks.variant_losses", name] for name in names}
    with stoppable(STAYS, PATIENCE), alone(runs):
        recipe = {"config": args.config, "set": args.set}
        seconds = pace(runs, recipe, args.set, {name: [] for name in names}, tools)
        for seed, name in ((seed, name) for seed in args.seeds for name in names):
            asked = {"set": args.set, "seed": seed, "full": args.steps, "pictures": args.hr}
            asked |= {"count": len(pairs), "crop": args.crop, "sampling": args.sampling}
            if asked_for(args.config, name, asked) in known:
                continue
            steps = round(args.steps * seconds[PLAIN] / seconds[name])
            print(f"{name}, seed {seed}: {steps} steps", flush=True)
            place = runs / f"{'-'.join(re.findall('[A-Za-z0-9]+', name))}-{seed}-{args.steps}"
            knobs = [*args.set, f"seed={seed}", f"train.steps={steps}"]
            train(args.config, place, knobs, tools[name])
            upscaler = Upscaler.from_pretrained(place / "model")
            metrics = {"step_seconds": seconds[name], "training_steps": steps}
            for count in args.sampling:
                made = enlarged(upscaler, pairs, steps=count, seed=0)
                found = scores(scorer, made, pairs)
                metrics |= {f"{score}/{count}": values for score, values in found.items()}
            row = Measured(args.config, name, asked | {"dtype": name_of(upscaler.dtype)}, metrics)
            append(args.json, complete(args, "variants", [row]))
    print(text("variants", read(file)))


def check(args: argparse.Namespace, run: DiffusionRun, pairs: Pairs) -> None:
    """Raises UserError for what would fail, or be ignored, hours later."""
    refuse_own(args.set, OWN, "variants")
    check_comparable(args.config, run, pairs)
    if run.prediction not in ("eps", "z0", "v"):
        raise UserError(f"{args.config}: prediction is {run.prediction}; take eps, z0 or v.")
    if isinstance(run.autoencoder, PixelConfig) or run.sampler.kind not in (
        "ancestral",
        "resshift",
    ):
        raise UserError(f"{args.config}: the variants sample in latents, by an ancestral sampler.")
    if isinstance(run.process, DDPMConfig) and run.process.continuous:
        raise UserError(
            f"{args.config}: the variants need whole steps; set process.continuous=false."
        )
    process = build_process(run.process)
    for count in args.sampling:
        plan(process, run.sampler.model_copy(update={"steps": count}))
