"""Rows of `peers` as lines of one table: pictures by pictures, method by method."""

from __future__ import annotations

import statistics
from typing import Any

from .record import Row

COSTS = {"seconds_per_megapixel": "s per MP", "peak_mib": "memory, MiB"}
NAMES = {"psnr_y": "PSNR-Y", "lpips": "LPIPS", "consistency_x1e5": "consistency x 1e5"}


def peers(rows: list[Row]) -> list[list[str]]:
    """A column for every score that some row has: the mean over the pictures; of seconds the median
    of the repetitions.
    """
    found = dict.fromkeys(name for row in rows for name in row["metrics"] if name not in COSTS)
    lines = [["pictures", "method", *(NAMES.get(name, name) for name in found), *COSTS.values()]]
    for row in sorted(rows, key=lambda row: (row["settings"]["pictures"], row["variant"])):
        settings, metrics = row["settings"], row["metrics"]
        where = f"{settings['count']} of {row['variant']}"
        scores = [_mean(metrics[name]) if name in metrics else "" for name in found]
        costs = [_cost(metrics, name) for name in COSTS]
        lines.append([where, row["subject"], *scores, *costs])
    return lines


def _mean(values: float | list[float]) -> str:
    return f"{statistics.fmean(values) if isinstance(values, list) else values:.3f}"


def _cost(metrics: dict[str, Any], name: str) -> str:
    value = metrics.get(name)
    if value is None:
        return ""
    return f"{statistics.median(value):.3f}" if isinstance(value, list) else f"{value:.0f}"
