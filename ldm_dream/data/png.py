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
# what the colours mean: primaries and transfer by number, gamma, primaries, sRGB, light of HDR
_SPACE = (b"cICP", b"gAMA", b"cHRM", b"sRGB", b"mDCV", b"cLLI")
_SRGB_PRIMARIES, _SRGB_TRANSFERS = (1, 5, 6), (1, 6, 13)  # of cICP: sRGB, BT.709 and BT.601
_SRGB_GAMMA, _NEAR = 45455, 1000  # of gAMA, 1 / 2.2 in units of 1 / 100000
# what libvips keeps by itself, or what describes the old picture
_NOT_KEPT = (b"XML:com.adobe.xmp\0", b"Raw profile type ")
# without these the pixels are what they are
_BESIDE = (*_TEXTS, b"eXIf", b"pHYs", b"tIME")


@dataclass(frozen=True)
class Chunks:
    """frames: of an animation, else 1. space, texts: (name, content) of what says how colours are
    meant, and of texts. damaged: names of chunks with a wrong checksum that are not of the pixels;
    is_doubtful: one of them may say what the pixels mean.
    """

    frames: int = 1
    space: tuple[tuple[bytes, bytes], ...] = ()
    texts: tuple[tuple[bytes, bytes], ...] = ()
    damaged: tuple[str, ...] = ()
    is_doubtful: bool = False


def read_chunks(file: BinaryIO) -> Chunks:
    """Of a file of whatever content: what is no chunk ends the reading."""
    file.seek(_START)
    frames, space, texts, damaged, doubtful = 1, [], [], [], False
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
        elif name in _SPACE:
            space.append((name, content))
        elif name in _TEXTS and not content.startswith(_NOT_KEPT):
            texts.append((name, content))
    return Chunks(frames, tuple(space), tuple(texts), tuple(damaged), doubtful)


def other_space(space: tuple[tuple[bytes, bytes], ...], has_profile: bool) -> str | None:
    """As what other than sRGB, as which all pictures without a profile are read, these chunks mark
    the colours; in words. None where they do not. A profile counts before a gamma.
    """
    found = dict(space)
    if len(cicp := found.get(b"cICP", b"")) == 4:  # counts before all others
        is_srgb = cicp[0] in _SRGB_PRIMARIES and cicp[1] in _SRGB_TRANSFERS
        return None if is_srgb else f"cICP primaries {cicp[0]}, transfer {cicp[1]}"
    if has_profile or b"sRGB" in found or len(content := found.get(b"gAMA", b"")) != 4:
        return None
    gamma = struct.unpack(">I", content)[0]
    return None if abs(gamma - _SRGB_GAMMA) <= _NEAR else f"gAMA {gamma / 1e5:g}"


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
