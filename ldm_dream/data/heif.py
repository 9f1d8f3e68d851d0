"""The colour space of an AVIF or HEIC, which libvips passes over: the box "colr" of kind "nclx"
(ISO/IEC 14496-12, 12.1.5), with the numbers of a PNG's cICP (ITU-T H.273).
"""

from __future__ import annotations

import struct
from typing import BinaryIO

_MOST = 2**20  # bytes from the start; boxes that lie behind the pixels are not found
_NCLX = b"colrnclx"
_UNSPECIFIED = 2
_RGB, _FULL_RANGE = 0, 1


def read_space(file: BinaryIO) -> tuple[tuple[bytes, bytes], ...]:
    """As a chunk of a PNG: "cICP" with primaries, transfer, matrix and range of RGB; nothing where the
    file says nothing. It is the first in the file: that of the picture, where this has no ICC profile.
    """
    file.seek(0)
    head = file.read(_MOST)
    at = head.find(_NCLX) + len(_NCLX)
    if at < len(_NCLX) or at + 4 > len(head):
        return ()
    primaries, transfer = struct.unpack_from(">HH", head, at)
    if _UNSPECIFIED in (primaries, transfer) or max(primaries, transfer) > 255:
        return ()
    return ((b"cICP", bytes([primaries, transfer, _RGB, _FULL_RANGE])),)
