"""Memory over time while a large picture is upscaled and written, by default with networks of no cost.

    python -m benchmarks large-picture --height 4000 --width 6000 --scale 4 --steps 1 --ext jpg
    python -m benchmarks large-picture --height 8000 --width 12000 --scale 4 --networks real --minutes 2

What free networks cost in time is left out; what their results hold is not, nor what a decoder takes
for a tile on the way: on a slow CPU the real ones take hours for 24 megapixels.
"""

from __future__ import annotations

import argparse
import math
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ldm_dream.data.images import Image, write_image
from ldm_dream.dtypes import name_of
from ldm_dream.training.memory import status_kib
from ldm_dream.upscaling.diffusion import Diffusion
from ldm_dream.upscaling.upscaler import Upscaler
from ldm_dream.upscaling.watch import Stopped

DECODER_BYTES = 1.2e9 / 288**2  # a latent pixel of a tile, of the bundled model in float32
BETWEEN = 30  # seconds between two lines


class FreeAutoencoder(torch.nn.Module):
    factor, bound, channels = 4, None, 8

    def encode(self, x: Tensor) -> Tensor:
        mean = F.avg_pool2d(x, self.factor).mean(1, keepdim=True)
        return mean.expand(-1, self.channels, -1, -1).contiguous()

    def decode(self, z: Tensor) -> Tensor:
        torch.zeros(int(DECODER_BYTES * z.shape[-1] * z.shape[-2] / 4)).add_(1)
        return F.interpolate(z[:, :3], scale_factor=self.factor)


class Lines:
    """A callback: a line now and then, and the end after `minutes`."""

    def __init__(self, minutes: float | None):
        self.begun, self.last = time.monotonic(), 0.0
        self.seconds = float("inf") if minutes is None else 60 * minutes

    def __call__(self, done: int, total: int, preview: object) -> bool:
        passed = time.monotonic() - self.begun
        if passed - self.last > BETWEEN:
            self.last = passed
            self.say(f"{done} of {total} network calls")
        return passed < self.seconds

    def say(self, what: str) -> None:
        passed = time.monotonic() - self.begun
        held = 1024 * (status_kib("VmRSS") or 0)
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(
            f"{passed:6.0f} s  {held / 1e9:.2f} GB, {most / 1e9:.2f} GB at the most  {what}",
            flush=True,
        )


def main(args: argparse.Namespace) -> None:
    upscaler = Upscaler.from_pretrained(device="cpu")
    if args.networks == "free":
        torch.set_num_threads(1)
        engine = upscaler.engine
        assert isinstance(engine, Diffusion)
        engine.autoencoder = FreeAutoencoder()  # pyright: ignore[reportAttributeAccessIssue]
        engine.denoiser.call = lambda z_t, emb, *inputs: z_t[:, : FreeAutoencoder.channels]
    print(f"{args.networks} networks in {name_of(upscaler.dtype)}", flush=True)
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (args.height, args.width, 3), dtype=np.uint8)
    lines = Lines(args.minutes)
    most = math.ceil(args.height * args.scale) * math.ceil(args.width * args.scale)
    try:
        result = upscaler(Image(picture), args.scale, lines, steps=args.steps, max_pixels=most)
    except Stopped as stopped:
        lines.say(str(stopped))
        return
    lines.say(f"{picture.shape} -> {result.pixels.shape}")
    with tempfile.TemporaryDirectory(dir=".") as folder:
        write_image(Path(folder) / f"x.{args.ext}", result)
    lines.say(f"written as {args.ext}")
