"""Pictures a second of a folder: one after the other, and with reading and writing beside the model.

    python -m benchmarks folder --pictures 16 --size 256 --seconds 0.3

Without `--model` the model is a GPU of that speed: it takes its seconds and no core. The pictures are
smooth noise, as hard to compress as photos, and both ways take turns.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np

from ldm_dream.data.images import Image, write_image
from ldm_dream.dtypes import name_of
from ldm_dream.upscaling.folder import Work, upscale_all
from ldm_dream.upscaling.planning import Job, Naming, plan_jobs
from ldm_dream.upscaling.sizes import Size
from ldm_dream.upscaling.upscaler import Upscaler

SCALE = 4


def main(args: argparse.Namespace) -> None:
    work = Work(_model(args), Size(SCALE))
    with tempfile.TemporaryDirectory() as place:
        source, out = Path(place, "in"), Path(place, "out")
        for number in range(args.pictures):
            write_image(source / f"{number}.png", _picture(args.size, number))
        jobs = plan_jobs(source, out, naming=Naming(ext=args.ext)).jobs
        _seconds(jobs[:1], work)
        turns = [
            (sum(_seconds([job], work) for job in jobs), _seconds(jobs, work))
            for _ in range(args.repetitions)
        ]
    one, overlapped = (args.pictures / median(seconds) for seconds in zip(*turns))
    print(f"one after the other: {one:.2f} pictures a second")
    print(f"with overlap: {overlapped:.2f} pictures a second, {overlapped / one:.2f} times as many")


def _model(args: argparse.Namespace) -> Callable[[Image], Image]:
    if args.model:
        upscaler = Upscaler.from_pretrained(args.model, args.device)
        print(f"{args.model} in {name_of(upscaler.dtype)}")
        return lambda image: upscaler(image, scale=SCALE)

    def of_a_gpu(image: Image) -> Image:
        time.sleep(args.seconds)
        return replace(image, pixels=image.pixels.repeat(SCALE, 0).repeat(SCALE, 1))

    return of_a_gpu


def _picture(side: int, seed: int) -> Image:
    noise = np.random.default_rng(seed).integers(0, 256, (side, side, 3))
    for axis in (0, 1):
        noise = sum(np.roll(noise, shift, axis) for shift in range(8)) // 8
    return Image(np.asarray(noise, np.uint8))


def _seconds(jobs: list[Job], work: Work) -> float:
    begun = time.perf_counter()
    for result in upscale_all(jobs, work):
        assert result.status == "done", result
    return time.perf_counter() - begun
