"""Rows of `variants` as a table: how much nearer than the plain loss a variant is at the same PSNR."""

from __future__ import annotations

import numpy as np

from ldm_dream.scoring.bootstrap import COVERED, SEED, Interval

from .choices import PLAIN
from .peers_table import NAMES
from .record import Row

RESAMPLES = 2000
COMPARED = ("lpips", "lite0_distance")
Values = np.ndarray  # [seeds, pictures]


def variants(rows: list[Row]) -> list[list[str]]:
    """A line for each variant, over the seeds that it and the plain loss have. Sampled in the most
    steps, and set beside the plain loss's curve over its numbers of steps.
    """
    by_name: dict[str, dict[int, dict]] = {}
    for row in rows:
        by_name.setdefault(row["variant"], {})[row["settings"]["seed"]] = row["metrics"]
    plain, counts = by_name.get(PLAIN, {}), rows[0]["settings"]["sampling"]
    full, compared = max(counts), [name for name in COMPARED if _has(rows, name)]
    titles = [NAMES.get(name, name) for name in ("psnr_y", *compared)]
    gains = [f"{NAMES.get(name, name)} minus plain's at this PSNR-Y" for name in compared]
    lines = [["loss", "s a step", "steps", "seeds", *titles, *gains]]
    for name, found in by_name.items():
        seeds = sorted(found.keys() & plain.keys())
        if not seeds:
            continue
        ours = {score: _values(found, seeds, score, full) for score in ("psnr_y", *compared)}
        first = found[seeds[0]]
        line = [name, f"{first['step_seconds']:.3f}", f"{first['training_steps']}", f"{len(seeds)}"]
        line += [f"{values.mean():.3f}" for values in ours.values()]
        for score in compared:
            curve = [
                (_values(plain, seeds, "psnr_y", n), _values(plain, seeds, score, n))
                for n in counts
            ]
            gain = None if name == PLAIN else at_equal_psnr(ours["psnr_y"], ours[score], curve)
            line.append("" if gain is None else "{:+.3f} ({:+.3f} to {:+.3f})".format(*gain))
        lines.append(line)
    return lines


def at_equal_psnr(psnr: Values, score: Values, curve: list[tuple[Values, Values]]) -> Interval:
    """Mean of `score` minus that of `curve`, (PSNR, score) of one model sampled in several ways, where
    it has the mean of `psnr`: between two ways on the straight line, beyond its ends the end itself.
    Seeds and pictures are drawn with replacement.
    """
    random, (seeds, pictures) = np.random.default_rng(SEED), psnr.shape
    everything = np.ix_(range(seeds), range(pictures))
    draws = [everything]
    for _ in range(RESAMPLES):
        drawn = random.integers(seeds, size=seeds), random.integers(pictures, size=pictures)
        draws.append(np.ix_(*drawn))
    found = []
    for drawn in draws:
        points = sorted((x[drawn].mean(), y[drawn].mean()) for x, y in curve)
        theirs = np.interp(psnr[drawn].mean(), [x for x, _ in points], [y for _, y in points])
        found.append(score[drawn].mean() - theirs)
    tail = 50 * (1 - COVERED)
    low, high = np.percentile(found[1:], [tail, 100 - tail])
    return Interval(float(found[0]), float(low), float(high))


def _has(rows: list[Row], score: str) -> bool:
    """For every number of sampling steps of every row."""
    return all(
        f"{score}/{n}" in row["metrics"] for row in rows for n in row["settings"]["sampling"]
    )


def _values(by_seed: dict[int, dict], seeds: list[int], score: str, steps: int) -> Values:
    return np.array([by_seed[seed][f"{score}/{steps}"] for seed in seeds])
