"""One picture in memory, and its way to tensors and back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ldm_dream.data.metadata import Metadata, Texts
from ldm_dream.errors import UserError


class ImageError(UserError, ValueError):
    """A picture that cannot be read or written; its text names the file and the reason, complete
    for the user.
    """


@dataclass(frozen=True)
class Image:
    """One upright RGB picture.

    pixels: [H, W, 3] uint8 or uint16. alpha: [H, W] of the same dtype, straight, or None. icc:
    colour profile of the pixels. was_gray: the file had one colour channel (write_image then writes
    one again). space: chunks of a PNG, (name, content), that say what the colours mean. metadata:
    what else the file said. is_lossless: the file was a lossless WebP. bits: of a channel in the
    file, where that was an AVIF or HEIC of 10 or 12.
    """

    pixels: np.ndarray
    alpha: np.ndarray | None = None
    icc: bytes | None = None
    was_gray: bool = False
    space: Texts = ()
    metadata: Metadata | None = None
    is_lossless: bool = False
    bits: int | None = None

    def __repr__(self) -> str:
        """Size, depth and kind, without the pixels."""
        height, width = self.pixels.shape[:2]
        kind = "gray" if self.was_gray else "RGB"
        alpha = " with alpha" if self.alpha is not None else ""
        return f"<ldm_dream.Image {width}x{height} {kind}{alpha}, {self.pixels.dtype}>"


def to_tensor(image: Image) -> Tensor:
    """Image -> float32 [1, 3, H, W] in [-1, 1] (alpha is not part of it)."""
    pixels = torch.from_numpy(image.pixels.astype(np.float32)).permute(2, 0, 1)[None]
    return (pixels * (2 / np.iinfo(image.pixels.dtype).max) - 1).contiguous()


def from_tensor(tensor: Tensor, dtype: type = np.uint8) -> np.ndarray:
    """Float [1, 3, H, W] in [-1, 1] -> pixels [H, W, 3] of uint8 or uint16: clamped, rounded half
    to even.

    Raises ValueError for another shape and for NaN or infinity, which would become arbitrary
    colours.
    """
    if tensor.ndim != 4 or tensor.shape[:2] != (1, 3):
        raise ValueError(
            f"from_tensor: got shape {tuple(tensor.shape)}; it takes one picture, [1, 3, H, W]."
        )
    tensor = tensor.detach().float().cpu()
    if not tensor.isfinite().all():
        raise ValueError(
            "from_tensor: the picture holds NaN or infinity; run the model in a wider dtype (bf16 or fp32)."
        )
    levels = (tensor.clamp(-1, 1) + 1) / 2 * np.iinfo(dtype).max
    return levels[0].permute(1, 2, 0).numpy().round().astype(dtype)


def to_uint8(pixels: np.ndarray) -> np.ndarray:
    """uint8 or uint16 -> uint8; 16-bit levels are rounded to the nearest of 0, 257, 514, ...,
    65535.
    """
    return (
        pixels
        if pixels.dtype == np.uint8
        else ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)
    )
