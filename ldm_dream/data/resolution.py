"""How many pixels an inch a file says, in its own place for it and in EXIF; where it says nothing, so
does what is written of it. libvips knows only numbers: it reads and writes 72 where there is none.

PNG 3.0, 11.3.4.3 (pHYs); JFIF 1.02; TIFF 6.0, section 8; EXIF 2.32, 4.6.4.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO, TypeAlias

from PIL.Image import Exif

from ldm_dream.data.formats import JPEG, PNG, Format
from ldm_dream.data.png import packed
from ldm_dream.data.tiff import RESOLUTION, quiet

Dpi: TypeAlias = tuple[float, float]  # pixels an inch along x and y, above 0

JFIF = 18  # bytes of the header with a resolution that a JPEG begins with, behind its first two
_INCH = 0.0254  # metres
_X, _Y, _UNIT = RESOLUTION
_INCHES = {2: 1.0, 3: 2.54}  # unit of TIFF and EXIF, an inch and a centimetre -> dpi of one of it
_OF_JFIF = {1: 1.0, 2: 2.54}
_SCAN = b"\xda"  # of a JPEG: behind it come the pixels
_SIGNATURE = 8  # bytes of a PNG before its chunks
_MOST_PARTS = 10000  # chunks of a PNG or segments of a JPEG, of which a few are usual


def dpi_in_place(file: BinaryIO, kind: Format) -> Dpi | None:
    """What a file of whatever content says in the place that PNG or JPEG has for it."""
    if kind is PNG:
        return _of_png(file)
    return _of_jfif(file) if kind is JPEG else None


def dpi_in_exif(block: bytes) -> Dpi | None:
    """What EXIF says; None for a damaged block. libexif adds what is missing, Pillow does not."""
    try:
        with quiet():
            exif = Exif()
            exif.load(block)
            return dpi_in_tags(exif)
    except Exception:  # Pillow's parsers raise many kinds
        return None


def dpi_in_tags(tags: Mapping[int, Any]) -> Dpi | None:
    """What the first directory of a TIFF or of EXIF says."""
    scale = _INCHES.get(tags.get(_UNIT, 2))
    if scale is None or _X not in tags or _Y not in tags:
        return None
    try:
        return possible((float(tags[_X]) * scale, float(tags[_Y]) * scale))
    except (TypeError, ValueError):  # texts, or several numbers
        return None


def possible(dpi: tuple[Any, Any] | None) -> Dpi | None:
    """None for a resolution of 0 or without end, as files without one have it."""
    x, y = (float(one) for one in dpi or (0, 0))
    return (x, y) if 0 < x < math.inf and 0 < y < math.inf else None


def _of_png(file: BinaryIO) -> Dpi | None:
    for name, place, length in _chunks(file, 0):
        if name == b"pHYs" and length == 9:
            file.seek(place)
            content = (chunk := file.read(12 + length))[8:17]
            if chunk != packed([(name, content)]):  # damaged, which `read_chunks` says
                return None
            x, y, is_metre = struct.unpack(">IIB", content)
            return possible((x * _INCH, y * _INCH)) if is_metre == 1 else None
    return None


def _of_jfif(file: BinaryIO) -> Dpi | None:
    """The header is often, but not always, the first segment."""
    place = 2
    for _ in range(_MOST_PARTS):
        file.seek(place)
        head = file.read(JFIF)
        if len(head) < JFIF or head[:1] != b"\xff" or head[1:2] == _SCAN:
            return None
        if head[1:2] == b"\xe0" and head[4:9] == b"JFIF\0":
            unit, x, y = struct.unpack_from(">BHH", head, 11)
            scale = _OF_JFIF.get(unit, 0)
            return possible((x * scale, y * scale))
        place += 2 + struct.unpack_from(">H", head, 2)[0]
    return None


# ---------------------------------------------------------------------------------------- writing


def add_jfif(file: BinaryIO, dpi: Dpi | None) -> None:
    """Into a file that holds a JPEG behind JFIF free bytes. A dpi is written in whole numbers."""
    x, y = (min(max(round(one), 1), 65535) for one in dpi or (1, 1))
    file.seek(0)
    file.write(struct.pack(">HHH5sHBHHH", 0xFFD8, 0xFFE0, JFIF - 2, b"JFIF\0", 0x102, bool(dpi), x, y, 0))  # fmt: skip


def drop_from_png(file: BinaryIO, start: int) -> None:
    """Of the PNG that begins at `start`, without moving its pixels: these are square and of no size."""
    for name, place, _ in _chunks(file, start):
        if name == b"pHYs":
            file.seek(place)
            file.write(packed([(name, struct.pack(">IIB", 1, 1, 0))]))
            return


def drop_from_tiff(file: BinaryIO) -> None:
    """Of the first directory, which becomes shorter in its place."""
    file.seek(0)
    head = file.read(16)
    order, is_big = "<" if head[:2] == b"II" else ">", 43 in head[2:4]
    count, offset, size = ("Q", "Q", 20) if is_big else ("H", "I", 12)
    (place,) = struct.unpack_from(order + offset, head, 8 if is_big else 4)
    file.seek(place)
    (number,) = struct.unpack(order + count, file.read(struct.calcsize(count)))
    entries = [file.read(size) for _ in range(number)]
    following = file.read(struct.calcsize(offset))
    kept = [e for e in entries if struct.unpack_from(order + "H", e)[0] not in (_X, _Y, _UNIT)]
    file.seek(place)
    file.write(struct.pack(order + count, len(kept)) + b"".join(kept) + following)


def _chunks(file: BinaryIO, start: int) -> Iterator[tuple[bytes, int, int]]:
    """(name, where it begins, bytes of its content) of what a PNG has before its pixels."""
    place = start + _SIGNATURE
    file.seek(place)
    for _ in range(_MOST_PARTS):
        if len(head := file.read(8)) < 8 or head[4:] == b"IDAT":
            return
        length, name = struct.unpack(">I4s", head)
        yield name, place, length
        place += 12 + length
        file.seek(place, os.SEEK_SET)
