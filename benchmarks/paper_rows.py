"""Rows of `paper` by what was scored, and the difference of two of them over seeds and pictures."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from typing import NamedTuple

from ldm_dream.scoring.bootstrap import Interval, interval_over_seeds

from .discrepancy import SAMPLING, TRAINING
from .paper_systems import DREAM, STANDARD, STEPS, TIME, Point
from .record import Row, alike, date

DIGITS = {
    "psnr_y": 2,
    "ssim_y": 3,
    "lpips": 3,
    "lite0_distance": 3,
    "frechet_efficientnet_lite0": 1,
    "consistency_x1e5": 1,
}
TITLES = {
    "psnr_y": "PSNR-Y, dB",
    "ssim_y": "SSIM-Y",
    "lpips": "LPIPS",
    "lite0_distance": "lite0 distance",
    "frechet_efficientnet_lite0": "Frechet distance, lite0",
    "consistency_x1e5": "consistency x 1e5",
}
HIGHER_IS_BETTER = ("psnr_y", "ssim_y")


class Models(NamedTuple):
    """The models of one arm at one point: metrics of each seed."""

    by_seed: dict[int | None, dict]

    def of(self, seeds: Iterable[int | None]) -> Models:
        return Models({seed: self.by_seed[seed] for seed in sorted(seeds, key=str)})

    def values(self, name: str) -> list[float]:
        """A value a seed: of scores of each picture their mean."""
        found = (metrics[name] for metrics in self.by_seed.values() if name in metrics)
        return [statistics.fmean(x) if isinstance(x, list) else x for x in found]

    def mean(self, name: str) -> str:
        """Over the seeds; empty where there is none."""
        values = self.values(name)
        return f"{statistics.fmean(values):.{DIGITS[name]}f}" if values else ""

    def text(self, name: str) -> str:
        """That, and how far the seeds lie apart."""
        values, mean = self.values(name), self.mean(name)
        if not values:
            return ""
        apart = (max(values) - min(values)) / 2
        return f"{mean} ± {apart:.{DIGITS[name]}f}" if len(values) > 1 else mean


COMMON = ("set", "full", "pictures", "count", "crop")  # settings, without which rows do not compare


class Results:
    """Rows of one scale; of what was measured twice the later row counts. Of a system whose rows are
    of several recipes or pictures only those count that are as the latest.
    """

    def __init__(self, rows: Iterable[Row], scale: str):
        self.scale = scale
        of_scale = (row for row in rows if row["settings"]["scale"] == scale)
        self.rows = alike(sorted(of_scale, key=date), COMMON)
        self.found: dict[tuple, dict[int | None, dict]] = {}
        for row in self.rows:
            asked = row["settings"]
            at = asked.get("kind") or asked.get("enlarge")
            if "share" in asked:
                at = Point(*(asked[name] for name in Point._fields))
            models = self.found.setdefault((row["subject"], row["variant"], at), {})
            models[asked["seed"]] = row["metrics"]

    def at(self, system: str, arm: str, point: Point | str | int | None) -> Models:
        """Without models where it was not measured. point: of the discrepancy its kind, of bicubic
        the scale, or None for the system's own.
        """
        return Models(self.found.get((system, arm, point), {}))

    def full(
        self, system: str, arm: str, steps: int, equal: str = STEPS, enlarge: int | None = None
    ) -> Models:
        return self.at(system, arm, Point(1.0, equal, steps, enlarge))


def difference(a: Models, b: Models, name: str) -> Interval | None:
    """Of the means of a - b, over the seeds that both have; None where there is none, or no score of
    each picture.
    """
    seeds = [seed for seed in a.by_seed if seed in b.by_seed]
    x, y = ([models.by_seed[seed].get(name) for seed in seeds] for models in (a, b))
    x, y = ([values for values in side if isinstance(values, list)] for side in (x, y))
    return interval_over_seeds(x, y) if seeds and len(x) == len(y) == len(seeds) else None


def sampled(rows: list[Row]) -> list[list[str]]:
    """Rows of one system: scores of standard and p = 1, trained for equal time, by steps of sampling."""
    results, system = Results(rows, rows[0]["settings"]["scale"]), rows[0]["subject"]
    shown = ("psnr_y", "ssim_y", "lpips", "frechet_efficientnet_lite0")
    compared = shown[:3]
    head = [f"{arm}: PSNR-Y / SSIM-Y / LPIPS / Frechet" for arm in (STANDARD, DREAM)]
    lines = [["sampling steps", *head, *(f"{TITLES[name]}: {DREAM} gains" for name in compared)]]
    counts = {row["settings"]["steps"] for row in rows if "share" in row["settings"]}
    for steps in sorted(counts):
        plain = results.full(system, STANDARD, steps, TIME)
        dream = results.full(system, DREAM, steps)
        if plain.by_seed and dream.by_seed:
            cells = [" / ".join(map(models.mean, shown)) for models in (plain, dream)]
            gains = [signed(difference(dream, plain, name), name) for name in compared]
            lines.append([str(steps), *cells, *gains])
    return lines


def gap(models: Models) -> Models:
    """Of `discrepancy` rows: index -> how much larger the error of the estimate is in sampling."""
    start, found = f"mse/{SAMPLING}/", {}
    for seed, metrics in models.by_seed.items():
        at = [name.removeprefix(start) for name in metrics if name.startswith(start)]
        pairs = {t: (metrics[start + t], metrics[f"mse/{TRAINING}/{t}"]) for t in at}
        found[seed] = {t: [a - b for a, b in zip(*both)] for t, both in pairs.items()}
    return Models(found)


def indices(models: Models) -> list[str]:
    """Those that every seed has, the cleanest first."""
    shared = set.intersection(*(set(metrics) for metrics in models.by_seed.values()))
    return sorted(shared, key=int)


def signed(found: Interval | None, name: str) -> str:
    return "" if found is None else found.text(DIGITS[name])
