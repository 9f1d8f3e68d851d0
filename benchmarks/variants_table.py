"""Rows of `variants` as a table: how much better than the plain loss a variant is at the same PSNR."""

from __future__ import annotations

import numpy as np

from ldm_dream.scoring.bootstrap import COVERED, SEED, Interval

from .choices import PLAIN
from .peers_table import NAMES
from .record import Row, alike, date

RESAMPLES = 2000  # each asks a curve, so fewer than of plain differences
COMPARED = ("lpips", "lite0_distance")
COMMON = ("set", "full", "pictures", "count", "crop", "sampling")  # settings of rows that compare
Values = np.ndarray  # [seeds, pictures]


def variants(rows: list[Row]) -> list[list[str]]:
    """A line for each loss, over the seeds that it and the plain loss have: sampled in the most steps,
    and set beside the plain loss's curve over its numbers of steps. Of several recipes or pictures the
    latest row's count.
    """
    last = max(rows, key=date)
    by_name: dict[str, dict[int, dict]] = {}
    for row in alike([row for row in rows if _what(row) == _what(last)], COMMON):
        by_name.setdefault(row["variant"], {})[row["settings"]["seed"]] = row["metrics"]
    plain, counts = by_name.get(PLAIN, {}), last["settings"]["sampling"]
    compared = [name for name in COMPARED if _all_have(by_name, f"{name}/{max(counts)}")]
    scores = ("psnr_y", *compared)
    titles = [NAMES.get(name, name) for name in scores]
    gains = [f"{NAMES.get(name, name)} minus plain's at this PSNR-Y" for name in compared]
    lines = [["loss", "s a step", "steps", "seeds", *titles, *gains]]
    for name, found in by_name.items():
        seeds = sorted(found.keys() & plain.keys())
        if not seeds:
            continue
        ours = {score: _values(found, seeds, score, max(counts)) for score in scores}
        first = found[seeds[0]]
        line = [name, f"{first['step_seconds']:.3f}", f"{first['training_steps']}", f"{len(seeds)}"]
        line += [f"{values.mean():.3f}" for values in ours.values()]
        for score in compared:
            curve = [
                tuple(_values(plain, seeds, axis, n) for axis in ("psnr_y", score)) for n in counts
            ]
            line.append("" if name == PLAIN else gained(ours["psnr_y"], ours[score], curve))
        lines.append(line)
    return lines


def gained(psnr: Values, score: Values, curve: list[tuple[Values, ...]]) -> str:
    """`at_equal_psnr` in words."""
    gain = at_equal_psnr(psnr, score, curve)
    return "less PSNR-Y than plain" if gain is None else gain.text()


def at_equal_psnr(psnr: Values, score: Values, curve: list[tuple[Values, ...]]) -> Interval | None:
    """Mean of `score` minus that of `curve`, (PSNR, score) of one model sampled in several ways, where
    it has the mean of `psnr`: between two ways on the straight line, beyond its highest PSNR that end.
    None for one below its lowest, in more draws than the interval leaves out: nothing is equal there.
    Seeds and pictures are drawn with replacement.
    """
    random, (seeds, pictures) = np.random.default_rng(SEED), psnr.shape
    draws = [np.ix_(range(seeds), range(pictures))]
    for _ in range(RESAMPLES):
        drawn = random.integers(seeds, size=seeds), random.integers(pictures, size=pictures)
        draws.append(np.ix_(*drawn))
    found, below = [], 0
    for drawn in draws:
        here = psnr[drawn].mean()
        points = sorted((x[drawn].mean(), y[drawn].mean()) for x, y in curve)
        below += here < points[0][0]
        theirs = np.interp(here, [x for x, _ in points], [y for _, y in points])
        found.append(score[drawn].mean() - theirs)
    tail = (1 - COVERED) / 2
    if below > tail * len(draws):
        return None
    low, high = np.quantile(found[1:], [tail, 1 - tail])
    return Interval(float(found[0]), float(low), float(high))


def _what(row: Row) -> tuple:
    """The config, and the GPU: another one does other steps in the same time."""
    return row["subject"], row["machine"]["gpu"]


def _all_have(by_name: dict[str, dict[int, dict]], name: str) -> bool:
    return all(name in metrics for found in by_name.values() for metrics in found.values())


def _values(by_seed: dict[int, dict], seeds: list[int], score: str, steps: int) -> Values:
    return np.array([by_seed[seed][f"{score}/{steps}"] for seed in seeds])
