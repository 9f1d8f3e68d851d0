"""The kinds of pictures: how a file shows which it is, what reads it here, what it can hold.

A file is what its first bytes say, not its suffix, and only these kinds are ever given to a decoder.
libvips reads first; Pillow reads what the libvips at hand was built without. Kinds that libvips
calls untrusted stay blocked, but for the two named here.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import PIL.features
import pyvips

# libvips warns line by line of what ImageError then says in one sentence
logging.getLogger("pyvips").setLevel(logging.CRITICAL)
pyvips.block_untrusted_set(True)
for _name in ("VipsForeignLoadJp2k", "VipsForeignLoadJxl"):
    pyvips.operation_block_set(_name, False)

# 268 million, 0.8 GB as 8-bit RGB: larger is more often an attack or a mistake than a photo
MAX_PIXELS = 2**28
MAX_BYTES = 2**31  # decoded


@dataclass(frozen=True)
class Format:
    """One kind of picture.

    loader: operation of libvips. pillow: the same kind in Pillow, or None. save: options of
    libvips, None = results are written as PNG. largest: pixels a side in a written file. holds:
    names of libvips' metadata fields that survive in it, by their beginning. densest: no file has
    more pixels than this a byte (None: no such limit).
    """

    name: str
    suffixes: tuple[str, ...]
    loader: str
    pillow: str | None = None
    save: dict[str, Any] | None = field(default=None, hash=False)
    largest: int = 2**31 - 1
    has_alpha: bool = True
    has_16_bits: bool = False
    holds: tuple[str, ...] = ()
    densest: int | None = None

    @property
    def has_quality(self) -> bool:
        """Whether it is written with losses, as many as a quality of 1 to 100 says."""
        return "Q" in (self.save or {})

    def is_readable(self) -> bool:
        """Whether anything installed here reads it."""
        return self.in_libvips() or self.in_pillow()

    def in_libvips(self) -> bool:
        return bool(pyvips.type_find("VipsOperation", f"{self.loader}_source"))

    def in_pillow(self) -> bool:
        if self.pillow == "AVIF":  # of Pillow 11.3 and later
            return "avif" in PIL.features.modules and PIL.features.check_module("avif")
        if self.pillow == "JPEG2000":
            return PIL.features.check_codec("jpg_2000")
        return self.pillow is not None


# chroma at full resolution, since an upscaler's colour edges are what it is judged by
PNG = Format(
    "PNG", (".png", ".apng"), "pngload", "PNG", {"compression": 6}, has_16_bits=True,
    holds=("exif-data", "xmp-data"), densest=8 * 1040,  # deflate: 1032 : 1, 1-bit pixels
)  # fmt: skip
JPEG = Format(
    "JPEG", (".jpg", ".jpeg", ".jpe", ".jfif"), "jpegload", None,
    {"Q": 95, "subsample_mode": "off", "optimize_coding": True}, 65500, has_alpha=False,
    holds=("exif-data", "xmp-data", "iptc-data"), densest=1024,  # one bit a block of 8 x 8, at least
)  # fmt: skip
WEBP = Format(
    "WebP", (".webp",), "webpload", "WEBP", {"Q": 95, "smart_subsample": True}, 16383,
    holds=("exif-data", "xmp-data"),
)  # fmt: skip
TIFF = Format(
    "TIFF", (".tif", ".tiff"), "tiffload", None,
    {"compression": "deflate", "predictor": "horizontal"}, has_16_bits=True,
    holds=("exif-data", "xmp-data", "iptc-data", "photoshop-data"),
)  # fmt: skip
AVIF = Format(
    "AVIF", (".avif",), "heifload", "AVIF",
    {"Q": 85, "compression": "av1", "subsample_mode": "off", "effort": 2}, 16384, has_16_bits=True,
    holds=("exif-data", "xmp-data"),
)  # fmt: skip
GIF = Format("GIF", (".gif",), "gifload", "GIF")  # 256 colours are too few for a result
BMP = Format("BMP", (".bmp", ".dib"), "no-loader", "BMP")
JPEG2000 = Format("JPEG 2000", (".jp2", ".j2k", ".jpx", ".j2c"), "jp2kload", "JPEG2000")
HEIC = Format("HEIC", (".heic", ".heif"), "heifload")
JXL = Format("JPEG XL", (".jxl",), "jxlload")
FORMATS = (PNG, JPEG, WEBP, TIFF, AVIF, GIF, BMP, JPEG2000, HEIC, JXL)

BY_SUFFIX = {suffix: kind for kind in FORMATS for suffix in kind.suffixes}
# what find_images takes
SUFFIXES = tuple(suffix for suffix, kind in BY_SUFFIX.items() if kind.is_readable())
# what write_image writes
WRITES = tuple(suffix for suffix, kind in BY_SUFFIX.items() if kind.save is not None)
# said to users; whether a HEIC's codec is there, only reading one tells
READABLE = ", ".join(kind.name for kind in FORMATS if kind.is_readable() and kind is not HEIC)

HEAD = 32  # bytes that show the kind
_HEADS = (
    (b"\x89PNG\r\n\x1a\n", PNG),
    (b"\xff\xd8\xff", JPEG),
    (b"II*\0", TIFF),
    (b"MM\0*", TIFF),
    (b"II+\0", TIFF),  # BigTIFF
    (b"MM\0+", TIFF),
    (b"GIF87a", GIF),
    (b"GIF89a", GIF),
    (b"BM", BMP),
    (b"\0\0\0\x0cjP  \r\n\x87\n", JPEG2000),
    (b"\xff\x4f\xff\x51", JPEG2000),
    (b"\0\0\0\x0cJXL \r\n\x87\n", JXL),
    (b"\xff\x0a", JXL),
)


def kind_of(head: bytes) -> Format | None:
    """The kind by the first HEAD bytes of a file."""
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return WEBP
    if head[4:8] == b"ftyp":  # brands: the major one, its version, compatible ones
        brands = {head[at : at + 4] for at in (8, *range(16, HEAD, 4))}
        if brands & {b"avif", b"avis"}:
            return AVIF
        return HEIC if brands & {b"heic", b"heix", b"hevc", b"heim", b"mif1", b"msf1"} else None
    return next((kind for start, kind in _HEADS if head.startswith(start)), None)


def output_format(path: Path) -> Format | None:
    """The kind that a result of this name is written in; None where none is."""
    kind = BY_SUFFIX.get(path.suffix.lower())
    return kind if kind is not None and kind.save is not None else None
