"""What a picture's file says beside its pixels: EXIF, XMP, IPTC, texts, resolution.

libvips takes it apart and writes it again, adapted to the new size. Turned pixels are upright now,
so the orientation becomes 1, and a thumbnail would show the old picture, so it is left out. Profile
and colour space are not part of this: they say what the numbers of the pixels mean.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import pyvips

from ldm_dream.data.formats import AVIF, PNG, TIFF, WEBP, Format
from ldm_dream.data.resolution import Dpi, dpi_in_exif

_KEPT = ("exif-data", "xmp-data", "iptc-data")
_THUMBNAIL = ("exif-ifd1-", "jpeg-thumbnail-data")
_WORDS = {
    "exif-data": "EXIF",
    "xmp-data": "XMP",
    "iptc-data": "IPTC",
}
_MM = 25.4  # an inch
_UNKNOWN_DPI = (72.0, 72.0)  # what EXIF says for it (2.32, 4.6.4)
# a JPEG's block of IPTC; the resources behind it are what TIFF keeps as "photoshop-data"
_PHOTOSHOP = b"Photoshop 3.0\0"
# of XMP, as attribute or element
_XMP_OF_OLD = re.compile(  # what no result has: a gain map, thumbnails and their pictures
    rb'\s(?:hdrgm|HDRGainMap):\w+="[^"]*"|\s(?:xmpGImg|xapGImg):image="[^"]*"'
    rb"|<((?:xmp|xap):Thumbnails|(?:xmpGImg|xapGImg):image)\b[^>]*(?:/>|(?<!/)>.*?</\1\s*>)",
    re.DOTALL,
)
_XMP_NUMBER = rb'((?:tiff|exif):%s(?:="|>\s*))\d+'


Texts: TypeAlias = tuple[tuple[bytes, bytes], ...]


@dataclass(frozen=True)
class Metadata:
    """fields: by libvips' names. dpi: pixels an inch along x and y, None where the file is silent.
    texts: chunks of a PNG, (name, content).
    """

    fields: Mapping[str, Any]
    dpi: Dpi | None = None
    texts: Texts = ()


class Kept(NamedTuple):
    image: pyvips.Image
    lost: list[str]  # what the format does not hold, in words


def read_metadata(
    image: pyvips.Image, exif: bytes | None, texts: Texts, dpi: Dpi | None
) -> Metadata:
    """Of a picture that libvips opened. exif, texts, dpi: what was read apart from it; EXIF counts
    before that dpi, unless it says what it says for an unknown one.
    """
    fields = {name: _get(image, name) for name in image.get_fields() if name.startswith(_KEPT)}
    if (block := _iptc(image)) is not None:
        fields["iptc-data"] = block
    if exif is not None:
        fields["exif-data"] = exif
    told = dpi_in_exif(fields.get("exif-data", b""))
    return Metadata(fields, dpi or told if told in (None, _UNKNOWN_DPI) else told, texts)


def with_metadata(image: pyvips.Image, metadata: Metadata | None, kind: Format) -> Kept:
    """The picture as it is to be written in `kind`, with what that holds."""
    metadata = metadata or Metadata({})
    image = image.copy()
    fields, lost = dict(metadata.fields), ["text"] if metadata.texts and kind is not PNG else []
    if kind is TIFF and fields.get("iptc-data", b"").startswith(_PHOTOSHOP):
        fields["photoshop-data"] = fields.pop("iptc-data")[len(_PHOTOSHOP) :]
    for name, value in fields.items():
        if name.startswith(kind.holds):
            if name == "xmp-data":
                value = _adapted(value, image.width, image.height)
            set_field(image, name, value)
        else:
            lost.append(_WORDS[name])
    if image.get_typeof("exif-data"):  # libvips has taken it apart into fields, which count
        set_field(image, "orientation", 1)
        for name in image.get_fields():
            if name.startswith(_THUMBNAIL):
                image.remove(name)
    # last, since EXIF sets the image's own when it comes in
    dpi_x, dpi_y = metadata.dpi or _UNKNOWN_DPI
    image = image.copy(xres=dpi_x / _MM, yres=dpi_y / _MM)
    set_field(image, "resolution-unit", "in")
    return Kept(image, lost)


def keeps_exif(metadata: Metadata | None, kind: Format) -> bool:
    """Whether a block of EXIF is to be written: libvips makes one up where there is none. WebP and
    AVIF have no other place for a resolution. EXIF without one says 72 dpi, as its standard has it.
    """
    if metadata is None:
        return False
    return "exif-data" in metadata.fields or (metadata.dpi is not None and kind in (WEBP, AVIF))


def set_field(image: pyvips.Image, name: str, value: Any) -> None:
    """Of a picture that is to be written."""
    kinds = {bytes: pyvips.GValue.blob_type, int: pyvips.GValue.gint_type}
    image.set_type(kinds.get(type(value), pyvips.GValue.gstr_type), name, value)


def _iptc(image: pyvips.Image) -> bytes | None:
    """As a JPEG holds it; a TIFF has either all resources of Photoshop or the bare records."""
    if image.get_typeof("photoshop-data"):
        return _PHOTOSHOP + _get(image, "photoshop-data")
    if not image.get_typeof("iptc-data"):
        return None
    data = _get(image, "iptc-data")
    if data.startswith(_PHOTOSHOP):
        return data
    resource = b"8BIM\x04\x04\0\0" + len(data).to_bytes(4, "big") + data
    return _PHOTOSHOP + resource + b"\0" * (len(data) % 2)


def _get(image: pyvips.Image, name: str) -> Any:
    return image.get(name)  # pyvips' annotations leave bytes out


def _adapted(xmp: bytes, width: int, height: int) -> bytes:
    numbers = {
        b"Orientation": 1,
        b"PixelXDimension": width,
        b"PixelYDimension": height,
        b"ImageWidth": width,
        b"ImageLength": height,
    }
    for name, value in numbers.items():
        xmp = re.sub(_XMP_NUMBER % name, rb"\g<1>%d" % value, xmp)
    return _XMP_OF_OLD.sub(b"", xmp)
