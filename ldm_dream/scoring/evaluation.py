"""Scores of pictures against their HR originals: of a folder of results, or of a model run on LR
pictures, beside bicubic.

A `Protocol` decides what a number means and travels with it, printed and in JSON. `standard` is
that of SR tables (BasicSR). `dream-legacy` is that of DREAM's own code (jinxinzhou/DREAM 27a2f7f,
sr3/core/metrics.py), which departs from it: no border is cut, PSNR and SSIM are on RGB, and LPIPS
(VGG) sees pictures in [0, 1] though it was trained on [-1, 1]. DREAM's FID came from pytorch_fid,
which resizes pictures a little differently from torch-fidelity.

All scores are of 8-bit colours: what else a picture holds, such as alpha, is counted in `notes`.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from ldm_dream.data.image import to_uint8
from ldm_dream.data.images import find_images, in_words, list_images, read_image
from ldm_dream.data.resize import degrade, imresize
from ldm_dream.errors import UserError
from ldm_dream.scoring import dists as dists_score
from ldm_dream.scoring import lite0 as lite0_scores
from ldm_dream.scoring.metrics import (
    MetricError,
    MetricUnavailable,
    consistency,
    downsample,
    lpips_distance,
    lpips_or_reason,
    psnr,
    ssim,
)
from ldm_dream.scoring.niqe import niqe
from ldm_dream.scoring.pairing import Partners, check_sizes, find_partners
from ldm_dream.scoring.report import Means, differences, infinite, means, plain_row
from ldm_dream.scoring.set_metrics import SetMetric, load_set_metric

PROTOCOL = "uint8 RGB; PSNR/SSIM: Y = BT.601 16-235 unrounded, border {scale} px cut; LPIPS (Alex): whole RGB picture"


class EvaluationError(UserError, ValueError):
    """Folders that cannot be compared; its text is complete for the user."""


@dataclass(frozen=True)
class Protocol:
    """The choices that move the numbers. All start from uint8 RGB pictures."""

    name: str
    channels: tuple[Literal["y", "rgb"], ...]  # colour spaces of PSNR and SSIM
    cuts_border: bool  # leave out `scale` pixels on each side in PSNR and SSIM
    lpips_net: Literal["alex", "vgg"]
    lpips_black: float  # LPIPS sees [lpips_black, 1]
    shrinks: Literal["MATLAB", "Pillow"]  # whose bicubic makes LR pictures that are not given
    # of a model that is run, unless another is asked for; None: its own
    color_fix: str | None

    def border(self, scale: int) -> int:
        return scale if self.cuts_border else 0

    def texts(self, scale: int) -> dict[str, str]:
        """Metric of one picture -> what its number is."""
        spaces = {
            "y": "Y (BT.601, 16-235, unrounded) of uint8 RGB",
            "rgb": "uint8 RGB, mean over channels",
        }
        border = f"{scale} px of border cut" if self.cuts_border else "no border cut"
        texts = {}
        for channel in self.channels:
            where = f"{spaces[channel]}, {border}"
            texts[f"psnr_{channel}"] = f"dB, peak 255; {where}"
            texts[f"ssim_{channel}"] = f"Gaussian 11x11, sigma 1.5, valid region, float64; {where}"
        texts["lpips"] = (
            f"v0.1 ({self.lpips_net}); uint8 RGB mapped to [{self.lpips_black:g}, 1], no border cut"
        )
        texts[dists_score.NAME] = dists_score.TEXT
        texts[lite0_scores.NAME] = lite0_scores.TEXT
        texts["niqe"] = (
            f"of the result alone; blocks of 96x96, Y (BT.601, 16-235, rounded) of uint8 RGB, {border}"
        )
        texts["consistency_x1e5"] = (
            "1e5 x MSE in [0, 1] units; RGB, LR against SR shrunk by Pillow's bicubic and rounded to uint8, no border cut"
        )
        texts["seconds"] = (
            "wall time of the model for one picture, the first and slower one included"
        )
        return texts


PROTOCOLS = {
    "standard": Protocol("standard", ("y", "rgb"), True, "alex", -1.0, "MATLAB", None),
    "dream-legacy": Protocol("dream-legacy", ("rgb",), False, "vgg", 0.0, "Pillow", "none"),
}


class Evaluator:
    """Scores in one protocol: `add` every picture, then `report` the set.

    lpips, lite0, dists: networks of distances, or None. sets: FID or its stand-in, if any. absent:
    metric -> why it was not computed. notes: what the figures leave out, in sentences.
    """

    def __init__(
        self,
        protocol: Protocol,
        scale: int,
        lpips: nn.Module | None = None,
        sets: Sequence[SetMetric] = (),
        lite0: lite0_scores.Lite0 | None = None,
        dists: dists_score.Dists | None = None,
    ):
        if scale < 1:
            raise EvaluationError(f"scale {scale}: give HR over LR size, 1 or more.")
        self.protocol, self.scale = protocol, scale
        self.lpips, self.lite0, self.dists = lpips, lite0, dists
        self.sets = (*sets, lite0.set_metric()) if lite0 else tuple(sets)
        self.rows: list[dict] = []
        self.absent: dict[str, str] = {}
        self.notes: list[str] = []
        self._unscored: dict[str, set[Path]] = {"alpha": set(), "more than 8 bits": set()}
        # picture -> [D] of each of `sets`; method -> the same
        self._hr_features: dict[str, list[Tensor]] = {}
        self._sr_features: dict[str, dict[str, list[Tensor]]] = {}

    @classmethod
    def load(
        cls,
        protocol: Protocol,
        scale: int,
        lpips_weights: Path | None = None,
        vgg_weights: Path | None = None,
        inception: Path | None = None,
        notes: Iterable[str] = (),
    ) -> Evaluator:
        """With the networks whose weights are here; the reasons for the others go to `absent`."""
        lpips, reason = lpips_or_reason(lpips_weights, protocol.lpips_net)
        sets, absent = load_set_metric(inception, protocol.lpips_net, lpips_weights)
        lite0, reasons = lite0_scores.lite0_or_reasons()
        dists, why = dists_score.dists_or_reason(vgg_weights)
        evaluator = cls(protocol, scale, lpips, [sets] if sets else [], lite0, dists)
        evaluator.absent |= {} if lpips else {"lpips": reason}
        evaluator.absent |= {} if dists else {dists_score.NAME: why}
        evaluator.absent |= absent | reasons
        evaluator.notes += notes
        return evaluator

    def read(self, path: Path) -> np.ndarray:
        """uint8 [H, W, 3], which is what is scored; the rest of the picture is noted."""
        image = read_image(path)
        if image.alpha is not None:
            self._unscored["alpha"].add(path)
        if image.pixels.dtype != np.uint8:
            self._unscored["more than 8 bits"].add(path)
        return to_uint8(image.pixels)

    def add(
        self,
        method: str,
        picture: str,
        sr: np.ndarray,
        hr: np.ndarray,
        lr: np.ndarray | None,
        **measured: float,
    ) -> None:
        """One row: uint8 [H, W, 3] against the original and its LR picture. `measured` goes into
        the row as it is.
        """
        border = self.protocol.border(self.scale)
        metrics: dict[str, Callable[[], float]] = {}
        for channel in self.protocol.channels:
            metrics[f"psnr_{channel}"] = partial(psnr, sr, hr, channel=channel, crop_border=border)
            metrics[f"ssim_{channel}"] = partial(ssim, sr, hr, channel=channel, crop_border=border)
        if self.lpips is not None:
            metrics["lpips"] = partial(
                lpips_distance, self.lpips, sr, hr, black=self.protocol.lpips_black
            )
        if self.dists is not None:
            metrics[dists_score.NAME] = partial(lpips_distance, self.dists, sr, hr)
        if self.lite0 is not None:
            metrics[lite0_scores.NAME] = partial(lpips_distance, self.lite0, sr, hr)
        metrics["niqe"] = partial(niqe, sr, border)
        if lr is None:
            self.absent["consistency_x1e5"] = "needs the LR pictures; name their folder (--lr)."
        else:
            metrics["consistency_x1e5"] = lambda: 1e5 * consistency(sr, lr)
        row: dict[str, str | float] = {"picture": picture, "method": method}
        for name, metric in metrics.items():
            try:
                value = metric()
            except MetricError as reason:
                self.absent[name] = f"{picture}: {reason}"
                continue
            if math.isnan(value):
                self.absent[name] = f"{picture}: its value is not a number."
            else:
                row[name] = value
        self.rows.append(row | measured)
        if picture not in self._hr_features:
            self._hr_features[picture] = [metric.features(hr) for metric in self.sets]
        found = [metric.features(sr) for metric in self.sets]
        self._sr_features.setdefault(method, {})[picture] = found

    def report(self) -> dict:
        """What JSON holds and `report_text` prints: scale, pictures, protocol, means by method,
        differences of two methods, absent metrics, infinite values (see `report.py`), notes, rows.
        """
        if not self.rows:
            raise EvaluationError(
                "no picture was scored: none has such a name; look at --hr and --match."
            )
        averages, texts = means(self.rows), self.protocol.texts(self.scale)
        for i, metric in enumerate(self.sets):
            texts |= self._add_set(i, metric, averages)
        shown = {metric for row in averages.values() for metric in row}
        unscored = [
            f"{len(paths)} of the pictures have {kind}; only 8-bit colours are scored."
            for kind, paths in self._unscored.items()
            if paths
        ]
        return {
            "scale": self.scale,
            "pictures": len({row["picture"] for row in self.rows}),
            "protocol": {
                "name": self.protocol.name,
                **{name: text for name, text in texts.items() if name in shown},
            },
            "means": averages,
            "differences": differences(self.rows),
            "absent": self.absent,
            "infinite": infinite(self.rows),
            "notes": [*self.notes, *unscored],
            "rows": [plain_row(row) for row in self.rows],
        }

    def _add_set(self, i: int, metric: SetMetric, averages: Means) -> dict[str, str]:
        """The i-th set metric of each method's pictures goes into its `averages`; -> what it is."""
        texts = {}
        for method, found in self._sr_features.items():
            sr = torch.stack([features[i] for features in found.values()])
            hr = torch.stack([self._hr_features[picture][i] for picture in found])
            described = metric.describe(*sr.shape)
            texts |= described
            try:
                values = metric.compare(sr, hr)
            except MetricUnavailable as reason:
                self.absent |= dict.fromkeys(described, str(reason))
                continue
            for name, value in values.items():
                if math.isfinite(value):
                    averages[method][name] = value
                else:
                    self.absent[name] = f"its value for {method} is not a finite number."
        return texts


def files_read(
    folders: Iterable[Path | None], model: str | None, weights: Iterable[Path | None]
) -> list[Path]:
    """All that an evaluation reads: pictures, the files of a model, weights of metrics."""
    pictures = [path for folder in folders if folder for path in find_images(folder)]
    of_model = [Path(os.path.expanduser(model))] if model else []
    return [
        *pictures,
        *of_model,
        *(path for place in of_model if place.is_dir() for path in place.rglob("*")),
        *(path for path in weights if path),
    ]


def find_originals(
    folder: Path, text: str = "", limit: int | None = None
) -> tuple[list[Path], list[str]]:
    """(pictures of `folder` whose name holds `text`, the first `limit` of them; notes on what else it
    holds). Raises EvaluationError for none.
    """
    listing = list_images(folder)
    found = listing.pictures
    files = [path for path in found if text in path.name]
    if not files:
        raise EvaluationError(
            f"{folder}: no picture was scored: none of its {len(found)} has {text!r} in its name; "
            "look at --hr and --match."
        )
    notes = []
    if len(files) < len(found):
        notes.append(f"{len(found) - len(files)} pictures of {folder} do not have {text!r}.")
    if listing.left_out:
        notes.append(f"{folder} also holds {in_words(listing.left_out)}; not scored.")
    if limit is not None and limit < len(files):
        notes.append(f"{len(files) - limit} more pictures of {folder} were left out by --limit.")
    return files[:limit], notes


def evaluate_folder(
    evaluator: Evaluator,
    hr_files: list[Path],
    sr_dir: Path,
    lr_dir: Path | None = None,
    ending: str | None = None,
) -> None:
    """HR pictures against their results in `sr_dir`, and these against `lr_dir` for consistency,
    matched as in `pairing.py`. ending: of the results' names.

    HR, and SR that is as large, are cut to multiples of the scale.
    """
    sr_of = _noted(evaluator, sr_dir, find_partners(hr_files, sr_dir, ending))
    lr_of = _lr_files(evaluator, hr_files, lr_dir)
    check_sizes(sr_of, lr_of, evaluator.scale, hr_files)
    for path in hr_files:
        hr, sr = (_cut(evaluator.read(p), evaluator.scale) for p in (path, sr_of[path]))
        lr = evaluator.read(lr_of[path]) if lr_of else None
        evaluator.add(sr_dir.resolve().name, path.name, sr, hr, lr)


def evaluate_model(
    evaluator: Evaluator,
    hr_files: list[Path],
    lr_dir: Path | None,
    upscale: Callable[[np.ndarray], np.ndarray],
    name: str,
) -> None:
    """Two rows a picture, bicubic and the model. LR pictures come from `lr_dir` by name, or are
    made by bicubic from HR.
    """
    scale, lr_of = evaluator.scale, _lr_files(evaluator, hr_files, lr_dir)
    check_sizes(None, lr_of, scale, hr_files)
    name = f"model {name}" if name == "bicubic" else name
    for path in hr_files:
        hr = _cut(evaluator.read(path), scale)
        if lr_of:
            lr = evaluator.read(lr_of[path])
        else:
            lr = low_resolution(hr, scale, evaluator.protocol.shrinks)
        evaluator.add("bicubic", path.name, bicubic(lr, scale), hr, lr)
        start = time.perf_counter()
        sr = upscale(lr)
        seconds = time.perf_counter() - start
        evaluator.add(name, path.name, sr, hr, lr, seconds=seconds)


def _lr_files(
    evaluator: Evaluator, hr_files: list[Path], lr_dir: Path | None
) -> dict[Path, Path] | None:
    if not lr_dir:
        return None
    return _noted(evaluator, lr_dir, find_partners(hr_files, lr_dir, bare_first=True))


def _noted(evaluator: Evaluator, folder: Path, partners: Partners) -> dict[Path, Path]:
    """The files, and a word on how they were found."""
    if partners.ending:
        evaluator.notes.append(f"names of {folder} were matched with {partners.ending} behind.")
    if partners.spare:
        evaluator.notes.append(
            f"{partners.spare} pictures of {folder} belong to no original that was scored."
        )
    return partners.files


def low_resolution(
    hr: np.ndarray, scale: int, shrinks: Literal["MATLAB", "Pillow"] = "MATLAB"
) -> np.ndarray:
    """uint8 [H,W,3] -> its bicubic LR picture, uint8."""
    if shrinks == "Pillow":
        return downsample(hr, hr.shape[0] // scale, hr.shape[1] // scale)
    return (
        degrade(torch.from_numpy(hr).permute(2, 0, 1), scale).permute(1, 2, 0).contiguous().numpy()
    )


def bicubic(lr: np.ndarray, scale: int) -> np.ndarray:
    """uint8 [h,w,3] -> MATLAB-style bicubic enlargement, uint8."""
    x = imresize(torch.from_numpy(lr).permute(2, 0, 1).float(), scale)
    return x.round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()


def _cut(pixels: np.ndarray, scale: int) -> np.ndarray:
    """To the largest multiple of `scale`, at the lower right."""
    return pixels[: pixels.shape[0] // scale * scale, : pixels.shape[1] // scale * scale]
