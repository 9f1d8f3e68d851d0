"""Rows of `peers` as lines of tables: pictures by pictures, method by method, and what ours is better by."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator
from typing import Any

from ldm_dream.scoring.bootstrap import paired_interval

from .choices import PEERS
from .record import Row

COSTS = {"seconds_per_megapixel": "s per MP", "peak_mib": "memory, MiB"}
NAMES = {
    "psnr_y": "PSNR-Y",
    "ssim_y": "SSIM-Y",
    "lpips": "LPIPS",
    "lpips_cut": "LPIPS, 2 px cut",
    "dists": "DISTS",
    "consistency_x1e5": "consistency x 1e5",
}
HIGHER_IS_BETTER = {"psnr_y", "ssim_y"}
ALWAYS = [PEERS[short].name for short in ("real-esrgan", "clear-reality")]  # made for photos


def peers(rows: list[Row]) -> list[list[str]]:
    """A column for every score that some row has: the mean over the pictures; of seconds the median
    of the repetitions.
    """
    found = dict.fromkeys(name for row in rows for name in row["metrics"] if name not in COSTS)
    lines = [
        ["pictures", "method", "dtype", *(NAMES.get(name, name) for name in found), *COSTS.values()]
    ]
    for row in by_pictures(rows):
        settings, metrics = row["settings"], row["metrics"]
        where = f"{settings['count']} of {row['variant']}"
        scores = [_mean(metrics[name]) if name in metrics else "" for name in found]
        costs = [_cost(metrics, name) for name in COSTS]
        lines.append([where, row["subject"], settings.get("dtype") or "", *scores, *costs])
    return lines


def differences(rows: list[Row]) -> list[list[str]]:
    """For every score of two pictures or more that a model of ours has: ours minus the peer whose mean
    is best, and minus each of `ALWAYS`, on the same pictures in the same wear.
    """
    peers: dict[tuple, dict[str, list[float]]] = {}  # pictures, score -> peer -> values
    for row in rows:
        if not _is_ours(row):
            for name, values in scores_of_each_picture(row):
                peers.setdefault((_pictures(row), name), {})[row["subject"]] = values
    minus = [f"minus {name}" for name in ALWAYS]
    lines = [["pictures", "method", "score", "best peer", "ours minus it", *minus]]
    for row in filter(_is_ours, by_pictures(rows)):
        where = f"{row['settings']['count']} of {row['variant']}"
        for name, values in scores_of_each_picture(row):
            found = peers.get((_pictures(row), name))
            if not found:
                continue
            choose = max if name in HIGHER_IS_BETTER else min
            best, _ = choose(found.items(), key=lambda peer: statistics.fmean(peer[1]))
            theirs = [found.get(peer) for peer in (best, *ALWAYS)]
            gains = [paired_interval(values, peer).text() if peer else "" for peer in theirs]
            lines.append([where, row["subject"], NAMES.get(name, name), best, *gains])
    return lines


def by_pictures(rows: list[Row]) -> list[Row]:
    return sorted(rows, key=_pictures)


def _is_ours(row: Row) -> bool:
    return "model" in row["settings"]


def _pictures(row: Row) -> tuple:
    """What rows of the same pictures have in common, the wear among it."""
    asked = row["settings"]
    cut = tuple(asked.get("folders", ())), asked.get("crop") or 0
    return asked["pictures"], row["variant"], asked["count"], *cut


def scores_of_each_picture(row: Row) -> Iterator[tuple[str, list[float]]]:
    """Scores with a finite value for each of at least two pictures."""
    for name, values in row["metrics"].items():
        if name in COSTS or not isinstance(values, list) or len(values) < 2:
            continue
        if all(map(math.isfinite, values)):
            yield name, values


def _mean(values: float | list[float]) -> str:
    return f"{statistics.fmean(values) if isinstance(values, list) else values:.3f}"


def _cost(metrics: dict[str, Any], name: str) -> str:
    value = metrics.get(name)
    if value is None:
        return ""
    return f"{statistics.median(value):.3f}" if isinstance(value, list) else f"{value:.0f}"
