"""The scores of `peers`: a line each, and the one place to add one to."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable

import numpy as np

from ldm_dream.scoring.metrics import (
    MetricUnavailable,
    consistency,
    load_lpips,
    lpips_distance,
    psnr,
)

from .peer_methods import SCALE

Pixels = np.ndarray  # uint8 [H, W, 3]
Score = Callable[[Pixels, Pixels, Pixels], float]  # result, original, LR picture


def _psnr_y(args: Namespace) -> Score:
    return lambda sr, hr, lr: psnr(sr, hr, channel="y", crop_border=SCALE)


def _lpips(args: Namespace) -> Score:
    network = load_lpips(args.lpips_weights)
    return lambda sr, hr, lr: lpips_distance(network, sr, hr)


def _consistency(args: Namespace) -> Score:
    return lambda sr, hr, lr: 1e5 * consistency(sr, lr)


# name -> what loads it, or raises MetricUnavailable
SCORES: dict[str, Callable[[Namespace], Score]] = {
    "psnr_y": _psnr_y,
    "lpips": _lpips,
    "consistency_x1e5": _consistency,
}


def load_scores(args: Namespace) -> dict[str, Score]:
    """Those whose packages and weights are here; of another one the reason is printed."""
    found = {}
    for name, load in SCORES.items():
        try:
            found[name] = load(args)
        except MetricUnavailable as reason:
            print(f"no {name}: {reason}")
    return found
