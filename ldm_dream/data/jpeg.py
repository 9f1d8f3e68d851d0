"""Whether a JPEG is whole: every warning of libjpeg counts, and so do scans that never came.

libvips checks the count of warnings before it reads lines, so those of the last lines pass unseen;
their text is still in its error buffer. A progressive file that was cut between two scans and
closed again gives no warning at all: its scan headers tell (ITU T.81, B.2.3 and G.1.1).

Some files give warnings although every pixel is there. They are repaired, and the repaired file must
then be without any.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator

import numpy as np
import pyvips

_END = b"\xff\xd9"
# the next marker after coded data: stuffed zeros, restarts and fill bytes are part of the data
_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
_ALONE = {0x01, *range(0xD0, 0xD9)}  # markers without a length
_FRAMES = {0xC0, 0xC1, 0xC2}  # baseline, extended, progressive; all by Huffman codes
_OTHER_FRAMES = {0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF}
_MOST_SEGMENTS = 10000  # a few are usual
_buffer = threading.Lock()  # the error buffer of libvips is one for all threads


class BrokenJpeg(Exception):
    """Its text is the reason, in a few words."""


def decode(data: bytes) -> tuple[np.ndarray, str]:
    """-> pixels [H, W, bands] and what was repaired ("" for a whole file). Raises BrokenJpeg."""
    error = _try(data)
    if isinstance(error, np.ndarray):
        return error, ""
    for repair, what in (
        (_with_end, "its end marker is missing, but every pixel is there"),
        (_without_padding, "zeros stand before its end marker, but every pixel is there"),
        (_with_plain_header, "its header is unusual, but every pixel is there"),
    ):
        repaired = repair(data)
        if repaired is not None and isinstance(found := _try(repaired), np.ndarray):
            return found, what
    raise BrokenJpeg(error)


def _try(data: bytes) -> np.ndarray | str:
    """-> pixels of a file without any warning, else the first one."""
    if reason := _incomplete(data):
        return reason
    try:
        with _buffer:
            pyvips.vips_lib.vips_error_clear()
            image = pyvips.Image.jpegload_buffer(data, access="sequential", fail_on="warning")
            pixels = image.numpy()
            warnings = pyvips.ffi.string(pyvips.vips_lib.vips_error_buffer())
    except pyvips.Error as error:
        return first_line(error.detail)
    return first_line(warnings.decode(errors="replace")) if warnings else pixels


def first_line(text: str) -> str:
    """Of libvips' words, without the name of its part."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0].removeprefix("VipsJpeg: ") if lines else "no reason given by libvips"


def _incomplete(data: bytes) -> str | None:
    """Why a file lacks coefficients although it may decode without a warning; None if it does not."""
    missing: dict[tuple[int, int], int] = {}  # (component, coefficient) -> bits not sent yet
    try:
        for marker, body in _segments(data):
            if marker in _OTHER_FRAMES:
                return "a rare kind (arithmetic, lossless or hierarchical); convert it first"
            if marker in _FRAMES:
                if missing:
                    return "two pictures in one"
                size = 64 if marker == 0xC2 else 1  # sequential scans bring all at once
                ids = body[6 : 6 + 3 * body[5] : 3]
                missing = {(name, k): 99 for name in ids for k in range(size)}
                progressive = marker == 0xC2
            elif marker == 0xDA:
                count = body[0]
                first, last, low = body[1 + 2 * count], body[2 + 2 * count], body[3 + 2 * count]
                names = body[1 : 1 + 2 * count : 2]
                span = range(first, last + 1) if progressive else range(1)
                left = low & 15 if progressive else 0
                missing |= {(name, k): left for name in names for k in span}
    except (IndexError, UnboundLocalError):
        return "its header is cut or not in order"
    return "some of its scans are missing" if not missing or any(missing.values()) else None


def _segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(marker, content) up to the end marker; coded data is passed over. Raises IndexError for a
    header that is cut, BrokenJpeg for more segments than any picture has.
    """
    at, number = 2, 0
    while found := _MARKER.search(data, at):
        marker, at = data[found.start() + 1], found.end()
        if marker == 0xD9:
            return
        if marker not in _ALONE:
            number += 1
            if number > _MOST_SEGMENTS:
                raise BrokenJpeg(f"more than {_MOST_SEGMENTS} segments")
            length = data[at] * 256 + data[at + 1]
            yield marker, data[at + 2 : at + length]
            at += length


def _with_end(data: bytes) -> bytes:
    return data[:-1] + _END if data.endswith(b"\xff") else data + _END


def _without_padding(data: bytes) -> bytes | None:
    end = data.rfind(_END)
    if end < 1 or data[end - 1]:
        return None
    start = len(data[:end].rstrip(b"\0"))
    start += data[start - 1] == 0xFF  # a stuffed zero belongs to the data
    return data[:start] + data[end:]


def _with_plain_header(data: bytes) -> bytes | None:
    """With the values that libjpeg reads anyway, where it warns of others: version of JFIF, colour
    transform of Adobe, and the band of a sequential scan.
    """
    plain = bytearray(data)
    at, components, sequential = 2, 0, True
    while found := _MARKER.search(data, at):
        marker, at = data[found.start() + 1], found.end()
        if marker == 0xD9 or at + 1 >= len(data):
            break
        if marker in _ALONE:
            continue
        length = data[at] * 256 + data[at + 1]
        body = data[at + 2 : at + length]
        if marker in _FRAMES and len(body) > 5:
            components, sequential = body[5], marker != 0xC2
        elif marker == 0xE0 and body.startswith(b"JFIF\0") and len(body) > 5:
            plain[at + 7] = 1
        elif marker == 0xEE and body.startswith(b"Adobe") and len(body) > 11 and body[11] > 2:
            plain[at + 13] = 2 if components == 4 else 1
        elif marker == 0xDA and sequential and len(body) == body[0] * 2 + 4:
            plain[at + length - 3 : at + length] = b"\0\x3f\0"
        at += length
    return bytes(plain) if plain != data else None
