"""Training samples a second by kind of pictures and number of workers, beside what a step needs.

    python -m benchmarks data --kind div2k lmdb --workers 0 1 2 4

Pictures are made: smooth shapes of all sizes with a little noise, so that they pack as photos do.
Each is visited for the first time, then out of kept pixels, and, where nothing is kept, decoded as far
as its patch needs. Every worker is there before a clock starts, and has nothing ready.

What a step needs is `--batch` samples in `--step-seconds`. The default, 0.15 s for 32 patches of 256
pixels, is the middle of what was reckoned for an H100 (0.1 to 0.2 s); no GPU has measured it yet.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from ldm_dream.config.data import BicubicConfig, BlindConfig, DataConfig
from ldm_dream.data.loader import Loader
from ldm_dream.data.pairs import PairDataset
from ldm_dream.preparing.lmdb_writer import LmdbWriter, write_meta
from ldm_dream.preparing.pictures import to_png

from .choices import DATA_KINDS, Kind
from .record import Measured
from .tables import finish

NOISE = 1.5  # grey levels; a PNG then takes as much as one of DIV2K
DISTINCT = 8  # pictures that are made; the others are copies under other names
GIB = 64.0  # more than any of the sets takes


class Timed:
    """Training data, and requests for nothing, by which a worker shows that it is there."""

    def __init__(self, pairs: PairDataset):
        self.pairs = pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def request(self, number: int, batch_size: int) -> Any:
        return None if number < 0 else self.pairs.request(number, batch_size)

    def load(self, request: Any) -> Any:
        return None if request is None else self.pairs.load(request)

    def finish(self, samples: Any, place: Any) -> Any:
        return None if samples is None else self.pairs.finish(samples, place)


def main(args: argparse.Namespace) -> None:
    measured = []
    for name in args.kind or DATA_KINDS:
        with tempfile.TemporaryDirectory() as folder:
            source = make(Path(folder), DATA_KINDS[name], args.pictures)
            for workers in args.workers:
                measured.append(measure(name, source, workers, args))
                print(f"{name}, {workers} workers: {measured[-1].metrics}", flush=True)
    finish(args, "data", measured)


def measure(name: str, source: Path, workers: int, args: argparse.Namespace) -> Measured:
    epoch = args.pictures // args.micro_batch
    first, kept = rates(_pairs(name, source, GIB), workers, [epoch, args.rounds * epoch], args)
    _, read = rates(_pairs(name, source, 0), workers, [epoch, epoch], args)
    settings = {
        "workers": workers, "pictures": args.pictures, "micro_batch": args.micro_batch,
        "batch": args.batch, "step_seconds": args.step_seconds, "rounds": args.rounds,
        "patch": DATA_KINDS[name].patch, "scale": DATA_KINDS[name].scale,
    }  # fmt: skip
    metrics = {"first_visit": first, "not_kept": read, "kept": kept}
    metrics["needed"] = args.batch / args.step_seconds
    return Measured(name, f"{workers} workers", settings, metrics)


def rates(
    pairs: PairDataset, workers: int, batches: list[int], args: argparse.Namespace
) -> list[float]:
    """Samples a second over so many batches, then over so many more, .."""
    begun, prefetch = [], 2

    def numbers() -> Iterator[int]:
        number = 0
        for count in batches:
            yield from [-1] * (2 * workers * prefetch)  # until each of them has answered
            begun.append(time.perf_counter())
            yield from range(number, number + count)
            number += count

    loader = Loader(Timed(pairs), numbers(), args.micro_batch, lambda x: x, workers, prefetch)
    ended, left = [], list(batches)
    for batch in loader:
        if batch is not None:
            left[len(ended)] -= 1
            if not left[len(ended)]:
                ended.append(time.perf_counter())
    loader.close()
    return [
        count * args.micro_batch / (end - begin) for count, begin, end in zip(batches, begun, ended)
    ]


def _pairs(name: str, source: Path, gib: float) -> PairDataset:
    kind = DATA_KINDS[name]
    degradation = BlindConfig() if kind.is_blind else BicubicConfig()
    cfg = DataConfig(train=(str(source),), patch=kind.patch, keep_gib=gib, degradation=degradation)
    return PairDataset(cfg, kind.scale, seed=0)


def make(folder: Path, kind: Kind, count: int) -> Path:
    """-> the folder or LMDB with `count` pictures."""
    made = [Image.fromarray(picture(kind.size, i)) for i in range(min(DISTINCT, count))]
    if kind.suffix == "lmdb":
        place = folder / "set.lmdb"
        writer = LmdbWriter(place)
        values = [to_png(image, 0) for image in made]
        writer.put([(f"{i:04}", values[i % len(values)]) for i in range(count)])
        writer.close()
        write_meta(place, {f"{i:04}": kind.size for i in range(count)}, 0)
        return place
    for i in range(count):
        path = folder / f"{i:04}.{kind.suffix}"
        if i < len(made):
            made[i].save(path, quality=92)  # of a JPEG; a PNG has none
        else:
            shutil.copyfile(folder / f"{i % len(made):04}.{kind.suffix}", path)
    return folder


def picture(size: tuple[int, int], seed: int) -> np.ndarray:
    """uint8 [H, W, 3]."""
    random = torch.Generator().manual_seed(seed)
    levels = torch.full((1, 3, *size), 128.0)
    for octave in range(7):
        coarse = torch.randn((1, 3, 2 << octave, 2 << octave), generator=random)
        levels += F.interpolate(coarse, size=size, mode="bilinear") * 40 / 1.7**octave
    levels += torch.randn(levels.shape, generator=random) * NOISE
    return levels.clamp(0, 255)[0].permute(1, 2, 0).to(torch.uint8).numpy()
