"""Most memory while a large picture is upscaled and written, with networks of no cost.

    python -m benchmarks large-picture --height 4000 --width 6000 --scale 4 --steps 1 --ext jpg

What the networks cost in time is left out; what their results hold is not, nor what a decoder takes
for a tile on the way. So a picture of 24 megapixels takes minutes instead of hours.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ldm_dream.data.images import Image, write_image
from ldm_dream.heap import give_back_freed_memory
from ldm_dream.upscaling.upscaler import Upscaler

DECODER_BYTES = 1.2e9 / 288**2  # a latent pixel of a tile, of the bundled model in float32


class FreeAutoencoder(torch.nn.Module):
    factor, bound, channels = 4, None, 8

    def encode(self, x: Tensor) -> Tensor:
        mean = F.avg_pool2d(x, self.factor).mean(1, keepdim=True)
        return mean.expand(-1, self.channels, -1, -1).contiguous()

    def decode(self, z: Tensor) -> Tensor:
        torch.zeros(int(DECODER_BYTES * z.shape[-1] * z.shape[-2] / 4)).add_(1)
        return F.interpolate(z[:, :3], scale_factor=self.factor)


def main(args: argparse.Namespace) -> None:
    give_back_freed_memory()
    torch.set_num_threads(1)
    upscaler = Upscaler.from_pretrained(device="cpu")
    upscaler.engine.autoencoder = FreeAutoencoder()  # pyright: ignore[reportAttributeAccessIssue]
    call = lambda z_t, emb, *inputs: z_t[:, : FreeAutoencoder.channels]  # noqa: E731
    upscaler.engine.denoiser.call = call  # pyright: ignore[reportAttributeAccessIssue]
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (args.height, args.width, 3), dtype=np.uint8)
    begun = time.perf_counter()
    result = upscaler(Image(picture), scale=args.scale, steps=args.steps)
    say(f"{picture.shape} -> {result.pixels.shape}", begun)
    with tempfile.TemporaryDirectory() as folder:
        write_image(Path(folder) / f"x.{args.ext}", result)
    say(f"written as {args.ext}", begun)


def say(what: str, begun: float) -> None:
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    print(f"{what}: {most:.2f} GB at the most, {time.perf_counter() - begun:.0f} s", flush=True)
