"""Ways to enlarge a picture four times that `peers` sets beside each other, each in a process of its
own, so that one's memory is not another's.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from ldm_dream.dtypes import name_of
from ldm_dream.interchange.checkpoint_file import read_checkpoint
from ldm_dream.scoring.evaluation import bicubic
from ldm_dream.training.memory import status_kib
from ldm_dream.upscaling.upscaler import Upscaler

from . import ncnn_models, peer_networks
from .choices import BICUBIC, PEERS, Ncnn

SCALE = 4
Pixels = np.ndarray  # uint8 [H, W, 3], RGB
Upscale = Callable[[Pixels], Pixels]


class Loaded(NamedTuple):
    """dtype: as users name it; None: what its runtime takes."""

    upscale: Upscale
    dtype: str | None


class Method(NamedTuple):
    """load: number of threads -> the method, loaded. Raises UserError without a package or file."""

    name: str
    load: Callable[[int], Loaded]
    settings: dict[str, Any] = {}


def peers(weights: Path) -> dict[str, Method]:
    """By their short names. weights: folder with files that no package brings."""
    found = {BICUBIC: Method(BICUBIC, _bicubic)}
    for short, peer in PEERS.items():
        if isinstance(peer, Ncnn):
            load = partial(_ncnn, peer.package, peer.shares)
        else:
            load = partial(_network, peer.network, weights / peer.file)
        found[short] = Method(peer.name, load)
    return found


def ours(model: str, steps: int | None) -> Method:
    name = f"{model}, {steps or 'default'} steps"
    return Method(name, partial(_ours, model, steps), {"model": model, "steps": steps})


def _bicubic(threads: int) -> Loaded:
    return Loaded(partial(bicubic, scale=SCALE), "fp32")


def _ncnn(package: str, shares: dict[str, float], threads: int) -> Loaded:
    """Weighted mean of the pixels of networks, rounded once."""
    networks = {stem: ncnn_models.load(package, stem, threads) for stem in shares}

    def upscale(lr: Pixels) -> Pixels:
        planes = lr.transpose(2, 0, 1) / np.float32(255)
        made = sum(share * networks[stem](planes).clip(0, 1) for stem, share in shares.items())
        return _pixels(np.asarray(made))

    return Loaded(upscale, None)


def _network(kind: str, path: Path, threads: int) -> Loaded:
    network = getattr(peer_networks, kind)().eval().requires_grad_(False)
    network.load_state_dict(read_checkpoint(path))

    def upscale(lr: Pixels) -> Pixels:
        planes = torch.from_numpy(lr).permute(2, 0, 1)[None] / 255
        return _pixels(network(planes)[0].clamp(0, 1).numpy())

    return Loaded(upscale, "fp32")


def _ours(model: str, steps: int | None, threads: int) -> Loaded:
    upscaler = Upscaler.from_pretrained(model, "cpu")
    return Loaded(lambda lr: upscaler(lr, scale=SCALE, steps=steps), name_of(upscaler.dtype))


def _pixels(planes: np.ndarray) -> Pixels:
    """[3, H, W] in [0, 1] -> uint8 [H, W, 3]"""
    return (planes * 255).round().astype(np.uint8).transpose(1, 2, 0)


# ------------------------------------------------------------------------ in the process of a method


_upscale: dict[str, Upscale] = {}  # of this process, by name
_before: dict[str, int | None] = {}  # KiB that it held before the method was loaded


def begin(name: str, methods: dict[str, Method], threads: int) -> str | None:
    """-> dtype of the method, which is loaded from now on."""
    torch.set_num_threads(threads)
    _before[name] = status_kib("VmRSS")
    _upscale[name], dtype = methods[name].load(threads)
    return dtype


def run(name: str, lr: Pixels) -> tuple[Pixels, float]:
    """-> the result, seconds."""
    start = time.perf_counter()
    sr = _upscale[name](lr)
    return sr, time.perf_counter() - start


def memory(name: str) -> dict[str, float]:
    """peak_mib: most resident memory so far beyond what was held before the method was loaded;
    nothing where the system does not tell.
    """
    peak, before = status_kib("VmHWM"), _before[name]
    return {} if peak is None or before is None else {"peak_mib": (peak - before) / 2**10}
