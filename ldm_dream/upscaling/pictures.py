"""Pictures at the border of the model: of every type in, the same type and bit depth out, and the
colours that they came with.

`unpack` returns rgb [B, 3, H, W] and alpha [B, 1, H, W] or None, both float32 in [0, 1], and a
function that packs such a pair again. Grey becomes three equal channels and comes back as one.
Alpha is straight, as in PNG.

Colour fixes give the result the colours of the picture it was made from, since diffusion models
drift in the mean and the low frequencies. Symbols there: sr = the result, base = the enlarged LR
picture; both [B, 3, H, W] in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeAlias, TypeVar, overload

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from torch import Tensor

from ldm_dream.data.images import Image, ImageError

Picture = TypeVar("Picture", PIL.Image.Image, np.ndarray, Tensor, Image)
Unpacked: TypeAlias = tuple[Tensor, Tensor | None, Callable[[Tensor, Tensor | None], Picture]]


@overload
def unpack(picture: PIL.Image.Image) -> Unpacked[PIL.Image.Image]: ...
@overload
def unpack(picture: np.ndarray) -> Unpacked[np.ndarray]: ...
@overload
def unpack(picture: Tensor) -> Unpacked[Tensor]: ...
@overload
def unpack(picture: Image) -> Unpacked[Image]: ...


def unpack(picture: object) -> Unpacked[Any]:
    """-> rgb, alpha, pack. Raises ImageError for a type, shape or range that is not one of these.

    PIL (RGB, RGBA, L, LA, 1, P, CMYK, I;16), numpy [H, W], [H, W, 3] or [H, W, 4] (uint8, uint16,
    or float in [0, 1]), torch [3, H, W] or [B, 3, H, W] (float in [0, 1]),
    `ldm_dream.data.images.Image`.
    """
    if isinstance(picture, Image):
        return _unpack_image(picture)
    if isinstance(picture, PIL.Image.Image):
        return _unpack_pil(picture)
    if isinstance(picture, np.ndarray):
        return _unpack_array(picture)
    if isinstance(picture, Tensor):
        return _unpack_tensor(picture)
    raise ImageError(
        f"a picture of type {type(picture).__name__} is not supported; give PIL, numpy or a torch tensor."
    )


def _unpack_image(image: Image) -> Unpacked[Image]:
    bands = image.pixels if image.alpha is None else np.dstack([image.pixels, image.alpha])
    rgb, alpha, pack_bands = _unpack_array(bands)

    def pack(rgb: Tensor, alpha: Tensor | None) -> Image:
        bands = pack_bands(rgb, alpha)
        return replace(image, pixels=bands[..., :3], alpha=None if alpha is None else bands[..., 3])

    return rgb, alpha, pack


def _unpack_pil(image: PIL.Image.Image) -> Unpacked[PIL.Image.Image]:
    """Palettes and 1-bit pictures come back as RGB(A) and L: their colours cannot hold what the
    model adds.
    """
    targets = {
        "1": "L",
        "L": "L",
        "LA": "LA",
        "P": "RGB",
        "PA": "RGBA",
        "CMYK": "RGB",
        "RGB": "RGB",
        "RGBA": "RGBA",
    }
    if image.mode.startswith("I;16"):
        bands = np.asarray(image).astype(np.uint16)
    elif image.mode in targets:
        target = targets[image.mode]
        if image.has_transparency_data:
            target = {"L": "LA", "RGB": "RGBA"}.get(target, target)
        bands = np.asarray(image.convert(target))
    else:
        raise ImageError(
            f"a PIL picture of mode {image.mode} is not supported; convert it to RGB, RGBA, L or I;16."
        )
    rgb, alpha, pack_bands = _unpack_array(bands, gray_alpha=True)
    # a CMYK profile does not describe RGB
    icc = None if image.mode == "CMYK" else image.info.get("icc_profile")

    def pack(rgb: Tensor, alpha: Tensor | None) -> PIL.Image.Image:
        result = PIL.Image.fromarray(pack_bands(rgb, alpha))
        if icc:
            result.info["icc_profile"] = icc
        return result

    return rgb, alpha, pack


def _unpack_array(bands: np.ndarray, gray_alpha: bool = False) -> Unpacked[np.ndarray]:
    channels = bands.shape[2] if bands.ndim == 3 else 1 if bands.ndim == 2 else 0
    if channels not in (1, 3, 4, *([2] if gray_alpha else [])) or not bands.size:
        raise ImageError(
            f"an array of shape {bands.shape} is not a picture; give [H, W], [H, W, 3] or [H, W, 4]."
        )
    if bands.dtype not in (np.uint8, np.uint16) and not np.issubdtype(bands.dtype, np.floating):
        raise ImageError(
            f"an array of {bands.dtype} is not supported; give uint8, uint16 or floats in [0, 1]."
        )
    levels = 1.0 if np.issubdtype(bands.dtype, np.floating) else float(np.iinfo(bands.dtype).max)
    values = (
        torch.from_numpy(np.atleast_3d(bands).astype(np.float32)).permute(2, 0, 1)[None] / levels
    )
    _check_range(values)
    colours = channels if channels % 2 else channels - 1
    rgb, alpha = (
        values[:, :colours].expand(-1, 3, -1, -1),
        values[:, colours:] if channels > colours else None,
    )

    def pack(rgb: Tensor, alpha: Tensor | None) -> np.ndarray:
        # the mean treats a colour cast of the model as noise
        rgb = rgb.mean(1, keepdim=True) if colours == 1 else rgb
        out = (rgb if alpha is None else torch.cat([rgb, alpha], 1))[0].permute(
            1, 2, 0
        ).cpu().numpy() * levels
        out = (out if levels == 1.0 else out.round()).astype(bands.dtype)
        return np.ascontiguousarray(out[..., 0] if bands.ndim == 2 else out)

    return rgb, alpha, pack


def _unpack_tensor(tensor: Tensor) -> Unpacked[Tensor]:
    if (
        tensor.ndim not in (3, 4)
        or tensor.shape[-3] != 3
        or not tensor.numel()
        or not tensor.is_floating_point()
    ):
        given = f"{tensor.dtype} of shape {tuple(tensor.shape)}"
        raise ImageError(
            f"a tensor {given} is not a picture; give floats in [0, 1] of shape [3, H, W] or [B, 3, H, W]."
        )
    values = tensor.detach().float().reshape(-1, *tensor.shape[-3:])
    _check_range(values)

    def pack(rgb: Tensor, alpha: Tensor | None) -> Tensor:
        return rgb.to(tensor.device, tensor.dtype).reshape(*tensor.shape[:-2], *rgb.shape[-2:])

    return values, None, pack


def _check_range(values: Tensor) -> None:
    low, high = values.aminmax()
    if not (low >= 0 and high <= 1):  # also refuses NaN
        raise ImageError(
            f"float pictures have values in [0, 1], this one reaches from {low:g} to {high:g}; scale it first."
        )


# ----------------------------------------------------------------------------------- colour fixes

WAVELET_LEVELS = 5  # the coarse band holds what is wider than about 2 ** 5 HR pixels


def keep(sr: Tensor, base: Tensor) -> Tensor:
    """No fix."""
    return sr


def wavelet(sr: Tensor, base: Tensor) -> Tensor:
    """high(sr) + low(base) = sr + low(base - sr), since the a-trous low pass is linear.

    Idea: StableSR (arXiv 2305.07015), which keeps the detail of the result and takes the coarse
    band from the LR picture.
    """
    low = base - sr
    for level in range(WAVELET_LEVELS):
        low = _smooth_rows(_smooth_rows(low, 2**level).mT, 2**level).mT
    return sr + low


def adain(sr: Tensor, base: Tensor) -> Tensor:
    """Mean and standard deviation of every channel over the picture become those of `base` (arXiv
    1703.06868, Eq. 8).
    """
    (std, mean), (base_std, base_mean) = (
        torch.std_mean(x, (2, 3), correction=0, keepdim=True) for x in (sr, base)
    )
    contrast = base_std / std.clamp_min(1e-4)  # a flat picture has none to scale
    return (sr - mean) * contrast + base_mean


COLOR_FIXES = {"none": keep, "wavelet": wavelet, "adain": adain}


def _smooth_rows(x: Tensor, step: int) -> Tensor:
    """Taps 1/4, 1/2, 1/4 at distance `step` along height; the border row goes on outside."""
    height = x.shape[-2]
    padded = F.pad(x, (0, 0, step, step), mode="replicate")
    return 0.25 * padded[..., :height, :] + 0.5 * x + 0.25 * padded[..., 2 * step :, :]
