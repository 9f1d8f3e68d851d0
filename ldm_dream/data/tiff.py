"""What libvips leaves out of a TIFF: EXIF, and whether colours are multiplied by alpha.

A TIFF has no block of EXIF: the tags of its first directory are among those of the picture itself,
and two more directories hang on it (EXIF 2.32, 4.5). Pillow reads and writes directories.
"""

from __future__ import annotations

import io
import os
import struct
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any, BinaryIO

import pyvips
from PIL import Image
from PIL.Image import Exif
from PIL.TiffImagePlugin import ImageFileDirectory_v2

_EXTRA_SAMPLES, _ASSOCIATED = 338, 1
_EXIF, _GPS = 0x8769, 0x8825
_WIDTH, _HEIGHT = 0xA002, 0xA003
# description, make, model, software, date, artist, copyright; all others of the first directory are of the pixels
_TOLD = (270, 271, 272, 305, 306, 315, 33432)
RESOLUTION = (282, 283, 296)  # along x and y, and its unit; of EXIF too


def first_directory(file: BinaryIO) -> dict[int, Any]:
    """Values of a TIFF's first directory by tag, of those that are used here; of the two directories
    that hang on it, their own values by tag. What is damaged is left out: libtiff refuses it where
    pixels need it.
    """
    found: dict[int, Any] = {}
    with quiet(), suppress(Exception):  # Pillow's parsers raise many kinds
        file.seek(0)
        head = file.read(8)
        head += file.read(8) if 43 in head[2:4] else b""  # BigTIFF
        first = ImageFileDirectory_v2(head)
        file.seek(first.next)
        first.load(file)
        for tag in (_EXTRA_SAMPLES, *_TOLD, *RESOLUTION):
            with suppress(Exception):
                found[tag] = first[tag]
        for tag in (_EXIF, _GPS):
            with suppress(Exception):
                inner = ImageFileDirectory_v2(head, group=tag)
                file.seek(first[tag])
                inner.load(file)
                found[tag] = dict(inner)
    return found


def is_associated(first: Mapping[int, Any]) -> bool:
    """Whether the first extra channel is an alpha that colours are multiplied by; of `first_directory`."""
    extra = first.get(_EXTRA_SAMPLES, ())
    return (extra if isinstance(extra, tuple) else (extra,))[:1] == (_ASSOCIATED,)


@cache
def libvips_divides() -> bool:
    """Whether the libvips at hand makes such colours straight itself: newer ones do."""
    one = Image.new("RGBA", (1, 1), (60, 60, 60, 120))
    buffer = io.BytesIO()
    one.save(buffer, "TIFF")
    straight = struct.pack("=HHIHH", _EXTRA_SAMPLES, 3, 1, 2, 0)  # Pillow writes no other mark
    marked = buffer.getvalue().replace(straight, straight[:8] + struct.pack("=HH", 1, 0))
    return pyvips.Image.tiffload_buffer(marked)(0, 0)[0] > 90


def exif_of(first: Mapping[int, Any]) -> bytes | None:
    """`first_directory` -> a block of EXIF, as other kinds have it; None where it has none."""
    told = Exif()
    for tag in _TOLD:
        if tag in first:
            told[tag] = _bytes(first[tag])
    for tag in (_EXIF, _GPS):
        if inner := first.get(tag):
            told[tag] = {name: _bytes(value) for name, value in inner.items()}
    try:
        with quiet():
            return told.tobytes() if len(told) else None
    except Exception:  # damaged EXIF is no reason to refuse whole pixels
        return None


def add_exif(file: BinaryIO, block: bytes, width: int, height: int) -> bool:
    """Into a classic TIFF, what a block of EXIF tells -> False for a damaged block.

    Pillow packs the new tags, with their values behind them; a directory of these and the old tags
    then stands at the end of the file, and the old one is passed over.
    """
    end = file.seek(0, os.SEEK_END)
    start = end + end % 2  # directories begin on even bytes
    file.seek(0)
    head = file.read(8)
    try:
        packed = _told(head, block, width, height).tobytes(start)
    except Exception:  # Pillow's parsers raise many kinds
        return False
    order = "<" if head[:2] == b"II" else ">"
    packed += b"\0" * (len(packed) % 2)
    file.seek(struct.unpack_from(order + "I", head, 4)[0])
    entries = _entries(file, order) + _entries(io.BytesIO(packed), order)
    entries.sort(key=lambda entry: struct.unpack_from(order + "H", entry))
    directory = struct.pack(order + "H", len(entries)) + b"".join(entries) + b"\0\0\0\0"
    file.seek(end)
    file.write(b"\0" * (start - end) + packed + directory)
    file.seek(4)
    file.write(struct.pack(order + "I", start + len(packed)))
    return True


def _told(head: bytes, block: bytes, width: int, height: int) -> ImageFileDirectory_v2:
    with quiet():
        given, told = Exif(), ImageFileDirectory_v2(head)
        given.load(block)
        for tag in _TOLD:
            if tag in given:
                told[tag] = _bytes(given[tag])
        for tag in (_EXIF, _GPS):
            if given.get_ifd(tag):
                inner = {name: _bytes(value) for name, value in given.get_ifd(tag).items()}
                told[tag] = inner | ({_WIDTH: width, _HEIGHT: height} if tag == _EXIF else {})
    return told


def _bytes(value: object) -> object:
    """A text as it stands in the file: Pillow reads Latin-1, whatever it is, and writes ASCII."""
    if not isinstance(value, str) or value.isascii():
        return value
    return value.encode("latin-1", "replace")


def _entries(file: BinaryIO, order: str) -> list[bytes]:
    """The entries of the directory that begins here, 12 bytes each."""
    (count,) = struct.unpack(order + "H", file.read(2))
    return [file.read(12) for _ in range(count)]


@contextmanager
def quiet() -> Iterator[None]:
    """Pillow warns of each damaged tag of TIFF and EXIF."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
