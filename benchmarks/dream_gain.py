"""What DREAM gains: one recipe trained with it and without it (`loss.strength=0`) for equal time, seed
by seed, and the results of all models on the same worn pictures.

First the time of a step is taken, both arms in turns, from patches whose latents are kept. The arm
without DREAM then takes as many more steps as its steps are shorter. Runs and that time lie under
`--runs`; the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from ldm_dream.config.data import DataConfig
from ldm_dream.data.images import from_tensor
from ldm_dream.data.validation import validation_pairs
from ldm_dream.dtypes import name_of
from ldm_dream.errors import UserError
from ldm_dream.upscaling.upscaler import Upscaler

from .peer_methods import SCALE
from .peer_scores import Found, Scorer
from .record import Measured
from .scored import Pairs, check_comparable
from .tables import finish
from .trainings import diffusion_run, pace, train
from .wear import worn

ARMS: dict[str, list[str]] = {"plain": ["loss.strength=0"], "DREAM": []}


def main(args: argparse.Namespace) -> None:
    args.device = "cuda" if torch.cuda.is_available() else "cpu"  # as training chooses
    run = diffusion_run(args.config, args.set)
    if not run.loss.strength:
        raise UserError(f"{args.config}: loss.strength is 0, so both arms are plain; set it to 1.")
    pairs = validation_pairs(DataConfig(val=tuple(args.hr)), run.scale, args.limit, args.crop)
    check_comparable(args.config, run, pairs)
    recipe = {"config": args.config, "set": args.set, "steps": args.steps}
    seconds = pace(Path(args.runs), recipe, args.set, ARMS)
    ratio = seconds["DREAM"] / seconds["plain"]
    steps = {"plain": round(args.steps * ratio), "DREAM": args.steps}
    print(f"a step with DREAM takes {ratio:.3f} of one without; steps: {steps}", flush=True)
    scorer, rows = Scorer(args), []
    for seed in args.seeds:
        for arm, knobs in ARMS.items():
            place = Path(args.runs) / f"{arm.lower()}-{seed}"
            ends = [f"seed={seed}", f"train.steps={steps[arm]}", f"train.val_every={steps[arm]}"]
            print(f"{arm}, seed {seed}: trains", flush=True)
            train(args.config, place, [*args.set, *knobs, *ends])
            upscaler = Upscaler.from_pretrained(place / "model")
            asked = {"set": args.set, "seed": seed, "steps": args.steps, "pictures": args.hr}
            asked |= {"count": len(pairs), "crop": args.crop, "dtype": name_of(upscaler.dtype)}
            metrics = {"step_seconds": seconds[arm], "steps": steps[arm]}
            metrics |= worn_scores(upscaler, pairs, scorer)
            rows.append(Measured(args.config, arm, asked, metrics))
            print(f"{arm}, seed {seed}: scored", flush=True)
    finish(args, "dream-gain", rows)


def worn_scores(upscaler: Upscaler, pairs: Pairs, scorer: Scorer) -> dict[str, float | list[float]]:
    """Name of the score / wear -> a value of each picture, or one of all."""
    found: dict[str, Found] = {}
    for number, (_, hr, _) in enumerate(pairs):
        for wear, lr in worn(hr, SCALE, number).items():
            sr = upscaler((lr + 1) / 2, seed=0) * 2 - 1
            of_wear = found.setdefault(wear, Found())
            scorer.add(of_wear, *(from_tensor(x) for x in (sr, hr, lr)))
    return {
        f"{name}/{wear}": values
        for wear, of_wear in found.items()
        for name, values in scorer.metrics(of_wear).items()
    }
