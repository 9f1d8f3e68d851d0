"""Whether a WebP is lossless: its first picture is a chunk "VP8L" then (WebP Container
Specification, "Extended File Format"). libvips does not tell.
"""

from __future__ import annotations

import os
import struct
from typing import BinaryIO

_START = 12  # bytes of "RIFF", a length and "WEBP"
_MAX_CHUNKS = 100  # before the first picture; a few are usual
_FRAME_HEADER = 16  # bytes of "ANMF" before its picture


def is_lossless(file: BinaryIO) -> bool:
    """Of a file of whatever content."""
    file.seek(_START)
    for _ in range(_MAX_CHUNKS):
        head = file.read(8)
        if len(head) < 8 or head[:4] in (b"VP8 ", b"VP8L"):
            return head[:4] == b"VP8L"
        length = _FRAME_HEADER if head[:4] == b"ANMF" else struct.unpack("<I", head[4:])[0]
        file.seek(length + length % 2, os.SEEK_CUR)
    return False
