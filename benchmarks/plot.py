"""Curves out of the JSON lines of steps-quality and sampling: quality and seconds against sampling
steps, one SVG a file.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ldm_dream.errors import UserError
from ldm_dream.training.curves import Curve, write_svg

QUALITY = ("psnr_y", "ssim_y", "lpips")


def main(args: argparse.Namespace) -> None:
    for name in args.files:
        path = Path(name)
        try:
            rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        except (OSError, ValueError) as error:
            raise UserError(
                f"{path}: not a file of benchmark rows ({error}); give one that --json has written."
            ) from None
        curves = collect(rows)
        if not curves:
            raise UserError(
                f"{path}: no rows of steps-quality or sampling in it; only these have a curve."
            )
        target = Path(args.output) / f"{path.stem}.svg"
        write_svg(curves, target)
        print(target)


def collect(rows: list[dict]) -> dict[str, dict[str, Curve]]:
    """Method -> figure -> curve over steps. Rows are a history: of a step measured twice the later
    counts.
    """
    found: dict[str, dict[str, dict[int, float]]] = {}
    for row in rows:
        if (
            row["benchmark"] == "steps-quality"
            and (named := row["method"].rpartition(" "))[2].isdigit()
        ):
            method, steps, figures = (
                named[0],
                int(named[2]),
                {key: row[key] for key in QUALITY if key in row},
            )
        elif row["benchmark"] == "sampling" and row["steps"]:
            tile = f"tile {row['tile'] or 'auto'}, {row['batch_size']} at a time"
            method = f"{row['model']}, {row['size']} px, {tile}, {row['device']}"
            steps, figures = row["steps"], {"seconds": row["seconds"]}
        else:
            continue
        for figure, value in figures.items():
            found.setdefault(method, {}).setdefault(figure, {})[steps] = value
    return {
        method: {name: sorted(curve.items()) for name, curve in curves.items()}
        for method, curves in found.items()
    }
