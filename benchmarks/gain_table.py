"""Rows of `dream-gain` as a table: what DREAM changes in each score, over seeds and pictures."""

from __future__ import annotations

import statistics

from ldm_dream.scoring.bootstrap import interval_over_seeds

from .peers_table import NAMES, scores_of_each_picture
from .record import Row


def gained(rows: list[Row]) -> list[list[str]]:
    """A line for each score of each wear that all models have, over the seeds that both arms have."""
    arms: dict[str, dict[int, Row]] = {"plain": {}, "DREAM": {}}
    for row in rows:
        arms[row["variant"]][row["settings"]["seed"]] = row
    seeds = sorted(arms["plain"].keys() & arms["DREAM"].keys())
    plain, dream = (
        [dict(scores_of_each_picture(arms[arm][seed])) for seed in seeds] for arm in arms
    )
    lines = [["wear", "score", "plain", "DREAM", "DREAM - plain", "95 % interval"]]
    if not seeds:
        return lines
    steps = [f"{arms[arm][seeds[0]]['metrics']['steps']}" for arm in arms]
    lines.append(["", "steps of training", *steps, "", ""])
    for name in plain[0]:
        if not all(name in found for found in plain + dream):
            continue
        a, b = ([found[name] for found in each] for each in (dream, plain))
        mean, low, high = interval_over_seeds(a, b)
        score, _, wear = name.partition("/")
        means = [f"{statistics.fmean(map(statistics.fmean, x)):.3f}" for x in (b, a)]
        bounds = f"{low:+.3f} to {high:+.3f}"
        lines.append([wear, NAMES.get(score) or score, *means, f"{mean:+.3f}", bounds])
    return lines


def trained(row: Row) -> str:
    """How, in words."""
    settings = row["settings"]
    return f"{settings['steps']} steps with DREAM, {settings['dtype']}"
