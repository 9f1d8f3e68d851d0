"""Seconds to upscale one picture, end to end, against its size, sampling steps, tile and tiles at a
time, in one alternating run. Pictures of the smallest size are made once before, unmeasured.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time

import numpy as np

from ldm_dream.dtypes import name_of
from ldm_dream.upscaling.upscaler import Upscaler

from .record import Measured
from .tables import finish


def main(args: argparse.Namespace) -> None:
    upscaler = Upscaler.from_pretrained(args.model, args.device, args.dtype, args.compile)
    rng = np.random.default_rng(0)
    pictures = {size: rng.integers(0, 256, (size, size, 3), dtype=np.uint8) for size in args.size}
    asked_for = (args.size, args.steps or [None], args.tile or [None], args.batch_size)
    settings: list[tuple[int, int | None, int | None, int]] = list(itertools.product(*asked_for))
    seconds: dict[tuple, list[float]] = {setting: [] for setting in settings}
    first: dict[tuple, float] = {}
    for repetition in range(args.repetitions + 1):
        for setting in settings:
            size, steps, tile, batch_size = setting
            if not repetition and size > min(args.size):
                continue
            start = time.perf_counter()
            # comes back as numpy: the device has finished
            upscaler(pictures[size], steps=steps, tile=tile, batch_size=batch_size)
            passed = time.perf_counter() - start
            if repetition:
                seconds[setting].append(passed)
            else:
                first[setting] = passed
    rows = []
    for setting in settings:
        size, steps, tile, batch_size = setting
        median = statistics.median(seconds[setting])
        asked = {"size": size, "dtype": name_of(upscaler.dtype), "compile": args.compile}
        asked |= {"steps": steps, "tile": tile, "batch_size": batch_size}
        pixels = (len(pictures[size]) * upscaler.scale) ** 2
        metrics = {"seconds": median, "megapixels_per_second": pixels / median / 1e6}
        if setting in first:
            metrics["first_seconds"] = first[setting]
        rows.append(Measured(args.model, f"{steps or 'default'} steps", asked, metrics))
    print(
        f"medians of {args.repetitions}; first pictures took {min(first.values()):.2f} to "
        f"{max(first.values()):.2f} s"
    )
    finish(args, "sampling", rows)
