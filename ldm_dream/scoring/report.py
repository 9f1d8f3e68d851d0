"""Rows of scores -> means, their table, and a report that standard JSON can hold.

A PSNR of equal pictures is infinite. JSON has no such number, and one would make every mean
infinite: in the report it is null, the row names it in `infinite`, and a mean is over the other
pictures, with the count of those it leaves out in the report's `infinite`; null where none is left.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ldm_dream.errors import shown
from ldm_dream.scoring.bootstrap import paired_interval
from ldm_dream.writing import whole_file

Means = dict[str, dict[str, float | None]]  # method -> metric -> mean
_LABELS = ("picture", "method")


def means(rows: list[dict]) -> Means:
    """Of the metrics that every picture of the method has, over the finite values."""
    by_method: dict[str, list[dict]] = {}
    for row in rows:
        by_method.setdefault(row["method"], []).append(row)
    return {method: _mean(own) for method, own in by_method.items()}


def infinite(rows: list[dict]) -> dict[str, dict[str, int]]:
    """Method -> metric -> pictures whose value is infinite; only those above 0."""
    found: dict[str, dict[str, int]] = {}
    for row in rows:
        for metric in _infinite(row):
            counts = found.setdefault(row["method"], {})
            counts[metric] = counts.get(metric, 0) + 1
    return found


def differences(rows: list[dict]) -> dict[str, dict[str, dict[str, float]]]:
    """Of two methods, "second minus first" -> metric -> mean, low and high of `paired_interval`,
    for the finite metrics of every picture; {} for another number of methods, or for one picture.
    """
    by_method: dict[str, dict[str, dict]] = {}
    for row in rows:
        by_method.setdefault(row["method"], {})[row["picture"]] = row
    if len(by_method) != 2:
        return {}
    (first, old), (second, new) = by_method.items()
    pairs = [(old[picture], new[picture]) for picture in old if picture in new]
    if len(pairs) < 2:
        return {}
    shared = [
        key
        for key in pairs[0][0]
        if key not in _LABELS
        and all(math.isfinite(row.get(key, math.nan)) for p in pairs for row in p)
    ]
    intervals = {
        key: paired_interval([b[key] for _, b in pairs], [a[key] for a, _ in pairs])._asdict()
        for key in shared
    }
    return {f"{second} minus {first}": intervals}


def plain_row(row: dict) -> dict:
    """A row as JSON takes it."""
    names = _infinite(row)
    return row | dict.fromkeys(names) | ({"infinite": names} if names else {})


def write_report(path: Path, report: dict) -> None:
    """As standard JSON. Raises WriteError."""
    with whole_file(path) as draft:
        draft.write_text(json.dumps(report, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def report_text(report: dict) -> str:
    """Table, then one line a metric: its protocol, or why it is absent; then what is left out, and
    how sure the differences of two methods are.
    """
    protocol = dict(report["protocol"])
    head = f"protocol {protocol.pop('name')}, x{report['scale']}, HR cut to its multiples; mean of {report['pictures']} pictures:"
    lines = [*table(report["means"]).splitlines(), head]
    lines += [f"  {metric}: {text}" for metric, text in protocol.items()]
    lines += [f"  {metric}: not computed: {reason}" for metric, reason in report["absent"].items()]
    for method, counts in report["infinite"].items():
        lines += [
            f"  {metric} of {method}: {n} equal the original, which is infinite; not in the mean"
            for metric, n in counts.items()
        ]
    for methods, intervals in report["differences"].items():
        lines.append(f"{methods}, mean and its 95 % interval (paired bootstrap over pictures):")
        lines += [
            f"  {metric}: {found['mean']:+.4f} [{found['low']:+.4f}, {found['high']:+.4f}]"
            for metric, found in intervals.items()
        ]
    lines += [f"  note: {note}" for note in report["notes"]]
    return "\n".join(map(shown, lines))


def table(averages: Mapping[str, Mapping[str, float | None]]) -> str:
    """Text table of `means`; a null is the mean of infinite values alone."""
    columns = {key: max(10, len(key) + 2) for row in averages.values() for key in row}
    lines = [f"{'method':24}" + "".join(f"{c:>{width}}" for c, width in columns.items())]
    for name, row in averages.items():
        cells = (f"{_cell(row, c):>{width}}" for c, width in columns.items())
        lines.append(f"{shown(name):24}" + "".join(cells))
    return "\n".join(lines)


def _cell(row: Mapping[str, float | None], column: str) -> str:
    if column not in row:
        return "-"
    value = row[column]
    return "inf" if value is None else f"{value:.3f}"


def _infinite(row: dict) -> list[str]:
    return [name for name, value in row.items() if isinstance(value, float) and math.isinf(value)]


def _mean(rows: list[dict]) -> dict[str, float | None]:
    shared = [key for key in rows[0] if key not in _LABELS and all(key in row for row in rows)]
    values = {key: [row[key] for row in rows if math.isfinite(row[key])] for key in shared}
    return {key: float(np.mean(found)) if found else None for key, found in values.items()}
