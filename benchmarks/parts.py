"""Where the time of an upscaled picture goes: encoder, network, decoder and the rest, in seconds a
megapixel of the result, and how near each comes to the best convolution of the same run.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from ldm_dream.dtypes import name_of
from ldm_dream.errors import UserError
from ldm_dream.upscaling.diffusion import Diffusion
from ldm_dream.upscaling.upscaler import Upscaler

from .conv_peak import conv_peak
from .record import Measured
from .tables import finish

REST = "the rest"


def main(args: argparse.Namespace) -> None:
    upscaler = Upscaler.from_pretrained(args.model, args.device, args.dtype)
    engine = upscaler.engine
    if not isinstance(engine, Diffusion):
        raise UserError(f"{args.model} has no such parts; name a diffusion model of this project.")
    picture = np.random.default_rng(0).integers(0, 256, (args.size, args.size, 3), dtype=np.uint8)

    def upscale() -> None:
        upscaler(picture, steps=args.steps)

    upscale()
    flop = flop_of_parts(engine, upscale)
    found: defaultdict[str, list[float]] = defaultdict(list)
    for _ in range(args.repetitions):
        for part, seconds in seconds_of_parts(engine, upscale).items():
            found[part].append(seconds)
    peak = conv_peak(engine.device.type, engine.dtype)
    megapixels = (args.size * upscaler.scale) ** 2 / 1e6
    whole = sum(statistics.median(seconds) for seconds in found.values())
    asked = {"size": args.size, "steps": args.steps, "dtype": name_of(engine.dtype)}
    rows = []
    for part, times in found.items():
        median = statistics.median(times)
        metrics = {"seconds_per_megapixel": median / megapixels, "share": median / whole}
        if part in flop:
            metrics |= {
                "gflop_per_megapixel": flop[part] / megapixels / 1e9,
                "flop_per_second": flop[part] / median,
                "conv_flop_per_second": peak,
            }
        rows.append(Measured(args.model, part, asked, metrics))
    finish(args, "parts", rows)


def seconds_of_parts(engine: Diffusion, upscale: Callable[[], None]) -> dict[str, float]:
    """Of one picture."""
    spent: defaultdict[str, float] = defaultdict(float)

    def timed(part: str, call: Callable) -> Callable:
        def run(*args: Any, **kwargs: Any) -> Any:
            start = _now(engine.device)
            made = call(*args, **kwargs)
            spent[part] += _now(engine.device) - start
            return made

        return run

    start = _now(engine.device)
    _with_parts(engine, timed, upscale)
    spent[REST] = _now(engine.device) - start - sum(spent.values())
    return dict(spent)


def flop_of_parts(engine: Diffusion, upscale: Callable[[], None]) -> dict[str, int]:
    """Of convolutions, matrix products and attention, of one picture."""
    counted: defaultdict[str, int] = defaultdict(int)

    def counting(part: str, call: Callable) -> Callable:
        def run(*args: Any, **kwargs: Any) -> Any:
            with FlopCounterMode(display=False) as counter:
                made = call(*args, **kwargs)
            counted[part] += counter.get_total_flops()
            return made

        return run

    _with_parts(engine, counting, upscale)
    return dict(counted)


def _with_parts(
    engine: Diffusion, wrap: Callable[[str, Callable], Callable], upscale: Callable[[], None]
) -> None:
    """Runs `upscale` while each part of the engine is wrapped."""
    denoiser, autoencoder = engine.denoiser, engine.autoencoder
    parts = (
        ("encoder", autoencoder, "encode"),
        ("network", denoiser, "call"),
        ("decoder", autoencoder, "decode"),
    )
    kept = [(owner, name, getattr(owner, name)) for _, owner, name in parts]
    try:
        for part, owner, name in parts:
            object.__setattr__(owner, name, wrap(part, getattr(owner, name)))
        upscale()
    finally:
        for owner, name, call in kept:
            object.__setattr__(owner, name, call)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
