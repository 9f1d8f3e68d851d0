"""Scores of pictures against their HR originals: of a folder of results, or of a model run on LR pictures, beside bicubic.

Protocol, printed with every table: uint8 RGB PNG values; PSNR and SSIM on Y (ITU-R BT.601, 16-235, unrounded) and on RGB with
`scale` pixels of border cut; SSIM Gaussian 11x11, sigma 1.5, valid region; LPIPS on the whole RGB picture in [-1, 1].
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn

from .data.degrade import degrade, imresize
from .data.images import find_images, read_image, to_uint8
from .errors import UserError
from .metrics import scores

PROTOCOL = "uint8 RGB; PSNR/SSIM: Y = BT.601 16-235 unrounded, border {scale} px cut; LPIPS (Alex): whole RGB picture"


class EvaluationError(UserError, ValueError):
    """Folders that cannot be compared; its text is complete for the user."""


def evaluate_folder(hr_files: list[Path], sr_dir: Path, scale: int, lpips: nn.Module | None) -> Iterator[dict]:
    """One row a picture: HR pictures against pictures of the same name in `sr_dir`."""
    sr_files = _by_name(sr_dir)
    for path in hr_files:
        sr, hr = _pixels(_partner(path, sr_files, sr_dir)), _pixels(path)
        yield {"picture": path.stem, "method": sr_dir.name, **scores(sr, hr[: sr.shape[0], : sr.shape[1]], scale, lpips)}


def evaluate_model(
    hr_files: list[Path],
    lr_dir: Path | None,
    upscale: Callable[[np.ndarray], np.ndarray],
    name: str,
    scale: int,
    lpips: nn.Module | None,
) -> Iterator[dict]:
    """Two rows a picture, bicubic and the model. LR pictures come from `lr_dir` by name, or are made by bicubic from HR."""
    lr_files = _by_name(lr_dir) if lr_dir else {}
    for path in hr_files:
        hr = _pixels(path)
        hr = hr[: hr.shape[0] // scale * scale, : hr.shape[1] // scale * scale]
        lr = _pixels(_partner(path, lr_files, lr_dir)) if lr_dir else low_resolution(hr, scale)
        if tuple(side * scale for side in lr.shape[:2]) != hr.shape[:2]:
            raise EvaluationError(
                f"{path}: {hr.shape[1]}x{hr.shape[0]} is not {scale} times its LR picture {lr.shape[1]}x{lr.shape[0]}."
            )
        yield {"picture": path.stem, "method": "bicubic", **scores(bicubic(lr, scale), hr, scale, lpips)}
        start = time.perf_counter()
        sr = upscale(lr)
        seconds = time.perf_counter() - start
        yield {"picture": path.stem, "method": name, "seconds": seconds, **scores(sr, hr, scale, lpips)}


def low_resolution(hr: np.ndarray, scale: int) -> np.ndarray:
    """uint8 [H,W,3] -> its MATLAB-style bicubic LR picture, uint8."""
    return degrade(torch.from_numpy(hr).permute(2, 0, 1), scale).permute(1, 2, 0).contiguous().numpy()


def bicubic(lr: np.ndarray, scale: int) -> np.ndarray:
    """uint8 [h,w,3] -> MATLAB-style bicubic enlargement, uint8."""
    x = imresize(torch.from_numpy(lr).permute(2, 0, 1).float(), scale)
    return x.round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()


def means(rows: list[dict]) -> dict[str, dict[str, float]]:
    """Rows -> {method: {metric: mean}}."""
    methods = list(dict.fromkeys(row["method"] for row in rows))
    return {m: _mean([row for row in rows if row["method"] == m]) for m in methods}


def table(averages: dict[str, dict[str, float]]) -> str:
    """Text table of `means`."""
    columns = list(dict.fromkeys(key for row in averages.values() for key in row))
    lines = [f"{'method':24}" + "".join(f"{c:>10}" for c in columns)]
    for name, row in averages.items():
        lines.append(f"{name:24}" + "".join(f"{row[c]:10.3f}" if c in row else f"{'-':>10}" for c in columns))
    return "\n".join(lines)


def _mean(rows: list[dict]) -> dict[str, float]:
    keys = [key for key in rows[0] if key not in ("picture", "method")]
    return {key: float(np.mean([row[key] for row in rows])) for key in keys}


def _pixels(path: Path) -> np.ndarray:
    return to_uint8(read_image(path).pixels)


def _by_name(folder: Path) -> dict[str, Path]:
    return {path.stem: path for path in reversed(find_images(folder))}  # of two with one name the first


def _partner(path: Path, files: dict[str, Path], folder: Path) -> Path:
    if path.stem not in files:
        raise EvaluationError(f"{folder}: no picture named {path.stem}, which {path.parent} has.")
    return files[path.stem]
