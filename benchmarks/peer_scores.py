"""The scores of `peers`: a line each, and the one place to add one to."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from ldm_dream.scoring.dists import load_dists
from ldm_dream.scoring.lite0 import load_lite0
from ldm_dream.scoring.metrics import (
    MetricError,
    MetricUnavailable,
    consistency,
    load_lpips,
    lpips_distance,
    psnr,
    ssim,
)
from ldm_dream.scoring.niqe import niqe
from ldm_dream.scoring.set_metrics import SetMetric

from .peer_methods import SCALE

# rows and columns at the top and left: without them AlexNet's stride of four meets other pixels than
# in patches of training
CUT = 2
alexnet, lite0 = cache(load_lpips), cache(load_lite0)  # each is behind two scores
Pixels = np.ndarray  # uint8 [H, W, 3]
Score = Callable[[Pixels, Pixels, Pixels], float]  # result, original, LR picture


def cut_distance(network: nn.Module, sr: Pixels, hr: Pixels) -> float:
    return lpips_distance(network, sr[CUT:, CUT:], hr[CUT:, CUT:])


def _psnr_y(args: Namespace) -> Score:
    return lambda sr, hr, lr: psnr(sr, hr, channel="y", crop_border=SCALE)


def _ssim_y(args: Namespace) -> Score:
    return lambda sr, hr, lr: ssim(sr, hr, channel="y", crop_border=SCALE)


def _lpips(args: Namespace) -> Score:
    network = alexnet(args.lpips_weights)
    return lambda sr, hr, lr: lpips_distance(network, sr, hr)


def _lpips_cut(args: Namespace) -> Score:
    network = alexnet(args.lpips_weights)
    return lambda sr, hr, lr: cut_distance(network, sr, hr)


def _dists(args: Namespace) -> Score:
    network = load_dists(args.vgg_weights)
    return lambda sr, hr, lr: lpips_distance(network, sr, hr)


def _consistency(args: Namespace) -> Score:
    return lambda sr, hr, lr: 1e5 * consistency(sr, lr)


def _lite0(args: Namespace) -> Score:
    network = lite0()
    return lambda sr, hr, lr: lpips_distance(network, sr, hr)


def _niqe(args: Namespace) -> Score:
    return lambda sr, hr, lr: niqe(sr, SCALE)


def _frechet_lite0(args: Namespace) -> SetMetric:
    return lite0().set_metric()


# name -> what loads it, or raises MetricUnavailable
SCORES: dict[str, Callable[[Namespace], Score]] = {
    "psnr_y": _psnr_y,
    "ssim_y": _ssim_y,
    "lpips": _lpips,
    "lpips_cut": _lpips_cut,
    "dists": _dists,
    "lite0_distance": _lite0,
    "niqe": _niqe,
    "consistency_x1e5": _consistency,
}
# likewise, of all results of a method against all originals
SET_SCORES: dict[str, Callable[[Namespace], SetMetric]] = {
    "frechet_efficientnet_lite0": _frechet_lite0
}


class Scorer:
    """The scores whose packages and weights are here; of another one the reason is printed. names:
    of those of each picture (default: all).
    """

    def __init__(self, args: Namespace, names: Collection[str] | None = None):
        wanted = {name: load for name, load in SCORES.items() if names is None or name in names}
        self.scores, self.sets = _loaded(wanted, args), _loaded(SET_SCORES, args)

    def add(self, found: Found, sr: Pixels, hr: Pixels, lr: Pixels) -> None:
        """One picture. A score that it does not have is printed."""
        for name, score in self.scores.items():
            try:
                found.values.setdefault(name, []).append(score(sr, hr, lr))
            except MetricError as reason:
                print(f"no {name}: {reason}")
        for name, metric in self.sets.items():
            found.features.setdefault(name, []).append((metric.features(sr), metric.features(hr)))
        found.count += 1

    def metrics(self, found: Found) -> dict[str, float | list[float]]:
        """Of each score that every picture has: one value a picture; of a set, one value."""
        shared = {name: x for name, x in found.values.items() if len(x) == found.count}
        sets: dict[str, float | list[float]] = {}
        for name, metric in self.sets.items():
            sr, hr = (torch.stack(side) for side in zip(*found.features[name]))
            try:
                sets |= metric.compare(sr, hr)
            except MetricUnavailable as reason:
                print(f"no {name}: {reason}")
        return shared | sets


@dataclass
class Found:
    """What the pictures of one set in one wear brought, by name of the score."""

    values: dict[str, list[float]] = field(default_factory=dict)
    features: dict[str, list[tuple[Tensor, Tensor]]] = field(default_factory=dict)
    count: int = 0


T = TypeVar("T")


def _loaded(table: Mapping[str, Callable[[Namespace], T]], args: Namespace) -> dict[str, T]:
    found = {}
    for name, load in table.items():
        try:
            found[name] = load(args)
        except MetricUnavailable as reason:
            print(f"no {name}: {reason}")
    return found
