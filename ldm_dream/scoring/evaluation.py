"""Scores of pictures against their HR originals: of a folder of results, or of a model run on LR
pictures, beside bicubic.

A `Protocol` decides what a number means and travels with it, printed and in JSON. `standard` is
that of SR tables (BasicSR). `dream-legacy` is that of DREAM's own code (jinxinzhou/DREAM 27a2f7f,
sr3/core/metrics.py), which departs from it: no border is cut, PSNR and SSIM are on RGB, and LPIPS
(VGG) sees pictures in [0, 1] though it was trained on [-1, 1]. DREAM's FID came from pytorch_fid,
which resizes pictures a little differently from torch-fidelity.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from ldm_dream.data.images import find_images, read_image, to_uint8
from ldm_dream.data.resize import degrade, imresize
from ldm_dream.errors import UserError
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
        texts["consistency_x1e5"] = (
            "1e5 x MSE in [0, 1] units; RGB, LR against SR shrunk by Pillow's bicubic and rounded to uint8, no border cut"
        )
        texts["seconds"] = (
            "wall time of the model for one picture, the first and slower one included"
        )
        return texts


PROTOCOLS = {
    "standard": Protocol("standard", ("y", "rgb"), True, "alex", -1.0, "MATLAB"),
    "dream-legacy": Protocol("dream-legacy", ("rgb",), False, "vgg", 0.0, "Pillow"),
}


class Evaluator:
    """Scores in one protocol: `add` every picture, then `report` the set.

    lpips, sets: networks of LPIPS and of FID or its stand-in, or None. absent: metric -> why it was
    not computed.
    """

    def __init__(
        self,
        protocol: Protocol,
        scale: int,
        lpips: nn.Module | None = None,
        sets: SetMetric | None = None,
    ):
        if scale < 1:
            raise EvaluationError(f"scale {scale}: give HR over LR size, 1 or more.")
        self.protocol, self.scale, self.lpips, self.sets = protocol, scale, lpips, sets
        self.rows: list[dict] = []
        self.absent: dict[str, str] = {}
        self._hr_features: dict[str, Tensor] = {}  # picture -> [D]
        self._sr_features: dict[str, dict[str, Tensor]] = {}  # method -> picture -> [D]

    @classmethod
    def load(
        cls,
        protocol: Protocol,
        scale: int,
        lpips_weights: Path | None = None,
        inception: Path | None = None,
    ) -> Evaluator:
        """With the networks whose weights are here; the reasons for the others go to `absent`."""
        lpips, reason = lpips_or_reason(lpips_weights, protocol.lpips_net)
        sets, absent = load_set_metric(inception, protocol.lpips_net, lpips_weights)
        evaluator = cls(protocol, scale, lpips, sets)
        evaluator.absent |= absent if lpips else {"lpips": reason, **absent}
        return evaluator

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
        if lr is None:
            self.absent["consistency_x1e5"] = "needs the LR pictures; name their folder (--lr)."
        else:
            metrics["consistency_x1e5"] = lambda: 1e5 * consistency(sr, lr)
        row: dict[str, str | float] = {"picture": picture, "method": method}
        for name, metric in metrics.items():
            try:
                row[name] = metric()
            except MetricError as reason:
                self.absent[name] = f"{picture}: {reason}"
        self.rows.append(row | measured)
        if self.sets is not None:
            if picture not in self._hr_features:
                self._hr_features[picture] = self.sets.features(hr)
            self._sr_features.setdefault(method, {})[picture] = self.sets.features(sr)

    def report(self) -> dict:
        """What JSON holds and `report_text` prints: scale, pictures, protocol, means by method,
        absent metrics, rows.
        """
        if not self.rows:
            raise EvaluationError(
                "no picture was scored: none has such a name; look at --hr and --match."
            )
        averages, texts = means(self.rows), self.protocol.texts(self.scale)
        if self.sets is not None:
            texts |= self._add_sets(self.sets, averages)
        shown = {metric for row in averages.values() for metric in row}
        return {
            "scale": self.scale,
            "pictures": len({row["picture"] for row in self.rows}),
            "protocol": {
                "name": self.protocol.name,
                **{name: text for name, text in texts.items() if name in shown},
            },
            "means": averages,
            "absent": self.absent,
            "rows": self.rows,
        }

    def _add_sets(self, sets: SetMetric, averages: dict[str, dict[str, float]]) -> dict[str, str]:
        """The metrics of each method's whole set go into its `averages`; -> what they are."""
        texts = {}
        for method, found in self._sr_features.items():
            sr = torch.stack(list(found.values()))
            hr = torch.stack([self._hr_features[picture] for picture in found])
            described = sets.describe(*sr.shape)
            texts |= described
            try:
                averages[method] |= sets.compare(sr, hr)
            except MetricUnavailable as reason:
                self.absent |= dict.fromkeys(described, str(reason))
        return texts


def report_text(report: dict) -> str:
    """Table, then one line a metric: its protocol, or why it is absent."""
    protocol = dict(report["protocol"])
    head = f"protocol {protocol.pop('name')}, x{report['scale']}, HR cut to its multiples; mean of {report['pictures']} pictures:"
    lines = [table(report["means"]), head]
    lines += [f"  {metric}: {text}" for metric, text in protocol.items()]
    lines += [f"  {metric}: not computed: {reason}" for metric, reason in report["absent"].items()]
    return "\n".join(lines)


def evaluate_folder(
    evaluator: Evaluator, hr_files: list[Path], sr_dir: Path, lr_dir: Path | None = None
) -> None:
    """HR pictures against pictures of the same name in `sr_dir`, and these against `lr_dir` for
    consistency.

    HR, and SR that is as large, are cut to multiples of the scale.
    """
    sr_files, lr_files = _by_name(sr_dir), _by_name(lr_dir) if lr_dir else {}
    for path in hr_files:
        sr, whole = _pixels(_partner(path, sr_files, sr_dir)), _pixels(path)
        hr = _cut(whole, evaluator.scale)
        if sr.shape not in (hr.shape, whole.shape):
            raise EvaluationError(
                f"{path}: is {_size(whole)} and its result {_size(sr)}; the result must have its size."
            )
        sr = _cut(sr, evaluator.scale)
        lr = _pixels(_partner(path, lr_files, lr_dir)) if lr_dir else None
        if lr is not None:
            _check_lr(path, hr, lr, evaluator.scale)
        evaluator.add(sr_dir.name, path.stem, sr, hr, lr)


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
    scale, lr_files = evaluator.scale, _by_name(lr_dir) if lr_dir else {}
    for path in hr_files:
        hr = _cut(_pixels(path), scale)
        lr = (
            _pixels(_partner(path, lr_files, lr_dir))
            if lr_dir
            else low_resolution(hr, scale, evaluator.protocol.shrinks)
        )
        _check_lr(path, hr, lr, scale)
        evaluator.add("bicubic", path.stem, bicubic(lr, scale), hr, lr)
        start = time.perf_counter()
        sr = upscale(lr)
        seconds = time.perf_counter() - start
        evaluator.add(name, path.stem, sr, hr, lr, seconds=seconds)


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


def means(rows: list[dict]) -> dict[str, dict[str, float]]:
    """Rows -> {method: {metric: mean}}, of the metrics that every picture of the method has."""
    methods = list(dict.fromkeys(row["method"] for row in rows))
    return {m: _mean([row for row in rows if row["method"] == m]) for m in methods}


def table(averages: dict[str, dict[str, float]]) -> str:
    """Text table of `means`."""
    columns = {key: max(10, len(key) + 2) for row in averages.values() for key in row}
    lines = [f"{'method':24}" + "".join(f"{c:>{width}}" for c, width in columns.items())]
    for name, row in averages.items():
        cells = (
            f"{row[c]:{width}.3f}" if c in row else f"{'-':>{width}}"
            for c, width in columns.items()
        )
        lines.append(f"{name:24}" + "".join(cells))
    return "\n".join(lines)


def _mean(rows: list[dict]) -> dict[str, float]:
    keys = [
        key
        for key in rows[0]
        if key not in ("picture", "method") and all(key in row for row in rows)
    ]
    return {key: float(np.mean([row[key] for row in rows])) for key in keys}


def _check_lr(path: Path, hr: np.ndarray, lr: np.ndarray, scale: int) -> None:
    if tuple(side * scale for side in lr.shape[:2]) != hr.shape[:2]:
        raise EvaluationError(
            f"{path}: {_size(hr)} is not {scale} times its LR picture {_size(lr)}."
        )


def _cut(pixels: np.ndarray, scale: int) -> np.ndarray:
    """To the largest multiple of `scale`, at the lower right."""
    return pixels[: pixels.shape[0] // scale * scale, : pixels.shape[1] // scale * scale]


def _size(pixels: np.ndarray) -> str:
    return f"{pixels.shape[1]}x{pixels.shape[0]}"


def _pixels(path: Path) -> np.ndarray:
    return to_uint8(read_image(path).pixels)


def _by_name(folder: Path) -> dict[str, Path]:
    return {
        path.stem: path for path in reversed(find_images(folder))
    }  # of two with one name the first


def _partner(path: Path, files: dict[str, Path], folder: Path) -> Path:
    if path.stem not in files:
        raise EvaluationError(f"{folder}: no picture named {path.stem}, which {path.parent} has.")
    return files[path.stem]
