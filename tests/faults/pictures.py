"""Damaged pictures: every one is refused in a sentence, or read with the right pixels.

Seeds are small pictures of every kind that is read here, made from one random picture. A mutant has
flipped bits, bytes cut out or cut off, pieces of another file put in, or numbers of its header
changed. It goes through `read_image`, the function of the tools, and has one of these ends:

- refused: an ImageError whose text is one printable line and names the file.
- said: read, with a warning in the log.
- same: read without a word, with every pixel of the undamaged seed.
- agreed: read without a word, with other pixels that Pillow reads from the same bytes as well,
  each within 1 level.
- unchecked: read without a word, with other pixels, where nothing in the file could tell. Of JPEG,
  WebP, GIF, BMP, AVIF, JPEG 2000 and most TIFF no checksum guards the coded pixels, and Pillow may
  refuse or round in another way. This end is allowed for bytes that were changed or put in, never
  for bytes that are gone, and never for a PNG, whose every byte has a checksum.

Anything else is a fault, as are a traceback, a crash, a hang and a hunger for memory.
"""

from __future__ import annotations

import io
import logging
import os
import tempfile
import warnings
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageOps
import pyvips

from faults.runner import Tally, run_all
from ldm_dream.data.formats import FORMATS
from ldm_dream.data.images import Image, ImageError, read_image, write_image

HEIGHT, WIDTH = 24, 40
ENDS = ("refused", "said", "same", "agreed", "unchecked")


def run(n: int, seed: int) -> Tally:
    os.environ.setdefault("VIPS_CONCURRENCY", "1")
    with tempfile.TemporaryDirectory() as folder:
        return run_all(partial(check, Path(folder), seed), n)


def check(folder: Path, seed: int, number: int) -> str:
    random = np.random.default_rng((seed, number))
    name, whole = list(corpus().items())[random.integers(len(corpus()))]
    data, is_all_there = mutant(random, whole)
    return judge(folder / f"{os.getpid()}-{name}", data, whole, is_all_there)


def judge(path: Path, data: bytes, whole: bytes, is_all_there: bool) -> str:
    """-> the end of one mutant. Raises AssertionError for a fault."""
    path.write_bytes(data)
    said = Said()
    log = logging.getLogger("ldm_dream")
    log.addHandler(said)
    try:
        image = read_image(path)
    except ImageError as error:
        text = str(error)
        assert text.isprintable() and path.name in text, f"not one sentence: {text!r}"
        return "refused"
    finally:
        log.removeHandler(said)
    if said.count:
        return "said"
    found = stacked(image)
    path.write_bytes(whole)
    if np.array_equal(found, stacked(read_quietly(path))):
        return "same"
    other = by_pillow(data, image)
    if other is not None and is_close(found, other):
        return "agreed"
    kept = Path(tempfile.gettempdir()) / f"fault-{path.name}"
    kept.write_bytes(data)
    assert is_all_there and path.suffix != ".png", f"read without a word, wrong pixels: {kept}"
    kept.unlink()
    return "unchecked"


class Said(logging.Handler):
    """Counts warnings."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.count = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.count += 1


def read_quietly(path: Path) -> Image:
    logging.disable()
    try:
        return read_image(path)
    finally:
        logging.disable(logging.NOTSET)


def stacked(image: Image) -> np.ndarray:
    """[H, W, 3 or 4] in 8 bits, as float."""
    levels = np.iinfo(image.pixels.dtype).max
    bands = image.pixels if image.alpha is None else np.dstack([image.pixels, image.alpha])
    return bands * (255 / levels)


def is_close(one: np.ndarray, other: np.ndarray) -> bool:
    """Every value within rounding: AVIF's colours are off by 1, all others are equal."""
    return one.shape == other.shape and bool(np.abs(one - other).max() <= 1)


def by_pillow(data: bytes, image: Image) -> np.ndarray | None:
    """The pixels that Pillow reads, upright, with as many channels; None where it refuses."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            opened = PIL.Image.open(io.BytesIO(data))
            opened.load()
            turned = PIL.ImageOps.exif_transpose(opened)
            if turned.mode.startswith("I;16"):
                bands = np.asarray(turned)[..., None].repeat(3, 2) * (255 / 65535)
                return bands if image.alpha is None else None
            if turned.mode == "CMYK":  # Pillow's own conversion knows no profile
                inks = pyvips.Image.new_from_array(np.asarray(turned)).copy(interpretation="cmyk")
                return inks.icc_transform("srgb", input_profile="cmyk").numpy().astype(float)
            mode = "RGB" if image.alpha is None else "RGBA"
            return np.asarray(turned.convert(mode)).astype(float)
    except Exception:  # its readers raise many kinds
        return None


# ------------------------------------------------------------------------------------ the mutants


def mutant(random: np.random.Generator, whole: bytes) -> tuple[bytes, bool]:
    """-> bytes, and whether none were taken away."""
    data, is_all_there = bytearray(whole), True
    for _ in range(2 if random.random() < 0.2 else 1):
        change = MUTATIONS[random.integers(len(MUTATIONS))]
        data = change(random, data)
        is_all_there &= change not in CUTS
    return bytes(data), is_all_there


def flip(random: np.random.Generator, data: bytearray) -> bytearray:
    for _ in range(random.integers(1, 6)):
        data[random.integers(len(data))] ^= 1 << random.integers(8)
    return data


def cut_off(random: np.random.Generator, data: bytearray) -> bytearray:
    return data[: random.integers(1, len(data) + 1)]


def cut_and_close(random: np.random.Generator, data: bytearray) -> bytearray:
    """As a tool does that mends a cut file: its last bytes stand at the end again."""
    end = int(random.integers(1, 13))
    return data[: random.integers(1, len(data) + 1)] + data[-end:]


def cut_out(random: np.random.Generator, data: bytearray) -> bytearray:
    start = int(random.integers(len(data)))
    del data[start : start + int(random.integers(1, 200))]
    return data or bytearray(b"\0")


def splice(random: np.random.Generator, data: bytearray) -> bytearray:
    """A piece of another seed, over or between."""
    other = list(corpus().values())[random.integers(len(corpus()))]
    start, length = int(random.integers(len(other))), int(random.integers(1, 200))
    place = int(random.integers(len(data)))
    piece = other[start : start + length]
    data[place : place + len(piece) * int(random.integers(2))] = piece
    return data


def edit_header(random: np.random.Generator, data: bytearray) -> bytearray:
    """Numbers that lie: one to four bytes of the first hundred (a TIFF's last) become extreme."""
    size = int(random.choice([1, 2, 4]))
    at = int(random.integers(min(len(data), 100)))
    at = len(data) - size - at if random.random() < 0.2 else at
    values = (b"\0" * size, b"\xff" * size, b"\x7f" + b"\xff" * (size - 1), random.bytes(size))
    data[max(0, at) : max(0, at) + size] = values[random.integers(len(values))]
    return data


Mutation = Callable[[np.random.Generator, bytearray], bytearray]
CUTS: tuple[Mutation, ...] = (cut_off, cut_and_close, cut_out)
MUTATIONS: tuple[Mutation, ...] = (flip, flip, *CUTS, splice, edit_header)


# ---------------------------------------------------------------------------------------- the seeds


@cache
def corpus() -> dict[str, bytes]:
    """Name of a file -> its bytes; the suffix is that of its kind."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    waves = [128 + 90 * np.sin(x / 5 + i) * np.cos(y / (4 + i)) for i in range(3)]
    rgb = np.dstack(waves) + random.normal(0, 6, (HEIGHT, WIDTH, 3))
    rgb = rgb.clip(0, 255).astype(np.uint8)
    alpha = (x * 255 // WIDTH).astype(np.uint8)
    rgba = np.dstack([rgb, alpha])
    exif = PIL.Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "Maker"
    seeds = _by_pillow(rgb, rgba, exif) | _by_libvips(rgb, rgba)
    readable = {suffix[1:] for kind in FORMATS if kind.is_readable() for suffix in kind.suffixes}
    return {name: data for name, data in seeds.items() if name.rpartition(".")[2] in readable}


def _by_pillow(rgb: np.ndarray, rgba: np.ndarray, exif: PIL.Image.Exif) -> dict[str, bytes]:
    colour, clear = PIL.Image.fromarray(rgb), PIL.Image.fromarray(rgba)
    gray, cmyk = colour.convert("L"), colour.convert("CMYK")
    kinds: dict[str, tuple[PIL.Image.Image, str, dict]] = {
        "base.jpg": (colour, "JPEG", {}),
        "exif.jpg": (colour, "JPEG", {"exif": exif, "dpi": (300, 300)}),
        "progressive.jpg": (colour, "JPEG", {"progressive": True}),
        "gray.jpg": (gray, "JPEG", {}),
        "grayprogressive.jpg": (gray, "JPEG", {"progressive": True}),
        "cmyk.jpg": (cmyk, "JPEG", {}),
        "full.jpg": (colour, "JPEG", {"subsampling": 0, "optimize": True}),
        "restart.jpg": (colour, "JPEG", {"restart_marker_blocks": 2}),
        "rgb.png": (colour, "PNG", {"exif": exif}),
        "rgba.png": (clear, "PNG", {"dpi": (300, 300)}),
        "gray.png": (gray, "PNG", {}),
        "palette.png": (colour.quantize(16), "PNG", {"transparency": 1}),
        "bit.png": (gray.convert("1"), "PNG", {}),
        "animated.png": (colour, "PNG", {"save_all": True, "append_images": [colour.rotate(9)]}),
        "lossy.webp": (colour, "WEBP", {}),
        "lossless.webp": (clear, "WEBP", {"lossless": True}),
        "alpha.webp": (clear, "WEBP", {"exif": exif}),
        "raw.tif": (colour, "TIFF", {}),
        "lzw.tif": (colour, "TIFF", {"compression": "tiff_lzw"}),
        "packbits.tif": (gray, "TIFF", {"compression": "packbits"}),
        "jpeg.tif": (colour, "TIFF", {"compression": "jpeg"}),
        "cmyk.tif": (cmyk, "TIFF", {}),
        "fax.tif": (gray.convert("1"), "TIFF", {"compression": "group4"}),
        "palette.gif": (colour.quantize(64), "GIF", {}),
        "rgb.bmp": (colour, "BMP", {}),
        "palette.bmp": (colour.quantize(16), "BMP", {}),
        "rgba.bmp": (clear, "BMP", {}),
        "rgb.jp2": (colour, "JPEG2000", {}),
        "lossy.jp2": (colour, "JPEG2000", {"irreversible": True, "quality_layers": [20]}),
    }
    return {name: _saved(*how) for name, how in kinds.items()}


def _saved(image: PIL.Image.Image, kind: str, options: dict) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _by_libvips(rgb: np.ndarray, rgba: np.ndarray) -> dict[str, bytes]:
    seeds = {}
    wide = rgba.astype(np.uint16) * 257
    with tempfile.TemporaryDirectory() as folder:
        for name in ("wide.png", "wide.tif", "rgb.avif", "rgba.avif"):
            bands = rgb if name == "rgb.avif" else wide
            alpha = bands[..., 3] if bands.shape[2] == 4 else None
            path = Path(folder) / name
            write_image(path, Image(np.ascontiguousarray(bands[..., :3]), alpha))
            seeds[name] = path.read_bytes()
    picture = pyvips.Image.new_from_array(rgb).copy(interpretation="srgb")
    seeds["tiled.tif"] = picture.tiffsave_buffer(tile=True, tile_width=16, tile_height=16)
    seeds["interlaced.png"] = picture.pngsave_buffer(interlace=True)
    floats = (picture / 255).cast("float").copy(interpretation="scrgb")
    seeds["float.tif"] = floats.tiffsave_buffer(compression="deflate", predictor="float")
    clear = pyvips.Image.new_from_array(rgba).copy(interpretation="srgb")
    seeds["associated.tif"] = clear.premultiply().cast("uchar").tiffsave_buffer(premultiply=True)
    return seeds
