"""The chunks of a PNG that libvips passes over: animation, colour space, texts, damage (PNG 3.0, 5).

A text is carried as it stands, since its encoding is part of it. libvips drops a chunk whose
checksum is wrong without a word, unless it is of the pixels.
"""

from __future__ import annotations

import os
import struct
import zlib
from dataclasses import dataclass
from typing import BinaryIO

_START, _HEADER = 8, 25  # bytes of the signature and of IHDR, which comes first
_MAX_CHUNKS = 10000  # a few are usual
_MAX_TEXT = 2**24  # bytes of one chunk that is read here; libvips limits the others
_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
# what libvips keeps by itself, or what describes the old picture
_NOT_KEPT = (b"XML:com.adobe.xmp\0", b"Raw profile type ")
# without these the pixels are what they are
_BESIDE = (*_TEXTS, b"eXIf", b"pHYs", b"tIME")


@dataclass(frozen=True)
class Chunks:
    """frames: of an animation, else 1. cicp: content of cICP. texts: (name, content). damaged: names
    of chunks with a wrong checksum that are not of the pixels; is_doubtful: one of them may say what
    the pixels mean.
    """

    frames: int = 1
    cicp: bytes | None = None
    texts: tuple[tuple[bytes, bytes], ...] = ()
    damaged: tuple[str, ...] = ()
    is_doubtful: bool = False


def read_chunks(file: BinaryIO) -> Chunks:
    """Of a file of whatever content: what is no chunk ends the reading."""
    file.seek(_START)
    frames, cicp, texts, damaged, doubtful = 1, None, [], [], False
    for _ in range(_MAX_CHUNKS):
        head = file.read(8)
        if len(head) < 8 or head[4:] == b"IEND":
            break
        length, name = struct.unpack(">I4s", head)
        if name in (b"IDAT", b"fdAT") or length > _MAX_TEXT:
            file.seek(length + 4, os.SEEK_CUR)
            continue
        content, checksum = file.read(length), file.read(4)
        if len(checksum) < 4:
            break
        if struct.unpack(">I", checksum)[0] != zlib.crc32(name + content):
            damaged.append(name.decode("latin-1"))
            doubtful |= name not in _BESIDE
        elif name == b"acTL" and length == 8:
            frames = struct.unpack(">I", content[:4])[0]
        elif name == b"cICP" and length == 4:
            cicp = content
        elif name in _TEXTS and not content.startswith(_NOT_KEPT):
            texts.append((name, content))
    return Chunks(frames, cicp, tuple(texts), tuple(damaged), doubtful)


def packed(chunks: list[tuple[bytes, bytes]]) -> bytes:
    """Chunks as they stand in a file; (name, content) each."""
    return b"".join(
        struct.pack(">I", len(content))
        + name
        + content
        + struct.pack(">I", zlib.crc32(name + content))
        for name, content in chunks
    )


def add_chunks(file: BinaryIO, chunks: bytes) -> None:
    """Into a file that holds a PNG behind as many free bytes as `chunks` has: they come before its
    pixels, and the PNG to the start.
    """
    file.seek(len(chunks))
    head = file.read(_START + _HEADER)
    file.seek(0)
    file.write(head + chunks)
