"""Quality of super-resolved pictures: PSNR, SSIM, GMSD, consistency (own, float64) and LPIPS
(through the `lpips` package).

Protocols, since each choice moves the number: Y is BasicSR's and MATLAB's 16-235 luma, unrounded,
with peak 255 (full-range luma reads 1.32 dB lower); SSIM is Wang et al. 2004 with an 11x11 Gaussian
of sigma 1.5 and no padding, mean over channels; consistency is DREAM's (Pillow bicubic). All but LPIPS
take uint8 numpy pictures [H, W, 3] in RGB.
"""

from __future__ import annotations

import math
import pickle
import warnings
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image as PillowImage
from torch import Tensor, nn

from ldm_dream.errors import UserError

LUMA = (
    np.array([65.481, 128.553, 24.966]) / 255
)  # ITU-R BT.601 for RGB in 0..255, before the offset of 16
SSIM_WINDOW, SSIM_SIGMA = 11, 1.5
GMSD_T = 170  # for luma in 0..255
_TRUNKS = {"alex": "alexnet-owt", "vgg": "vgg16"}  # lpips name -> start of torchvision's file name
_SMALLEST = {"alex": 31, "vgg": 16}  # sides in pixels that still reach the last layer


class MetricUnavailable(UserError, RuntimeError):
    """A metric whose package or weights are not here; its text says which one to get."""


class MetricError(UserError, ValueError):
    """Pictures that a metric cannot compare; its text says why."""


def luma(pixels: np.ndarray) -> np.ndarray:
    """RGB [..., 3] in 0..255 -> Y [...] float64 in 16..235, unrounded."""
    return pixels.astype(np.float64) @ LUMA + 16


def psnr(
    sr: np.ndarray, hr: np.ndarray, *, channel: Literal["y", "rgb"], crop_border: int
) -> float:
    """10 log10(255^2 / MSE) in dB over Y or all three channels; inf for equal pictures.

    `crop_border` pixels are left out on each side (SR tables: the scale). Raises MetricError for
    shapes that do not fit.
    """
    a, b = _planes(sr, hr, channel, crop_border)
    mse = np.mean((a - b) ** 2)
    return math.inf if mse == 0 else float(10 * np.log10(255**2 / mse))


def ssim(
    sr: np.ndarray, hr: np.ndarray, *, channel: Literal["y", "rgb"], crop_border: int
) -> float:
    """Structural similarity in [-1, 1], 1 for equal pictures; rgb is the mean of the three
    channels' values.
    """
    a, b = _planes(sr, hr, channel, crop_border)
    if min(a.shape[1:]) < SSIM_WINDOW:
        raise MetricError(
            f"ssim: {a.shape[1]}x{a.shape[2]} pixels remain; it needs at least {SSIM_WINDOW}x{SSIM_WINDOW}."
        )
    x, y = (torch.from_numpy(plane)[:, None] for plane in (a, b))
    window = torch.from_numpy(gaussian_window())

    def mean(image: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(image, window.view(1, 1, -1, 1)), window.view(1, 1, 1, -1))

    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mu_x, mu_y = mean(x), mean(y)
    var_x, var_y, cov = mean(x * x) - mu_x**2, mean(y * y) - mu_y**2, mean(x * y) - mu_x * mu_y
    value = (
        (2 * mu_x * mu_y + c1) * (2 * cov + c2) / ((mu_x**2 + mu_y**2 + c1) * (var_x + var_y + c2))
    )
    return float(value.mean())


def gmsd(sr: np.ndarray, hr: np.ndarray) -> float:
    """Gradient magnitude similarity deviation (Xue et al., IEEE TIP 2014, Eq. 1-6): how unevenly
    the edges of `sr` differ from those of `hr`. 0 for equal pictures; lower is better.

    As in its authors' code: luma in 0..255, halved by 2x2 means (an odd last line is left out),
    Prewitt filters with zeros around the picture. Raises MetricError for shapes that do not fit.
    """
    planes = (torch.from_numpy((plane - 16) * 255 / 219) for plane in _planes(sr, hr, "y", 0))
    prewitt = torch.tensor([[1.0, 0.0, -1.0]] * 3, dtype=torch.float64) / 3
    kernels = torch.stack([prewitt, prewitt.T])[:, None]
    m_r, m_d = (
        F.conv2d(F.avg_pool2d(plane, 2)[None], kernels, padding=1).square().sum(1).sqrt()
        for plane in planes
    )
    similarity = (2 * m_r * m_d + GMSD_T) / (m_r**2 + m_d**2 + GMSD_T)
    return float(similarity.std(correction=0))


def consistency(sr: np.ndarray, lr: np.ndarray) -> float:
    """Mean squared error in [0, 1] units between LR and SR shrunk to its size; papers print it
    times 1e5 (SR3: 2.68).

    As in DREAM's code: uint8 SR [H, W, 3] -> Pillow's antialiased bicubic -> uint8, compared with
    uint8 LR [h, w, 3].
    """
    small = downsample(sr, height=lr.shape[0], width=lr.shape[1])
    a, b = _planes(small, lr, "rgb", 0)
    return float(np.mean(((a - b) / 255) ** 2))


def downsample(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """uint8 [H, W, 3] -> uint8 [height, width, 3] by Pillow's antialiased bicubic."""
    return np.array(
        PillowImage.fromarray(pixels).resize((width, height), PillowImage.Resampling.BICUBIC)
    )


def gaussian_window() -> np.ndarray:
    """The 11 weights of SSIM's separable Gaussian, float64, sum 1."""
    x = np.arange(SSIM_WINDOW) - SSIM_WINDOW // 2
    window = np.exp(-(x**2) / (2 * SSIM_SIGMA**2))
    return window / window.sum()


def load_lpips(
    weights: str | Path | None = None, net: Literal["alex", "vgg"] = "alex"
) -> nn.Module:
    """LPIPS v0.1 (Zhang et al. 2018) as a frozen module: two [B, 3, H, W] in [-1, 1] -> distances
    [B], differentiable.

    weights: state dict with torchvision's names for the trunk (`features.N.weight`) and, if it
    holds them, the heads (`linK.weight`); without heads those of the lpips wheel serve. None takes
    torchvision's file from its cache; nothing is ever downloaded. Raises MetricUnavailable when a
    package or file is missing or does not fit.
    """
    if net not in _TRUNKS:
        raise ValueError(f"load_lpips: net={net!r} is not known; use one of {', '.join(_TRUNKS)}.")
    try:
        import lpips
    except ImportError:
        raise MetricUnavailable(
            "LPIPS needs the package lpips; install it with: pip install 'ldm_dream[eval]'."
        ) from None
    path, state = trunk_weights(net, weights)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", UserWarning
        )  # lpips calls torchvision with a deprecated argument
        model = lpips.LPIPS(net=net, pnet_rand=True, verbose=False)
    own = {name: _torchvision_name(name) for name, _ in model.named_parameters()}
    wrong = [
        theirs
        for name, theirs in own.items()
        if (theirs in state and state[theirs].shape != model.get_parameter(name).shape)
        or (theirs not in state and theirs.startswith("features."))
    ]
    if wrong:
        raise MetricUnavailable(
            f"{path}: {wrong[0]} is missing or has another shape; this is no {net} network."
        )
    with torch.no_grad():
        for name, theirs in own.items():
            if theirs in state:
                model.get_parameter(name).copy_(state[theirs])
    return _Distance(model, _SMALLEST[net])


class _Distance(nn.Module):
    """lpips.LPIPS with the shape [B] and an eval mode that a parent's train() does not switch off
    (its heads have dropout).
    """

    def __init__(self, model: nn.Module, smallest: int):
        super().__init__()
        self.model, self.smallest = model, smallest
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> _Distance:
        return super().train(False)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        if min(x.shape[-2:]) < self.smallest:
            raise MetricError(
                f"lpips: {x.shape[-2]}x{x.shape[-1]} pixels; it needs at least {self.smallest}x{self.smallest}."
            )
        return self.model(x, y).flatten()


def trunk_weights(
    net: Literal["alex", "vgg"], weights: str | Path | None = None
) -> tuple[Path, dict[str, Tensor]]:
    """(file, state dict with torchvision's names) of a trunk: the given file, or torchvision's in
    its cache.

    Raises MetricUnavailable when it is not there.
    """
    if weights is None:
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        found = sorted(folder.glob(f"{_TRUNKS[net]}-*.pth"))
        if not found:
            raise MetricUnavailable(
                f"put torchvision's {_TRUNKS[net]}-*.pth into {folder} or name a file with {net} weights."
            )
        weights = found[0]
    return Path(weights), read_weights(weights)


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """State dict from a torch file, tensors only. Raises MetricUnavailable for a missing or broken
    file.
    """
    path = Path(path)
    if not path.is_file():
        raise MetricUnavailable(
            f"{path}: no such file; give a state dict with torchvision's names."
        )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError):
        raise MetricUnavailable(
            f"{path}: is no whole torch file of tensors; fetch it again."
        ) from None
    if not isinstance(state, dict):
        raise MetricUnavailable(
            f"{path}: holds a {type(state).__name__}; give a state dict with torchvision's names."
        )
    return state


def _torchvision_name(name: str) -> str:
    """`net.slice2.3.bias` -> `features.3.bias`; `lin0.model.1.weight` -> `lin0.weight`."""
    parts = name.split(".")
    return (
        f"{parts[0]}.{parts[-1]}"
        if parts[0].startswith("lin")
        else f"features.{parts[2]}.{parts[3]}"
    )


def _planes(
    sr: np.ndarray, hr: np.ndarray, channel: str, crop_border: int
) -> tuple[np.ndarray, np.ndarray]:
    """Two checked pictures -> float64 [planes, H, W] each, border cut."""
    if (
        sr.shape != hr.shape
        or sr.ndim != 3
        or sr.shape[2] != 3
        or sr.dtype != np.uint8
        or hr.dtype != np.uint8
    ):
        raise MetricError(
            f"metrics compare two uint8 pictures [H, W, 3] of one size; got {sr.dtype} {sr.shape} and {hr.dtype} {hr.shape}."
        )
    if channel not in ("y", "rgb"):
        raise MetricError(f"metrics: channel={channel!r} is not known; use 'y' or 'rgb'.")
    height, width = sr.shape[:2]
    if crop_border < 0 or 2 * crop_border >= min(height, width):
        raise MetricError(
            f"metrics: crop_border={crop_border} leaves nothing of {height}x{width} pixels; use 0 or a small border."
        )
    inner = (slice(crop_border, height - crop_border), slice(crop_border, width - crop_border))
    if channel == "y":
        return luma(sr[inner])[None], luma(hr[inner])[None]
    return sr[inner].transpose(2, 0, 1).astype(np.float64), hr[inner].transpose(2, 0, 1).astype(
        np.float64
    )


def lpips_or_reason(
    weights: str | Path | None = None, net: Literal["alex", "vgg"] = "alex"
) -> tuple[nn.Module | None, str]:
    """`load_lpips`, or None and the sentence that says what is wanted: for tools that go on without
    it.
    """
    try:
        return load_lpips(weights, net), ""
    except MetricUnavailable as reason:
        return None, str(reason)


def scores(
    sr: np.ndarray, hr: np.ndarray, crop_border: int, lpips: nn.Module | None = None
) -> dict[str, float]:
    """psnr_y, ssim_y, psnr_rgb, ssim_rgb of two uint8 pictures [H, W, 3], border cut; lpips if a
    network is given.
    """
    row = {
        f"{name}_{channel}": metric(sr, hr, channel=channel, crop_border=crop_border)
        for channel in ("y", "rgb")
        for name, metric in (("psnr", psnr), ("ssim", ssim))
    }
    if lpips is not None:
        row["lpips"] = lpips_distance(lpips, sr, hr)
    return row


@torch.no_grad()
def lpips_distance(
    lpips: nn.Module, sr: np.ndarray, hr: np.ndarray, *, black: float = -1.0
) -> float:
    """LPIPS of two whole uint8 pictures [H, W, 3], mapped linearly to [black, 1]; the network was
    trained on black = -1.
    """
    device = next(lpips.parameters()).device
    x, y = (
        torch.from_numpy(p).to(device).permute(2, 0, 1)[None].float() / (255 / (1 - black)) + black
        for p in (sr, hr)
    )
    return float(lpips(x, y))
