"""The curves of training runs, from their `metrics.jsonl`: one SVG, which every browser shows, or
TensorBoard's event files.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from html import escape
from pathlib import Path

from ldm_dream.errors import UserError
from ldm_dream.training.log import METRICS
from ldm_dream.writing import check_folder, check_outputs, whole_file, whole_folder

log = logging.getLogger(__name__)

Curve = list[tuple[int, float]]  # (step, value), steps rising
# Okabe and Ito: for every eye
COLORS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#e69f00",
    "#56b4e9",
    "#000000",
    "#999999",
)
WIDTH, HEIGHT, LEFT, TOP, COLUMNS = 480, 240, 64, 28, 2  # of a panel, and its margins, in pixels
NO_CURVE = ("step", "eta_s")
LARGEST = 1e300  # of what is drawn: a difference of two is still a number


class PlotError(UserError, ValueError):
    """Runs that cannot be drawn; its text is complete for the user."""


def read_runs(run_dirs: list[Path]) -> dict[str, dict[str, Curve]]:
    """Curves of each run, by the name of its folder, with as many of the folders above it as tell
    two of one name apart. A run that is given twice counts once.
    """
    places = list(dict.fromkeys(run_dir.resolve() for run_dir in run_dirs))
    length = next(
        n
        for n in range(1, max(len(place.parts) for place in places) + 1)
        if len({place.parts[-n:] for place in places}) == len(places)
    )
    # a step back in a name would lead out of the folder of event files
    return {"/".join(place.parts[-length:]).strip("/"): read_curves(place) for place in places}


def read_curves(run_dir: Path) -> dict[str, Curve]:
    """Curves of a run, by name, NaN and infinite values included. Of a step that was logged twice,
    before a stop and after it, the later counts; a line that is not whole is named and passed over.
    """
    path = run_dir / METRICS
    if not path.is_file():
        raise PlotError(f"{run_dir}: no metrics.jsonl in it; give the --run-dir of a training run.")
    found: dict[str, dict[int, float]] = {}
    text = path.read_text(encoding="utf-8", errors="replace")
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            step, values = _row(line)
        # a run that was killed while it wrote, or a file that is none of ours
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            log.warning(
                "%s: line %d is no row of numbers with a step and is passed over.", path, number
            )
            continue
        for name, value in values.items():
            found.setdefault(name, {})[step] = value
    if not found:
        raise PlotError(
            f"{path}: no row of numbers in it yet; wait until the run has logged one (train.log_every)."
        )
    return {name: sorted(points.items()) for name, points in found.items()}


def _row(line: str) -> tuple[int, dict[str, float]]:
    """Step and values; a null, as JSON writes what is no number, is NaN. Raises one of several
    errors for anything else.
    """
    row = json.loads(line)
    step, values = row["step"], {k: v for k, v in row.items() if k not in NO_CURVE}
    if type(step) is not int or not 0 <= step < 2**53:
        raise ValueError(f"step {step!r}")
    if not all(v is None or type(v) in (int, float) for v in values.values()):
        raise TypeError(f"{values} are not all numbers")
    return step, {k: math.nan if v is None else float(v) for k, v in values.items()}


def check_svg(path: Path, run_dirs: list[Path]) -> None:
    """Raises PlotError or WriteError unless an SVG may be written there."""
    if path.suffix.lower() != ".svg":
        raise PlotError(f"{path}: the plot is an SVG; name a file that ends in .svg.")
    check_outputs([path], [run_dir / METRICS for run_dir in run_dirs])


def write_tensorboard(runs: Mapping[str, dict[str, Curve]], folder: Path) -> None:
    """Event files in folder/<run>, one a run; those of an earlier call are replaced. Raises
    WriteError for a folder that holds anything else, before any is written.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise PlotError(
            "TensorBoard's files need the package tensorboard: pip install 'ldm_dream[train]'."
        ) from None
    mark = "ldm_dream.txt"
    for run in runs:
        check_folder(folder / run, holds=mark)
    for run, curves in runs.items():
        with whole_folder(folder / run) as draft, SummaryWriter(draft) as writer:
            (draft / mark).write_text(
                f"Event files of {run}, by ldm-dream plot.\n", encoding="utf-8"
            )
            for name, points in curves.items():
                for step, value in points:
                    writer.add_scalar(name, value, step)


def write_svg(runs: Mapping[str, dict[str, Curve]], path: Path) -> None:
    """One panel a curve, one colour a run."""
    with whole_file(path) as draft:
        draft.write_text(svg(runs), encoding="utf-8")


# ------------------------------------------------------------------------------------------ drawing


def svg(runs: Mapping[str, dict[str, Curve]]) -> str:
    names = list(dict.fromkeys(name for curves in runs.values() for name in curves))
    rows = -(-len(names) // COLUMNS)
    height = HEIGHT * rows + 20 * len(runs)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH * COLUMNS}" height="{height}" font-family="sans-serif" '
        'font-size="11"><rect width="100%" height="100%" fill="white"/>'
    ]
    for i, name in enumerate(names):
        curves = {run: _finite(curves.get(name, [])) for run, curves in runs.items()}
        parts.append(
            f'<g transform="translate({i % COLUMNS * WIDTH} {i // COLUMNS * HEIGHT})">{_panel(name, curves)}</g>'
        )
    for i, run in enumerate(runs):
        y = HEIGHT * rows + 20 * i + 10
        parts.append(
            f'<path d="M{LEFT} {y}h24" stroke="{COLORS[i % len(COLORS)]}" stroke-width="2"/>'
        )
        parts.append(f'<text x="{LEFT + 32}" y="{y + 4}">{_label(run)}</text>')
    return "\n".join([*parts, "</svg>\n"])


def _label(text: str) -> str:
    """For XML, which has no control characters and no half of a pair (a name that is not UTF-8)."""
    return escape("".join(c if c.isprintable() else "?" for c in text))


def _finite(points: Curve) -> Curve:
    return [(step, value) for step, value in points if abs(value) < LARGEST]


def _panel(name: str, curves: Mapping[str, Curve]) -> str:
    """Title, ticks with a grid, a line a run."""
    points = [point for curve in curves.values() for point in curve]
    title = f'<text x="{LEFT}" y="{TOP - 10}" font-weight="bold">{_label(name)}</text>'
    if not points:
        return title + f'<text x="{LEFT}" y="{HEIGHT // 2}">no finite value</text>'
    right, bottom = WIDTH - 20, HEIGHT - 28
    (x0, x1), (y0, y1) = (_range(axis) for axis in zip(*points))

    def place(step: float, value: float) -> tuple[float, float]:
        return LEFT + (step - x0) / (x1 - x0) * (right - LEFT), bottom - (value - y0) / (
            y1 - y0
        ) * (bottom - TOP)

    parts = [title]
    for tick in ticks(x0, x1):
        x, _ = place(tick, y0)
        parts.append(f'<path d="M{x:.1f} {TOP}V{bottom}" stroke="#ddd"/>')
        parts.append(
            f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{tick:,.10g}</text>'
        )
    for tick in ticks(y0, y1):
        _, y = place(x0, tick)
        parts.append(f'<path d="M{LEFT} {y:.1f}H{right}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:.10g}</text>')
    for i, curve in enumerate(curves.values()):
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in curve))
        color = COLORS[i % len(COLORS)]
        if len(curve) == 1:
            parts.append(
                '<circle cx="{}" cy="{}" r="3" fill="{}"/>'.format(*line.split(","), color)
            )
        elif curve:
            parts.append(
                f'<polyline points="{line}" fill="none" stroke="{color}" stroke-width="1.5"/>'
            )
    return "".join(parts)


def _range(values: tuple[float, ...]) -> tuple[float, float]:
    """Least and greatest, or around the only one; two that agree in 12 digits count as one."""
    low, high = min(values), max(values)
    size = max(abs(low), abs(high))
    margin = 0 if high - low > max(size * 1e-12, 1 / LARGEST) else size / 2 or 1.0
    return low - margin, high + margin


def ticks(low: float, high: float) -> list[float]:
    """About five numbers in [low, high], 1, 2 or 5 times a power of ten apart."""
    rough = (high - low) / 5
    power = 10 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 12 - math.floor(math.log10(step))) for i in range(first, last + 1)]
