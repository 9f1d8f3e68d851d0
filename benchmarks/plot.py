"""Curves out of the JSON lines of steps-quality and sampling: quality and seconds against sampling
steps, one SVG a file.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ldm_dream.errors import UserError
from ldm_dream.training.curves import Curve, write_svg

from .record import Row, read

QUALITY = ("psnr_y", "ssim_y", "lpips")


def main(args: argparse.Namespace) -> None:
    for name in args.files:
        path = Path(name)
        curves = collect(read(path))
        if not curves:
            raise UserError(
                f"{path}: no rows of steps-quality or sampling in it; only these have a curve."
            )
        target = Path(args.output) / f"{path.stem}.svg"
        write_svg(curves, target)
        print(target)


def collect(rows: list[Row]) -> dict[str, dict[str, Curve]]:
    """Method -> figure -> curve over steps. Rows are a history: of a step measured twice the later
    counts.
    """
    found: dict[str, dict[str, dict[int, float]]] = {}
    for row in rows:
        settings, metrics, name = row["settings"], row["metrics"], row["subject"]
        if not settings.get("steps"):
            continue
        if row["benchmark"] == "steps-quality":
            figures = {key: metrics[key] for key in QUALITY if key in metrics}
        elif row["benchmark"] == "sampling":
            tile = f"tile {settings['tile'] or 'auto'}, {settings['batch_size']} at a time"
            name = f"{name}, {settings['size']} px, {tile}, {row['machine']['gpu'] or 'CPU'}"
            figures = {"seconds": metrics["seconds"]}
        else:
            continue
        if settings.get("dtype", "fp32") != "fp32":
            name = f"{name}, {settings['dtype']}"
        for figure, value in figures.items():
            curve = found.setdefault(name, {}).setdefault(figure, {})
            curve[settings["steps"]] = value
    return {
        method: {name: sorted(curve.items()) for name, curve in curves.items()}
        for method, curves in found.items()
    }
