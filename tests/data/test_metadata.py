"""What a file says beside its pixels survives, adapted to the new picture."""

import io
import logging
import struct
import zlib
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image as PillowImage
from PIL import IptcImagePlugin, PngImagePlugin

from ldm_dream.data import header
from ldm_dream.data.formats import JPEG, PNG
from ldm_dream.data.images import Image, ImageError, check_header, read_image, write_image
from ldm_dream.data.metadata import Metadata
from ldm_dream.data.resolution import dpi_in_exif, dpi_in_place

EXIF, GPS, THUMBNAIL = 0x8769, 0x8825, 0x0201
XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-'
    b'syntax-ns#"><rdf:Description tiff:Orientation="6"><exif:PixelXDimension>8</exif:PixelXDimension>'
    b"<dc:title>A title</dc:title></rdf:Description></rdf:RDF></x:xmpmeta>"
)
IPTC = b"Photoshop 3.0\x008BIM\x04\x04\0\0\0\0\0\x0f\x1c\x02\x05\0\x0aHello wrld\0"


def photo() -> bytes:
    """8x6, lying on its side, with all that a JPEG can say."""
    exif = PillowImage.Exif()
    exif[0x0112], exif[0x010F], exif[0x8298] = 6, "Maker", "(c) somebody"
    exif[EXIF] = {0x9003: "2020:01:02 03:04:05", 0xA002: 8, 0xA003: 6}
    exif[GPS] = {1: "N", 2: (1.0, 2.0, 3.0)}
    buffer = io.BytesIO()
    picture = PillowImage.new("RGB", (8, 6), "red")
    picture.save(buffer, "JPEG", exif=exif, xmp=XMP, dpi=(300, 300))
    data = buffer.getvalue()
    return data[:2] + b"\xff\xed" + (len(IPTC) + 2).to_bytes(2, "big") + IPTC + data[2:]


@pytest.fixture
def image(tmp_path) -> Image:
    """The photo, read and enlarged to 12x16."""
    (tmp_path / "photo.jpg").write_bytes(photo())
    image = read_image(tmp_path / "photo.jpg")
    return replace(image, pixels=image.pixels.repeat(2, 0).repeat(2, 1))


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif", ".avif"])
def test_exif_and_xmp_survive_in_every_kind_and_fit_the_new_picture(tmp_path, image, suffix):
    """And once more, read from there and written as JPEG."""
    write_image(tmp_path / f"a{suffix}", image)
    write_image(tmp_path / "b.jpg", read_image(tmp_path / f"a{suffix}"))
    for path in (tmp_path / f"a{suffix}", tmp_path / "b.jpg"):
        found = PillowImage.open(path)
        exif = found.getexif()
        assert (exif[0x010F], exif[0x8298], exif[0x0112]) == ("Maker", "(c) somebody", 1)
        inner = exif.get_ifd(EXIF)
        assert inner[0x9003] == "2020:01:02 03:04:05"
        assert (inner[0xA002], inner[0xA003]) == found.size == (12, 16)
        assert exif.get_ifd(GPS) == {1: "N", 2: (1.0, 2.0, 3.0)}
        assert float(exif[0x011A]) == pytest.approx(300)
        xmp = found.info.get("xmp") or found.info["XML:com.adobe.xmp"].encode()
        assert b"A title" in xmp and b'Orientation="1"' in xmp and b">12</exif:Pixel" in xmp
    assert np.array_equal(read_image(tmp_path / f"a{suffix}").pixels.shape, image.pixels.shape)


@pytest.mark.parametrize("suffix", [".jpg", ".tif"])
def test_iptc_survives_where_a_kind_holds_it_and_is_missed_aloud_elsewhere(
    tmp_path, image, suffix, caplog
):
    write_image(tmp_path / f"a{suffix}", image)
    write_image(tmp_path / "b.jpg", read_image(tmp_path / f"a{suffix}"))
    assert IptcImagePlugin.getiptcinfo(PillowImage.open(tmp_path / "b.jpg")) == {
        (2, 5): b"Hello wrld"
    }
    assert not caplog.records
    write_image(tmp_path / "c.png", image)
    assert "written without its IPTC" in caplog.text


def test_the_texts_of_a_tiff_keep_their_bytes(tmp_path):
    texts = {270: "\u4e2d\u6587".encode(), 315: b"caf\xe9"}
    PillowImage.new("RGB", (8, 6)).save(tmp_path / "a.tif", tiffinfo=texts)
    write_image(tmp_path / "b.tif", read_image(tmp_path / "a.tif"))
    found = PillowImage.open(tmp_path / "b.tif").tag_v2
    assert {tag: found[tag].encode("latin-1") for tag in texts} == texts


def test_bare_iptc_of_a_tiff_becomes_a_jpegs_block(tmp_path):
    picture = PillowImage.new("RGB", (8, 6))
    picture.save(tmp_path / "a.tif", tiffinfo={33723: b"\x1c\x02\x05\0\x05Hello"})
    write_image(tmp_path / "b.jpg", read_image(tmp_path / "a.tif"))
    found = IptcImagePlugin.getiptcinfo(PillowImage.open(tmp_path / "b.jpg"))
    assert found == {(2, 5): b"Hello"}


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif", ".avif"])
def test_a_stripped_picture_tells_nothing_but_its_colours(tmp_path, image, suffix):
    write_image(tmp_path / f"a{suffix}", replace(image, metadata=None))
    data = (tmp_path / f"a{suffix}").read_bytes()
    for word in (b"Maker", b"somebody", b"2020", b"A title", b"Hello"):
        assert word not in data
    assert not PillowImage.open(tmp_path / f"a{suffix}").getexif().get_ifd(GPS)


def test_texts_of_a_png_survive_and_are_missed_aloud_elsewhere(tmp_path, caplog):
    texts = PngImagePlugin.PngInfo()
    texts.add_text("parameters", "a prompt")
    texts.add_itxt("Title", "\u4e2d\u6587")
    texts.add(b"tEXt", b"Author\0caf\xe9")  # Latin-1, as the standard has it
    PillowImage.new("RGB", (8, 6)).save(tmp_path / "a.png", pnginfo=texts, dpi=(300, 300))
    image = read_image(tmp_path / "a.png")
    write_image(tmp_path / "b.png", image)
    found = PillowImage.open(tmp_path / "b.png")
    assert found.info["dpi"] == pytest.approx((300, 300), abs=0.1)
    assert found.text["parameters"] == "a prompt" and found.text["Title"] == "\u4e2d\u6587"
    assert found.text["Author"] == "caf\xe9"
    assert not caplog.records
    write_image(tmp_path / "c.jpg", image)
    assert "written without its text, which JPEG does not keep" in caplog.text


def resolution(path) -> tuple[tuple[float, float] | None, int]:
    """As Pillow reads it, and how many bytes of EXIF there are."""
    found = PillowImage.open(path)
    exif, tags = found.getexif(), getattr(found, "tag_v2", {})
    dpi = found.info.get("dpi") if not tags or 282 in tags else None
    if dpi is None and 282 in exif:
        dpi = float(exif[282]), float(exif[283])
    return dpi, len(found.info.get("exif", b""))


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif", ".avif"])
@pytest.mark.parametrize("source", [".jpg", ".png", ".webp", ".tif", ".avif"])
def test_a_picture_without_resolution_and_exif_gets_none(tmp_path, source, suffix):
    PillowImage.new("RGB", (8, 6)).save(tmp_path / f"a{source}")
    write_image(tmp_path / f"b{suffix}", image := read_image(tmp_path / f"a{source}"))
    assert image.metadata == Metadata({})
    assert resolution(tmp_path / f"b{suffix}") == (None, 0)
    assert read_image(tmp_path / f"b{suffix}").metadata == Metadata({})


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif", ".avif"])
@pytest.mark.parametrize("source", [".jpg", ".png", ".tif"])
@pytest.mark.parametrize("dpi", [72, 300])
def test_a_resolution_is_kept_and_exif_made_only_for_it(tmp_path, source, suffix, dpi):
    PillowImage.new("RGB", (8, 6)).save(tmp_path / f"a{source}", dpi=(dpi, dpi))
    write_image(tmp_path / f"b{suffix}", read_image(tmp_path / f"a{source}"))
    found, exif = resolution(tmp_path / f"b{suffix}")
    assert found == pytest.approx((dpi, dpi), abs=0.02)
    assert bool(exif) == (suffix in (".webp", ".avif"))


def test_one_pixel_a_millimetre_is_a_resolution_as_any_other(tmp_path):
    """libvips has the same number for it and for none."""
    PillowImage.new("RGB", (8, 6)).save(tmp_path / "a.png", dpi=(25.4, 25.4))
    assert read_image(tmp_path / "a.png").metadata.dpi == pytest.approx((25.4, 25.4))


def test_the_shape_of_pixels_without_a_size_is_no_resolution(tmp_path):
    write_image(tmp_path / "a.png", Image(np.zeros((6, 8, 3), np.uint8)))
    data = (tmp_path / "a.png").read_bytes()
    place = data.index(b"pHYs")
    chunk = b"pHYs" + struct.pack(">IIB", 2, 1, 0)
    chunk += struct.pack(">I", zlib.crc32(chunk))
    (tmp_path / "b.png").write_bytes(data[:place] + chunk + data[place + len(chunk) :])
    assert read_image(tmp_path / "b.png").metadata.dpi is None


def test_a_resolution_that_is_cut_or_damaged_is_none():
    content = io.BytesIO()
    PillowImage.new("RGB", (8, 6)).save(content, "PNG", dpi=(300, 300))
    data = content.getvalue()
    place = data.index(b"pHYs")
    for broken in (
        *(data[: place + n] for n in range(16)),
        data[: place + 9] + b"x" + data[place + 10 :],
    ):
        assert dpi_in_place(io.BytesIO(broken), PNG) is None
    assert dpi_in_place(io.BytesIO(data), PNG) == pytest.approx((300, 300), abs=0.01)


def test_a_jpeg_of_very_many_segments_is_not_read_to_its_end():
    many = io.BytesIO(b"\xff\xd8" + b"\xff\xe1\0\2" * 50000)
    assert dpi_in_place(many, JPEG) is None
    assert many.tell() < 50000


@pytest.mark.parametrize(
    ("in_exif", "in_place", "expected"), [(72, 300, 300), (300, 72, 300), (72, None, 72)]
)
@pytest.mark.parametrize("suffix", [".jpg", ".webp", ".tif"])
def test_the_72_of_exif_yields_to_another_value_in_the_place(
    tmp_path, in_exif, in_place, expected, suffix
):
    """The writer says one value in both."""
    exif = PillowImage.Exif()
    exif[0x011A] = exif[0x011B] = float(in_exif)
    exif[0x0128] = 2
    place = {"dpi": (in_place, in_place)} if in_place else {}
    PillowImage.new("RGB", (8, 6)).save(tmp_path / "a.jpg", exif=exif, **place)
    image = read_image(tmp_path / "a.jpg")
    assert image.metadata.dpi == (expected, expected)
    write_image(tmp_path / f"b{suffix}", image)
    found = PillowImage.open(tmp_path / f"b{suffix}")
    assert found.info.get("dpi", (expected, expected)) == (expected, expected)
    assert found.getexif()[0x011A] == expected


def test_damaged_directories_are_read_once_and_without_a_warning(tmp_path, recwarn, monkeypatch):
    parsed = []
    monkeypatch.setattr(
        header,
        "first_directory",
        lambda file, read=header.first_directory: parsed.append(1) or read(file),
    )
    cut = b"II*\0\x08\0\0\0\x05\0"  # five entries, none of which is there
    (tmp_path / "a.tif").write_bytes(cut)
    with pytest.raises(ImageError):
        check_header(tmp_path / "a.tif")
    assert dpi_in_exif(b"Exif\0\0" + cut) is None
    assert parsed == [1] and not recwarn.list


def test_a_damaged_directory_of_exif_costs_no_other_tag(tmp_path):
    """In its place in the file stands an address beyond it."""
    tags = {305: "Maker of it", 0x8769: 2**31 - 1}
    PillowImage.new("RGB", (8, 6)).save(tmp_path / "a.tif", tiffinfo=tags, dpi=(300, 300))
    metadata = read_image(tmp_path / "a.tif").metadata
    assert metadata.dpi == (300, 300) and b"Maker of it" in metadata.fields["exif-data"]


def test_exif_of_a_file_says_no_resolution_that_it_does_not_hold(tmp_path):
    """libexif makes one up when it reads."""
    exif = PillowImage.Exif()
    exif[0x010F] = "Maker"
    PillowImage.new("RGB", (8, 6)).save(tmp_path / "a.webp", exif=exif)
    image = read_image(tmp_path / "a.webp")
    assert image.metadata.dpi is None
    write_image(tmp_path / "b.tif", image)
    assert resolution(tmp_path / "b.tif")[0] is None
    assert PillowImage.open(tmp_path / "b.tif").getexif()[0x010F] == "Maker"


def test_a_thumbnail_of_the_old_picture_is_left_out(tmp_path):
    small = io.BytesIO()
    PillowImage.new("RGB", (4, 3), "red").save(small, "JPEG")
    exif = PillowImage.Exif()
    exif[0x010F] = "Maker"
    block = exif.tobytes()[6:]  # one tag: 8 + 2 + 12 bytes, then where the next directory is
    order = "big" if block[:2] == b"MM" else "little"
    second = len(block) + 2 + 12 * 2 + 4
    directory = (2).to_bytes(2, order)
    for tag, value in ((THUMBNAIL, second), (THUMBNAIL + 1, len(small.getvalue()))):
        entry = (tag.to_bytes(2, order), (4).to_bytes(2, order), (1).to_bytes(4, order))
        directory += b"".join(entry) + value.to_bytes(4, order)
    block = block[:22] + len(block).to_bytes(4, order) + block[26:] + directory + b"\0" * 4
    block = b"Exif\0\0" + block + small.getvalue()
    PillowImage.new("RGB", (8, 6)).save(tmp_path / "a.jpg", exif=block)
    assert small.getvalue() in (tmp_path / "a.jpg").read_bytes()
    write_image(tmp_path / "b.jpg", read_image(tmp_path / "a.jpg"))
    assert small.getvalue() not in (tmp_path / "b.jpg").read_bytes()
    assert PillowImage.open(tmp_path / "b.jpg").getexif()[0x010F] == "Maker"


def test_damaged_exif_costs_no_pixel_and_is_said(tmp_path, image, caplog):
    fields = {**image.metadata.fields, "exif-data": b"Exif\0\0II*\0\xff\xff\xff\xff"}
    broken = replace(image, metadata=replace(image.metadata, fields=fields))
    with caplog.at_level(logging.WARNING):
        write_image(tmp_path / "a.tif", broken)
    assert np.array_equal(read_image(tmp_path / "a.tif").pixels, image.pixels)


THUMBNAILS = (
    b'<xmp:Thumbnails xmlns:xmp="x"><rdf:Alt><rdf:li rdf:parseType="Resource"><xmpGImg:width>256'
    b"</xmpGImg:width>\n<xmpGImg:image>OLDPICTURE</xmpGImg:image></rdf:li></rdf:Alt></xmp:Thumbnails>",
    b'<xap:Thumbnails><rdf:Alt><rdf:li xapGImg:width="9" xapGImg:image="OLDPICTURE"/></rdf:Alt>'
    b"</xap:Thumbnails>",
    b'<a:other xmpGImg:image="OLDPICTURE"/>',
    b"<xmp:Thumbnails/>",
)


@pytest.mark.parametrize("old", THUMBNAILS)
def test_a_thumbnail_within_xmp_is_left_out_and_the_rest_stays(tmp_path, image, old):
    xmp = XMP.replace(b"<dc:title>", old + b"<dc:title>").replace(
        b"</dc:title>", b"</dc:title>" + old
    )
    fields = {**image.metadata.fields, "xmp-data": xmp}
    write_image(tmp_path / "a.png", replace(image, metadata=replace(image.metadata, fields=fields)))
    found = PillowImage.open(tmp_path / "a.png").info["XML:com.adobe.xmp"]
    assert "<dc:title>A title</dc:title>" in found
    assert "OLDPICTURE" not in found and "Thumbnails" not in found


def test_a_gain_map_that_is_not_kept_is_said_and_no_longer_claimed(tmp_path, caplog):
    claim = b'<rdf:Description hdrgm:Version="1.0" tiff:Orientation'
    data = photo()
    longer = XMP.replace(b"<rdf:Description tiff:Orientation", claim)
    size = len(XMP) + 2 + 29
    data = data.replace(size.to_bytes(2, "big"), (size + len(longer) - len(XMP)).to_bytes(2, "big"))
    (tmp_path / "a.jpg").write_bytes(data.replace(XMP, longer))
    write_image(tmp_path / "b.jpg", read_image(tmp_path / "a.jpg"))
    assert "gain map for HDR screens is left out" in caplog.text
    xmp = PillowImage.open(tmp_path / "b.jpg").info["xmp"]
    assert b"A title" in xmp and b"hdrgm" not in xmp
