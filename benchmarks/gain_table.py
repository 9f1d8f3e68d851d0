"""Rows of `dream-gain` as a table: what DREAM changes in each score, over seeds and pictures."""

from __future__ import annotations

import statistics

from ldm_dream.scoring.bootstrap import interval_over_seeds

from .peers_table import NAMES
from .record import Row


def gained(rows: list[Row]) -> list[list[str]]:
    arms: dict[str, dict[int, Row]] = {}  # arm -> seed -> row
    for row in rows:
        arms.setdefault(row["variant"], {})[row["settings"]["seed"]] = row
    seeds = sorted(set.intersection(*map(set, arms.values())))
    plain, dream = ([arms[arm][seed]["metrics"] for seed in seeds] for arm in ("plain", "DREAM"))
    lines = [["wear", "score", "plain", "DREAM", "DREAM - plain", "95 % interval"]]
    for name in plain[0]:
        if not all(isinstance(metrics.get(name), list) for metrics in plain + dream):
            continue
        a, b = ([metrics[name] for metrics in found] for found in (dream, plain))
        mean, low, high = interval_over_seeds(a, b)
        score, _, wear = name.partition("/")
        means = [f"{statistics.fmean(map(statistics.fmean, x)):.3f}" for x in (b, a)]
        bounds = f"{low:+.3f} to {high:+.3f}"
        lines.append([wear, NAMES.get(score) or score, *means, f"{mean:+.3f}", bounds])
    return lines


def recipe(row: Row) -> str:
    """What rows of one table have in common."""
    settings = row["settings"]
    words = " ".join(f"`{word}`" for word in (row["subject"], *settings["set"]))
    pictures = ", ".join(f"`{folder}`" for folder in settings["pictures"])
    return f"{words}; {settings['count']} of {pictures}, centre crop {settings['crop']}"
