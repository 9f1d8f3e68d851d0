"""Seconds to upscale one picture, end to end, against sampling steps, tile and tiles at a time, in
one alternating run.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time

import numpy as np
import torch

from ldm_dream.upscaling.upscaler import Upscaler

from .record import append


def main(args: argparse.Namespace) -> None:
    upscaler = Upscaler.from_pretrained(args.model, args.device, args.dtype, args.compile)
    picture = np.random.default_rng(0).integers(0, 256, (args.size, args.size, 3), dtype=np.uint8)
    settings = list(itertools.product(args.steps or [None], args.tile or [None], args.batch_size))
    seconds: dict[tuple, list[float]] = {setting: [] for setting in settings}
    first: dict[tuple, float] = {}
    for repetition in range(args.repetitions + 1):
        for setting in settings:
            steps, tile, batch_size = setting
            start = time.perf_counter()
            upscaler(
                picture, steps=steps, tile=tile, batch_size=batch_size
            )  # comes back as numpy: the device has finished
            passed = time.perf_counter() - start
            if repetition:
                seconds[setting].append(passed)
            else:
                first[setting] = passed
    scale = upscaler.run.scale
    print(
        f"{args.model}: {args.size}x{args.size} -> x{scale}, {args.device}, {torch.get_num_threads()} threads"
    )
    print(
        f"median of {args.repetitions}; first pictures took {min(first.values()):.2f} to {max(first.values()):.2f} s"
    )
    print(f"{'steps':>8}{'tile':>8}{'batch':>8}{'seconds':>10}{'MP/s':>8}")
    rows = []
    for steps, tile, batch_size in settings:
        median = statistics.median(seconds[steps, tile, batch_size])
        rate = (args.size * scale) ** 2 / median / 1e6
        print(f"{steps or 'model':>8}{tile or 'auto':>8}{batch_size:8}{median:10.3f}{rate:8.3f}")
        rows.append(
            {"benchmark": "sampling", "model": args.model, "size": args.size, "device": args.device, "dtype": args.dtype,
             "compiled": args.compile, "steps": steps, "tile": tile, "batch_size": batch_size, "seconds": median,
             "megapixels_per_second": rate}
        )  # fmt: skip
    append(args.json, rows)
