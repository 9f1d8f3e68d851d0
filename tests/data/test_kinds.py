"""Kinds of pictures: each is read as it is, or named; the header decides before the pixels."""

import os
import struct
import tracemalloc
import zlib
from dataclasses import replace

import numpy as np
import pytest
import pyvips
from PIL import Image as PillowImage
from PIL import ImageCms

from ldm_dream.data import formats, header, reader, tiff
from ldm_dream.data.images import (
    Image,
    ImageError,
    check_quality,
    find_images,
    list_images,
    read_image,
    write_image,
)


def pixels(height=13, width=18) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("suffix", [".bmp", ".gif", ".jp2", ".avif", ".jfif", ".jpe", ".apng"])
def test_common_kinds_are_read(tmp_path, suffix):
    smooth = np.add.outer(np.arange(16), np.arange(24))[..., None].repeat(3, 2).astype(np.uint8)
    kind = formats.BY_SUFFIX[suffix]
    if suffix == ".avif":
        write_image(tmp_path / "x.avif", Image(smooth))
    else:
        PillowImage.fromarray(smooth).save(tmp_path / f"x{suffix}", kind.pillow or kind.name)
    assert kind.is_readable() and find_images(tmp_path)
    found = read_image(tmp_path / f"x{suffix}").pixels
    assert np.abs(found.astype(int) - smooth).max() <= 4


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF"])
def test_pillow_reads_what_libvips_was_built_without(tmp_path, kind, monkeypatch):
    monkeypatch.setattr(formats.Format, "in_libvips", lambda self: False)
    clear = PillowImage.fromarray(pixels()).quantize(8).convert("RGBA")
    clear.putalpha(PillowImage.new("L", clear.size, 255))
    clear.putpixel((0, 0), (0, 0, 0, 0))
    clear.save(tmp_path / "x.png", kind, **({"lossless": True} if kind == "WEBP" else {}))
    found = read_image(tmp_path / "x.png")
    assert found.alpha[0, 0] == 0 and found.alpha[1:].min() == 255
    assert np.array_equal(found.pixels[1:], np.asarray(clear.convert("RGB"))[1:])


def test_a_kind_that_nothing_reads_is_named_and_counted(tmp_path, monkeypatch):
    (tmp_path / "x.jxl").write_bytes(b"\xff\x0a" + b"\0" * 40)
    (tmp_path / "y.png").write_bytes(b"\0\0\0\x0cJXL \r\n\x87\n" + b"\0" * 40)
    monkeypatch.setattr(formats.Format, "in_libvips", lambda self: self is not formats.JXL)
    with pytest.raises(ImageError, match="nothing installed here reads JPEG XL"):
        read_image(tmp_path / "y.png")
    if ".jxl" not in formats.SUFFIXES:
        left_out = list_images(tmp_path).left_out
        assert left_out == {"JPEG XL (nothing installed here reads it)": 1}


def test_a_heic_that_cannot_be_read_is_told_from_a_broken_picture(tmp_path):
    box = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"
    (tmp_path / "x.heic").write_bytes(box + b"\0" * 99)
    if formats.HEIC.is_readable():
        with pytest.raises(ImageError, match="this HEIC cannot be read here"):
            read_image(tmp_path / "x.heic")


def test_a_file_is_what_its_first_bytes_say(tmp_path):
    PillowImage.fromarray(pixels()).save(tmp_path / "x.jpg", "PNG")
    assert np.array_equal(read_image(tmp_path / "x.jpg").pixels, pixels())
    for kind in ("v", "csv", "mat"):  # libvips reads these, and worse, by itself
        path = str(tmp_path / f"a.{kind}")
        pyvips.Image.black(9, 9).write_to_file(path)
        (tmp_path / "x.png").write_bytes((tmp_path / f"a.{kind}").read_bytes())
        with pytest.raises(ImageError, match="not a picture in PNG"):
            read_image(tmp_path / "x.png")


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "x.png")
    with pytest.raises(ImageError, match="no regular file"):
        read_image(tmp_path / "x.png")
    with pytest.raises(ImageError, match="no such file"):
        read_image(tmp_path / ("x" * 300))


# --------------------------------------------------------------------------- the header decides


def test_channels_and_bytes_are_refused_before_any_pixel_is_decoded(tmp_path, monkeypatch):
    pyvips.Image.black(9, 9, bands=200).tiffsave(str(tmp_path / "bands.tif"))
    write_image(tmp_path / "wide.png", Image(pixels().astype(np.uint16)))
    monkeypatch.setattr(header, "MAX_BYTES", 13 * 18 * 3 * 2 - 1)
    monkeypatch.setattr(pyvips.Image, "numpy", lambda self: pytest.fail("decoded"))
    with pytest.raises(ImageError, match="200 channels are not supported"):
        read_image(tmp_path / "bands.tif")
    with pytest.raises(ImageError, match="3 channels of 16 bits is more than the allowed"):
        read_image(tmp_path / "wide.png")


def test_a_png_bomb_is_refused_by_its_header(tmp_path):
    size = struct.pack(">IIBBBBB", 40000, 40000, 8, 0, 0, 0, 0)
    chunks = b"\x89PNG\r\n\x1a\n"
    for name, content in ((b"IHDR", size), (b"IDAT", zlib.compress(b"\0" * 99)), (b"IEND", b"")):
        chunks += struct.pack(">I", len(content)) + name + content
        chunks += struct.pack(">I", zlib.crc32(name + content))
    (tmp_path / "bomb.png").write_bytes(chunks)
    with pytest.raises(ImageError, match="40000x40000 is more than the allowed"):
        read_image(tmp_path / "bomb.png")
    with pytest.raises(ImageError, match="bytes cannot hold 40000x40000"):
        read_image(tmp_path / "bomb.png", max_pixels=2**40)


def test_a_jpeg_that_says_more_pixels_than_it_can_hold_is_refused_by_its_header(tmp_path):
    PillowImage.new("L", (8, 8)).save(tmp_path / "x.jpg")
    data = (tmp_path / "x.jpg").read_bytes()
    size = data.index(b"\xff\xc0") + 5  # height and width behind a marker, a length and a depth
    (tmp_path / "x.jpg").write_bytes(
        data[:size] + struct.pack(">HH", 16000, 16000) + data[size + 4 :]
    )
    with pytest.raises(ImageError, match="bytes cannot hold 16000x16000"):
        read_image(tmp_path / "x.jpg")


def test_no_room_is_made_for_what_only_a_header_says(tmp_path):
    PillowImage.fromarray(pixels()).save(tmp_path / "x.jp2")
    data = bytearray((tmp_path / "x.jp2").read_bytes())
    box = data.index(b"jp2h") - 4
    data[box : box + 4] = b"\xff\xff\xff\x2d"  # its length, 4 GB
    (tmp_path / "x.jp2").write_bytes(data)
    tracemalloc.start()
    with pytest.raises(ImageError, match="broken"):
        read_image(tmp_path / "x.jp2")
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


# ------------------------------------------------------------------------ what is read otherwise


def floats(tmp_path, values: np.ndarray) -> Image:
    space = "b-w" if values.shape[2] == 1 else "scrgb"
    picture = pyvips.Image.new_from_array(values.astype(np.float32)).copy(interpretation=space)
    picture.tiffsave(str(tmp_path / "x.tif"))
    return read_image(tmp_path / "x.tif")


@pytest.mark.parametrize("levels", [1, 255, 65535])
@pytest.mark.parametrize("bands", [1, 3])
def test_floats_become_sixteen_bits_and_their_range_is_said(tmp_path, bands, levels, caplog):
    values = np.linspace(0, 1, 35 * bands).reshape(5, 7, bands)
    found = floats(tmp_path, values * levels)
    assert found.pixels.dtype == np.uint16 and found.was_gray is (bands == 1)
    assert np.abs(found.pixels - values * 65535).max() <= 0.51
    assert f"floats from 0 to {levels}" in caplog.text


@pytest.mark.parametrize("levels", [1, 255, 65535])
def test_floats_a_little_outside_of_their_range_are_clipped(tmp_path, levels, caplog):
    values = np.linspace(-0.01, 1.004, 35 * 3).reshape(5, 7, 3)
    found = floats(tmp_path, values * levels)
    assert np.abs(found.pixels - values.clip(0, 1) * 65535).max() <= 0.6
    assert f"clipped, read as [0, {levels}]" in caplog.text


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (np.nan, "NaN"), (np.inf, "NaN or inf"), (-1, "from -1"), (1e6, "to 1e"),
        (3.5, "to 3.5; scale them"), (600, "to 600"),
    ],
)  # fmt: skip
def test_floats_that_are_no_levels_are_one_sentence(tmp_path, bad, says):
    values = np.zeros((5, 7, 3))
    values[2, 2, 1] = bad
    with pytest.raises(ImageError, match=says):
        floats(tmp_path, values)


@pytest.mark.parametrize("divides", [True, False])
def test_colours_multiplied_by_alpha_become_straight(tmp_path, caplog, divides, monkeypatch):
    """Of a libvips that makes them so itself, and of one that does not."""
    if not divides:
        load = pyvips.Operation.call

        def call(name, *args, **options):  # as the bytes stand
            if name != "tiffload_source":
                return load(name, *args, **options)
            return pyvips.Image.new_from_array(multiplied).copy(interpretation="srgb")

        monkeypatch.setattr(pyvips.Operation, "call", call)
        monkeypatch.setattr(reader, "libvips_divides", lambda: False)
    elif not tiff.libvips_divides():
        pytest.skip("the libvips here does not")
    alpha = np.full((13, 18), 127, np.uint8)
    multiplied = np.dstack([np.rint(pixels() * (127 / 255)).astype(np.uint8), alpha])
    PillowImage.fromarray(multiplied).save(tmp_path / "x.tif")
    data = (tmp_path / "x.tif").read_bytes()
    extra_samples = b"\x52\x01\x03\0\x01\0\0\0"  # Pillow can only write 2, straight
    assert data.count(extra_samples + b"\2") == 1
    data = data.replace(extra_samples + b"\2", extra_samples + b"\1")
    (tmp_path / "x.tif").write_bytes(data)
    found = read_image(tmp_path / "x.tif")
    assert np.abs(found.pixels.astype(int) - pixels()).max() <= 2
    assert (found.alpha == 127).all() and "become straight" in caplog.text
    write_image(tmp_path / "y.png", found)
    assert np.array_equal(read_image(tmp_path / "y.png").pixels, found.pixels)


def test_the_first_frame_of_an_animated_png_is_read_with_a_warning(tmp_path, caplog):
    first, second = (PillowImage.new("RGB", (8, 8), c) for c in ("red", "blue"))
    first.save(tmp_path / "x.png", save_all=True, append_images=[second])
    assert tuple(read_image(tmp_path / "x.png").pixels[0, 0]) == (255, 0, 0)
    assert "2 pages or frames" in caplog.text


def test_the_colour_space_of_an_hdr_png_is_kept_and_said(tmp_path, caplog):
    pq, srgb = bytes([9, 16, 0, 1]), bytes([1, 13, 0, 1])
    for cicp, is_said in ((pq, True), (srgb, False)):
        write_image(tmp_path / "x.png", Image(pixels(), space=((b"cICP", cicp),)))
        found = read_image(tmp_path / "x.png")
        assert dict(found.space) == {b"cICP": cicp} and np.array_equal(found.pixels, pixels())
        assert ("another kind than sRGB" in caplog.text) is is_said
        caplog.clear()
    PillowImage.open(tmp_path / "x.png").verify()
    write_image(tmp_path / "y.png", replace(found, metadata=None))  # stripped, the colours stay
    assert dict(read_image(tmp_path / "y.png").space) == {b"cICP": srgb}


def test_gamma_and_primaries_of_a_png_are_kept_and_another_gamma_is_said(tmp_path, caplog):
    primaries = (
        b"cHRM",
        struct.pack(">8I", *[31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000]),
    )
    for gamma, is_said in ((45455, False), (100000, True)):
        space = ((b"gAMA", struct.pack(">I", gamma)), primaries)
        write_image(tmp_path / "x.png", Image(pixels(), space=space))
        found = PillowImage.open(tmp_path / "x.png").info
        assert found["gamma"] == gamma / 1e5 and found["chromaticity"][0] == 0.3127
        assert read_image(tmp_path / "x.png").space == space
        assert ("gAMA 1)" in caplog.text) is is_said
    caplog.clear()
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    write_image(tmp_path / "x.png", Image(pixels(), icc=profile, space=space))
    assert read_image(tmp_path / "x.png").icc and not caplog.records


def test_damage_beside_the_pixels_of_a_png_is_said_or_refused(tmp_path, caplog):
    palette = PillowImage.fromarray(pixels()).quantize(8)
    palette.save(tmp_path / "x.png", transparency=0, dpi=(300, 300))
    whole = (tmp_path / "x.png").read_bytes()
    clear = whole.index(b"tRNS")
    (tmp_path / "x.png").write_bytes(whole[:clear] + b"rRNS" + whole[clear + 4 :])
    with pytest.raises(ImageError, match="chunk rRNS: wrong checksum"):
        read_image(tmp_path / "x.png")
    density = whole.index(b"pHYs") + 5
    (tmp_path / "x.png").write_bytes(whole[:density] + b"\x7f" + whole[density + 1 :])
    assert read_image(tmp_path / "x.png").alpha is not None
    assert "damaged, and left out: pHYs" in caplog.text


# ------------------------------------------------------------------------- rarer kinds of numbers


@pytest.mark.parametrize(
    ("dtype", "top"),
    [("uint32", 2**32 - 1), ("int32", 2**31 - 1), ("int32", 65535), ("int16", 255)],
)
@pytest.mark.parametrize("bands", [1, 3])
def test_whole_numbers_of_other_kinds_become_sixteen_bits(tmp_path, dtype, top, bands, caplog):
    shares = np.linspace(0, 1, 35 * bands).reshape(5, 7, bands)
    picture = pyvips.Image.new_from_array((shares * top).astype(dtype))
    space = "b-w" if bands == 1 else "srgb"
    picture.copy(interpretation=space).tiffsave(str(tmp_path / "x.tif"))
    found = read_image(tmp_path / "x.tif")
    assert found.pixels.dtype == np.uint16 and found.was_gray is (bands == 1)
    assert np.abs(found.pixels - shares * 65535).max() <= 65535 / top + 1
    assert f"{dtype} numbers from 0 to" in caplog.text and f"as [0, {top}]" in caplog.text


def test_numbers_below_zero_are_one_sentence(tmp_path):
    picture = pyvips.Image.new_from_array(np.full((5, 7, 1), -3, np.int16))
    picture.copy(interpretation="grey16").tiffsave(str(tmp_path / "x.tif"))
    with pytest.raises(ImageError, match="from -3 to -3; scale them"):
        read_image(tmp_path / "x.tif")


@pytest.mark.parametrize(("dtype", "top"), [(np.uint8, 255), (np.uint16, 65535)])
@pytest.mark.parametrize("alpha", [False, True])
def test_cmyk_becomes_srgb_in_its_own_depth(tmp_path, dtype, top, alpha, caplog):
    bands = np.zeros((6, 8, 5 if alpha else 4), dtype)
    bands[:3, :, 0] = top  # cyan above, white below
    bands[..., 4:] = top // 2
    picture = pyvips.Image.new_from_array(bands).copy(interpretation="cmyk")
    picture.tiffsave(str(tmp_path / "x.tif"))
    found = read_image(tmp_path / "x.tif")
    assert found.pixels.dtype == dtype and "CMYK becomes sRGB" in caplog.text
    assert found.pixels[5].min() > 0.98 * top and found.pixels[0, 0, 0] < 0.3 * top
    assert (found.alpha is not None) is alpha
    assert not alpha or (found.alpha == top // 2).all()


def test_lab_becomes_srgb_of_sixteen_bits(tmp_path):
    srgb = pyvips.Image.new_from_array(pixels()).copy(interpretation="srgb")
    srgb.colourspace("lab").tiffsave(str(tmp_path / "x.tif"))
    found = read_image(tmp_path / "x.tif").pixels
    assert found.dtype == np.uint16
    assert np.abs(found / 257 - pixels()).max() < 3  # libvips stores 8 bits of each


@pytest.mark.parametrize("bits", [10, 12])
def test_an_avif_of_more_than_eight_bits_keeps_them(tmp_path, bits):
    ramp = np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64, 1).repeat(3, 2)
    write_image(tmp_path / "x.avif", Image(ramp, bits=bits))
    found = read_image(tmp_path / "x.avif")
    assert found.bits == bits and np.abs(found.pixels.astype(int) - ramp).max() < 2000
    write_image(tmp_path / "y.avif", replace(found))
    assert read_image(tmp_path / "y.avif").bits == bits
    write_image(tmp_path / "z.avif", Image(ramp))
    assert read_image(tmp_path / "z.avif").bits == 10


@pytest.mark.parametrize(
    ("primaries", "transfer", "is_said"), [(9, 16, True), (12, 13, True), (1, 13, False)]
)
def test_the_colour_space_of_an_avif_is_read_as_that_of_a_png(
    tmp_path, primaries, transfer, is_said, caplog
):
    picture = pyvips.Image.new_from_array(pixels()).copy(interpretation="srgb")
    picture.heifsave(str(tmp_path / "x.avif"), compression="av1", lossless=True)
    data = (tmp_path / "x.avif").read_bytes()
    at = data.index(b"colrnclx") + 8
    marked = data[:at] + struct.pack(">HH", primaries, transfer) + data[at + 4 :]
    (tmp_path / "x.avif").write_bytes(marked)
    found = read_image(tmp_path / "x.avif")
    assert dict(found.space) == {b"cICP": bytes([primaries, transfer, 0, 1])}
    assert ("another kind than sRGB" in caplog.text) is is_said
    write_image(tmp_path / "y.png", found)
    assert read_image(tmp_path / "y.png").space == found.space


def test_an_avif_with_a_profile_takes_no_space_of_another_item(tmp_path):
    """As an HDR photo has: a base picture by its profile, and a gain map or tone map by numbers."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    write_image(tmp_path / "x.avif", Image(pixels(), icc=profile))
    other = b"colrnclx" + struct.pack(">HHHB", 9, 16, 0, 128)
    box = struct.pack(">I", len(other) + 8) + b"free" + other
    data = (tmp_path / "x.avif").read_bytes()
    assert b"colrnclx" not in data
    (tmp_path / "x.avif").write_bytes(data + box)
    found = read_image(tmp_path / "x.avif")
    assert found.icc == profile and found.space == ()


# ------------------------------------------------------------------------------------- as written


def test_a_lossless_webp_stays_lossless_unless_a_quality_is_asked_for(tmp_path):
    for name, options in (("whole", {"lossless": True}), ("lossy", {"quality": 90})):
        path = tmp_path / f"{name}.webp"
        PillowImage.fromarray(pixels()).save(path, exif=b"Exif\0\0II*\0", **options)
        found = read_image(path)
        assert found.is_lossless is (name == "whole")
        write_image(tmp_path / "x.webp", replace(found, pixels=pixels()))
        same = np.array_equal(read_image(tmp_path / "x.webp").pixels, pixels())
        assert same is (name == "whole")
        write_image(tmp_path / "y.webp", found, quality=50)
        assert not read_image(tmp_path / "y.webp").is_lossless


@pytest.mark.parametrize("suffix", [".jpg", ".webp", ".avif"])
def test_a_lower_quality_is_a_smaller_file(tmp_path, suffix):
    sizes = []
    for quality in (20, 60, None, 100):
        write_image(tmp_path / f"x{suffix}", Image(pixels(64, 64)), quality)
        sizes.append((tmp_path / f"x{suffix}").stat().st_size)
    assert sizes == sorted(set(sizes))


def test_a_quality_that_changes_nothing_or_is_none_is_one_sentence(tmp_path):
    png, jpg, tif = (tmp_path / name for name in ("a.png", "a.jpg", "a.tif"))
    check_quality(90, [png, jpg])
    check_quality(None, [png])
    for quality, targets, says in (
        (0, [jpg], "quality=0 is not possible"),
        (101, [jpg], "from 1 .small. to 100"),
        (90, [png, tif], "quality=90 changes nothing in PNG and TIFF"),
    ):
        with pytest.raises(ImageError, match=says):
            check_quality(quality, targets)
