"""Pictures on disk <-> arrays and tensors, through libvips: 16 bits, alpha and colour profile
survive the trip.

`read_image` gives every picture one form: upright (EXIF orientation applied), RGB, alpha apart.
What cannot be read whole is an `ImageError` with one sentence; a truncated file is never returned
half grey. `write_image` writes beside and renames.

Alpha is straight (not premultiplied), as PNG, WebP and common TIFF store it, so colours need no
un-premultiplying.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyvips
import torch
from torch import Tensor

from ldm_dream.errors import UserError

log = logging.getLogger(__name__)
# libvips warns line by line of what ImageError then says in one sentence
logging.getLogger("pyvips").setLevel(logging.ERROR)

# 268 million, 0.8 GB as 8-bit RGB: larger is more often an attack or a mistake than a photo
MAX_PIXELS = 2**28
# what find_images takes and write_image offers
SUFFIXES = (
    ".png",
    ".jpg",
    ".jpeg",
    ".webp",
    ".tif",
    ".tiff",
)
_LOADERS = ("pngload", "jpegload", "webpload", "tiffload")
_GRAY, _RGB = ("b-w", "grey16"), ("srgb", "rgb16", "rgb")
# libvips options; chroma at full resolution, since an upscaler's colour edges are what it is judged
# by
_SAVE = {
    ".png": {"compression": 6},
    ".jpg": {"Q": 95, "subsample_mode": "off", "optimize_coding": True},
    ".webp": {"Q": 95, "smart_subsample": True},
    ".tif": {"compression": "deflate", "predictor": "horizontal"},
}
_SAVE |= {".jpeg": _SAVE[".jpg"], ".tiff": _SAVE[".tif"]}


class ImageError(UserError, ValueError):
    """A picture that cannot be read or written; its text names the file and the reason, complete
    for the user.
    """


@dataclass(frozen=True)
class Image:
    """One upright RGB picture.

    pixels: [H, W, 3] uint8 or uint16. alpha: [H, W] of the same dtype, straight, or None. icc:
    colour profile of the pixels. was_gray: the file had one colour channel (write_image then writes
    one again).
    """

    pixels: np.ndarray
    alpha: np.ndarray | None = None
    icc: bytes | None = None
    was_gray: bool = False


def read_image(path: str | Path, max_pixels: int = MAX_PIXELS) -> Image:
    """Decode PNG, JPEG, WebP or TIFF (8 or 16 bits; grey, palette, RGB or CMYK, with or without
    alpha). Raises ImageError.

    A picture of more than `max_pixels` is refused from its header, before anything is decoded. CMYK
    becomes 8-bit sRGB.
    """
    path = Path(path)
    image = _open(path)
    if image.width * image.height > max_pixels:
        raise ImageError(
            f"{path}: {image.width}x{image.height} is more than the allowed {max_pixels} pixels; cut it or raise the limit."
        )
    if (pages := _number(image, "n-pages")) > 1:
        log.warning("%s: has %d pages or frames; only the first is used.", path, pages)
    try:
        image = image.copy_memory().autorot()
        if image.interpretation == "cmyk":
            image = image.icc_transform("srgb", embedded=True, input_profile="cmyk")
            image.remove("icc-profile-data")
        return _from_vips(path, image)
    except pyvips.Error as error:
        raise ImageError(f"{path}: broken or truncated picture ({_reason(error)}).") from None


def image_size(path: str | Path) -> tuple[int, int]:
    """(height, width) of the upright picture, from the header alone. Raises ImageError."""
    image = _open(Path(path))
    is_turned = _number(image, "orientation") >= 5
    return (image.width, image.height) if is_turned else (image.height, image.width)


def write_image(path: str | Path, image: Image) -> None:
    """Write by suffix (png, jpg, webp, tif); an existing file is replaced whole or not at all.
    Raises ImageError.

    16 bits stay in PNG and TIFF and are rounded to 8 in JPEG and WebP, which hold no more. JPEG
    holds no alpha: a picture that is not opaque is refused there.
    """
    path = Path(path)
    options = _SAVE.get(path.suffix.lower())
    if options is None:
        raise ImageError(
            f"{path}: cannot write {path.suffix or 'a name without suffix'}; use one of {', '.join(_SAVE)}."
        )
    pixels, alpha = image.pixels, image.alpha
    if path.suffix.lower() in (".jpg", ".jpeg") and alpha is not None:
        if alpha.min() < np.iinfo(alpha.dtype).max:
            raise ImageError(f"{path}: JPEG cannot hold transparency; write png, webp or tif.")
        alpha = None
    if path.suffix.lower() in (".jpg", ".jpeg", ".webp"):
        pixels, alpha = to_uint8(pixels), None if alpha is None else to_uint8(alpha)
    # the mean gives equal channels back exactly and treats a colour cast of the model as noise
    if image.was_gray:
        pixels = np.rint(pixels.mean(2, keepdims=True)).astype(pixels.dtype)
    bands = pixels if alpha is None else np.concatenate([pixels, alpha[..., None]], 2)
    space = {(True, 1): "b-w", (True, 2): "grey16", (False, 1): "srgb", (False, 2): "rgb16"}[
        image.was_gray, pixels.itemsize
    ]
    picture = pyvips.Image.new_from_array(np.ascontiguousarray(bands)).copy(interpretation=space)
    if image.icc is not None:
        blob: Any = image.icc  # pyvips' annotations leave bytes out
        picture.set_type(pyvips.GValue.blob_type, "icc-profile-data", blob)
    try:
        data = picture.write_to_buffer(path.suffix.lower(), **options)
    except pyvips.Error as error:
        raise ImageError(f"{path}: cannot be encoded ({_reason(error)}).") from None
    _write_whole(path, data)


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


def find_images(path: str | Path, recursive: bool = False) -> list[Path]:
    """A file -> itself; a folder -> its pictures by suffix, sorted, without hidden files. Raises
    ImageError if there is none.
    """
    path = Path(path)
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise ImageError(f"{path}: no such file or folder.")
    candidates = path.rglob("*") if recursive else path.iterdir()
    found = sorted(
        p
        for p in candidates
        if p.suffix.lower() in SUFFIXES and not p.name.startswith(".") and p.is_file()
    )
    if not found:
        where = (
            "the folder and its subfolders hold"
            if recursive
            else "the folder holds (without its subfolders)"
        )
        raise ImageError(f"{path}: {where} no picture; looked for {', '.join(SUFFIXES)}.")
    return found


def _open(path: Path) -> pyvips.Image:
    """Header of a picture; pixels are decoded on use, and any decoding error then raises."""
    if path.is_dir():
        raise ImageError(f"{path}: is a folder, not a picture.")
    if not path.exists():
        raise ImageError(f"{path}: no such file.")
    try:
        if path.stat().st_size == 0:
            raise ImageError(f"{path}: the file is empty.")
        with path.open("rb"):
            pass  # libvips hides the reason when a file may not be read; open() names it
        # A source, not new_from_file: that reads "[...]" in a file name as options and caches by
        # name.
        source = pyvips.Source.new_from_file(str(path))
        image = pyvips.Image.new_from_source(source, "", access="sequential", fail_on="error")
    except OSError as error:
        raise ImageError(f"{path}: cannot be read: {error.strerror}.") from None
    except pyvips.Error as error:
        unknown = "not in a known format" in str(error)
        reason = (
            "not a picture in PNG, JPEG, WebP or TIFF, or its header is broken"
            if unknown
            else f"broken picture ({_reason(error)})"
        )
        raise ImageError(f"{path}: {reason}.") from None
    if not str(image.get("vips-loader")).startswith(_LOADERS):
        raise ImageError(
            f"{path}: its format is not supported; convert it to PNG, JPEG, WebP or TIFF."
        )
    return image


def _number(image: pyvips.Image, field: str) -> int:
    """A whole number of the header; 1 where it holds none."""
    value = image.get(field) if image.get_typeof(field) else 1
    return value if isinstance(value, int) else 1


def _from_vips(path: Path, image: pyvips.Image) -> Image:
    was_gray = image.interpretation in _GRAY
    bands = image.numpy().reshape(image.height, image.width, image.bands)
    colours = 1 if was_gray else 3
    if bands.dtype not in (np.uint8, np.uint16) or not (was_gray or image.interpretation in _RGB):
        raise ImageError(
            f"{path}: {image.interpretation} pixels of type {bands.dtype} are not supported; convert to 8 or 16-bit RGB."
        )
    if image.bands not in (colours, colours + 1):
        raise ImageError(
            f"{path}: {image.bands} channels are not supported; convert to grey or RGB, with or without alpha."
        )
    pixels = np.repeat(bands[..., :colours], 3 // colours, axis=2)
    alpha = bands[..., colours].copy() if image.bands > colours else None
    icc: Any = image.get("icc-profile-data") if image.get_typeof("icc-profile-data") else None
    return Image(pixels, alpha, None if icc is None else bytes(icc), was_gray)


def _write_whole(path: Path, data: bytes) -> None:
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with beside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError as error:
        raise ImageError(f"{path}: cannot be written: {error.strerror}.") from None
    finally:
        beside.unlink(missing_ok=True)


def _reason(error: pyvips.Error) -> str:
    lines = [line.strip() for line in (error.detail or error.message).splitlines() if line.strip()]
    return lines[0] if lines else "no reason given by libvips"
