"""What a picture loses as a baseline JPEG with 4:2:0 colour: by libjpeg itself on the CPU, by the
same arithmetic in torch on any device; and as a lossy WebP, on the CPU.

Images are float32 [1,3,H,W] in grey levels, 0..255; results are whole levels. The two differ where
libjpeg's integer transform rounds a coefficient the other way: by 0.1 levels on average, which
tests/data/test_jpeg_loss.py holds to. Steps and tables: ITU-T T.81, Annex K; rounding and chroma:
libjpeg-turbo's jccolor.c, jcsample.c, jdsample.c.
"""

from __future__ import annotations

import functools
import io
import math

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 8
# T.81, tables K.1 and K.2
LUMA = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
CHROMA = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    *((99,) * 8,) * 4,
)


def by_libjpeg(image: Tensor, quality: int) -> Tensor:
    """quality 1..100."""
    return _by_pillow(image, "jpeg", quality)


def by_libwebp(image: Tensor, quality: int) -> Tensor:
    """Lossy WebP, whose blocks are predicted from their neighbours; quality 1..100."""
    return _by_pillow(image, "webp", quality)


def _by_pillow(image: Tensor, kind: str, quality: int) -> Tensor:
    planes = image[0].round().clamp_(0, 255).numpy().astype(np.uint8)
    picture = PIL.Image.merge("RGB", [PIL.Image.fromarray(plane) for plane in planes])
    file = io.BytesIO()
    picture.save(file, kind, quality=quality)
    decoded = np.stack([np.asarray(plane) for plane in PIL.Image.open(file).split()])
    return torch.from_numpy(decoded).float()[None]


@functools.lru_cache(maxsize=100)
def quality_tables(quality: int) -> np.ndarray:
    """libjpeg's divisors of luma and chroma for a quality 1..100 -> float32 [2,64]."""
    percent = 5000 // quality if quality < 50 else 200 - 2 * quality
    tables = (np.reshape((LUMA, CHROMA), (2, 64)) * percent + 50) // 100
    return tables.clip(1, 255).astype(np.float32)


def by_torch(image: Tensor, tables: Tensor) -> Tensor:
    """tables: of `quality_tables`, on the image's device."""
    height, width = image.shape[-2:]
    luma, chroma = _to_ycc(image.round().clamp_(0, 255))
    luma = _coded(_grown(luma, BLOCK, BLOCK), tables[0])[..., :height, :width]
    halved = _halved(_grown(chroma, 2, 2 * BLOCK))  # columns are filled before, rows behind it
    chroma = _coded(_grown(halved, BLOCK, BLOCK), tables[1])
    doubled = _doubled(chroma[..., : -(-height // 2), : -(-width // 2)])
    return _to_rgb(luma, doubled[..., :height, :width])


# ------------------------------------------------------------------------------------------- colour


def _to_ycc(rgb: Tensor) -> tuple[Tensor, Tensor]:
    """-> luma [1,1,H,W], chroma (Cb, Cr) [1,2,H,W], whole levels."""
    red, green, blue = rgb.split(1, dim=1)
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    chroma = torch.cat([(blue - luma) / 1.772, (red - luma) / 1.402], dim=1)
    return luma.round(), (chroma + 128).round_()


def _to_rgb(luma: Tensor, chroma: Tensor) -> Tensor:
    cb, cr = (chroma - 128).split(1, dim=1)
    green = (0.344136286 * cb + 0.714136286 * cr).round()
    change = torch.cat([(1.402 * cr).round(), -green, (1.772 * cb).round()], dim=1)
    return (luma + change).clamp_(0, 255)


def _halved(chroma: Tensor) -> Tensor:
    """Means of 2x2 pixels; what lies between two levels goes down and up in turns, by column."""
    mean = F.avg_pool2d(chroma, 2)
    turn = torch.arange(mean.shape[-1], device=mean.device) % 2
    return (mean + (turn + 1) / 4).floor_()


def _doubled(chroma: Tensor) -> Tensor:
    """Triangle filter: 3 parts of the nearer pixel, 1 of the next, along each axis. Of pictures of
    up to 2 chroma pixels a row libjpeg repeats the pixels.
    """
    if chroma.shape[-1] <= 2:
        return F.interpolate(chroma, scale_factor=2)
    rows = _between(F.pad(chroma, (1, 1, 1, 1), mode="replicate"), dim=-2)
    sums = _between(rows, dim=-1)
    turn = torch.arange(sums.shape[-1], device=sums.device) % 2
    return ((sums + (8 - turn)) / 16).floor_()


def _between(padded: Tensor, dim: int) -> Tensor:
    """n + 2 pixels along dim -> 2n: 3 * nearer + next."""
    length = padded.shape[dim] - 2
    before, here, after = (padded.narrow(dim, start, length) for start in range(3))
    return torch.stack([3 * here + before, 3 * here + after], dim=dim).flatten(dim - 1, dim)


# ------------------------------------------------------------------------------------------- blocks


def _coded(planes: Tensor, table: Tensor) -> Tensor:
    """[1,C,H,W], sides in multiples of 8, table [64] -> the same with coefficients in multiples of
    the table's.

    Both transforms round twice, as libjpeg's do (jfdctint.c, jidctint.c): to quarters between the
    axes, to eighths or levels behind both. float64 holds these numbers, where float32 products of
    matrices may be rounded to TF32.
    """
    _, channels, height, width = planes.shape
    grid = (channels, height // BLOCK, BLOCK, width // BLOCK, BLOCK)
    blocks = planes.reshape(grid).transpose(2, 3).double() - 128
    waves, divisors = _waves(planes.device), table.view(BLOCK, BLOCK)
    eighths = _rounded(waves @ _rounded(4 * blocks @ waves.T) / 4)
    steps = (eighths / (8 * divisors) + eighths.sign() / 2).trunc_()  # halves go away from 0
    levels = _rounded(_rounded(4 * waves.T @ (steps * divisors)) @ waves / 32)
    return (levels + 128).clamp_(0, 255).to(planes.dtype).transpose(2, 3).reshape(planes.shape)


def _rounded(numbers: Tensor) -> Tensor:
    """Halves go up; what is a half but for float64's rounding too."""
    return (numbers + (0.5 + 1e-9)).floor_()


@functools.lru_cache(maxsize=16)
def _waves(device: torch.device) -> Tensor:
    """The cosine transform of 8 pixels, sqrt(8) times the orthogonal one: float64 [8,8]."""
    place = np.arange(BLOCK)
    waves = np.cos(np.outer(place, 2 * place + 1) * math.pi / (2 * BLOCK)) * math.sqrt(2)
    waves[0] = 1
    return torch.from_numpy(waves).to(device)


def _grown(planes: Tensor, rows: int, columns: int) -> Tensor:
    """Sides up to multiples of `rows` and `columns`; the last pixels are repeated."""
    height, width = planes.shape[-2:]
    return F.pad(planes, (0, -width % columns, 0, -height % rows), mode="replicate")
