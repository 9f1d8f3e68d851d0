"""Laws of reading and writing pictures: what survives, and the one sentence for what does not work."""

from __future__ import annotations

import errno
import io
import logging
import os
import resource
import sys

import numpy as np
import pytest
import pyvips
import torch
from PIL import Image as PillowImage
from PIL import ImageCms
from processes import in_a_new_process

from ldm_dream.data import reader
from ldm_dream.data.images import (
    Image,
    ImageError,
    find_images,
    from_tensor,
    image_size,
    list_images,
    read_image,
    to_tensor,
    to_uint8,
    write_image,
)
from ldm_dream.writing import WriteError

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def pixels(height=13, width=18, dtype=np.uint8, channels=3):
    return np.random.default_rng(0).integers(
        0, np.iinfo(dtype).max + 1, (height, width, channels), dtype=dtype
    )


# ------------------------------------------------------------------------------------ what survives


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("with_alpha", [False, True])
@pytest.mark.parametrize("suffix", [".png", ".tif", ".tiff", ".PNG"])
def test_lossless_formats_return_every_bit(tmp_path, suffix, with_alpha, dtype):
    alpha = pixels(dtype=dtype, channels=1)[..., 0] if with_alpha else None
    write_image(tmp_path / f"x{suffix}", Image(pixels(dtype=dtype), alpha, SRGB))
    back = read_image(tmp_path / f"x{suffix}")
    assert back.pixels.dtype == dtype and np.array_equal(back.pixels, pixels(dtype=dtype))
    assert (back.alpha is None) == (alpha is None) and (
        alpha is None or np.array_equal(back.alpha, alpha)
    )
    assert back.icc == SRGB and not back.was_gray


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("with_alpha", [False, True])
def test_grey_is_read_as_rgb_and_written_as_grey(tmp_path, dtype, with_alpha):
    grey = pixels(dtype=dtype, channels=1)
    alpha = pixels(dtype=dtype, channels=1)[..., 0] if with_alpha else None
    write_image(tmp_path / "a.png", Image(np.repeat(grey, 3, 2), alpha, was_gray=True))
    back = read_image(tmp_path / "a.png")
    assert back.was_gray and np.array_equal(back.pixels, np.repeat(grey, 3, 2))
    assert pyvips.Image.new_from_file(str(tmp_path / "a.png")).bands == 1 + with_alpha


@pytest.mark.parametrize("suffix", [".jpg", ".webp"])
def test_lossy_formats_stay_close_and_keep_the_profile(tmp_path, suffix):
    smooth = np.add.outer(np.arange(64), np.arange(48))[..., None].repeat(3, 2).astype(np.uint8)
    write_image(tmp_path / f"x{suffix}", Image(smooth, icc=SRGB))
    back = read_image(tmp_path / f"x{suffix}")
    assert np.abs(back.pixels.astype(int) - smooth).max() <= 6 and back.icc == SRGB


def test_webp_keeps_alpha_exactly(tmp_path):
    alpha = pixels(channels=1)[..., 0]
    write_image(tmp_path / "x.webp", Image(pixels(), alpha))
    assert np.array_equal(read_image(tmp_path / "x.webp").alpha, alpha)


def test_sixteen_bits_become_the_nearest_eight_in_jpeg(tmp_path):
    write_image(tmp_path / "x.jpg", Image(np.full((16, 16, 3), 1000, np.uint16)))
    assert (read_image(tmp_path / "x.jpg").pixels == 4).all()  # 1000 / 257 = 3.9
    assert to_uint8(np.array([0, 128, 129, 65535], np.uint16)).tolist() == [0, 0, 1, 255]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_to_pixels_and_size(tmp_path, orientation):
    turned = PillowImage.fromarray(pixels())
    exif = PillowImage.Exif()
    exif[0x0112] = orientation
    turned.save(tmp_path / "x.png", exif=exif)
    # Pillow's Transpose that undoes each
    upright = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}.get(orientation)
    expected = turned if upright is None else turned.transpose(upright)
    assert np.array_equal(read_image(tmp_path / "x.png").pixels, np.asarray(expected))
    assert image_size(tmp_path / "x.png") == (expected.height, expected.width)


def test_a_written_picture_is_not_turned_a_second_time(tmp_path):
    exif = PillowImage.Exif()
    exif[0x0112] = 6
    PillowImage.fromarray(pixels()).save(tmp_path / "x.png", exif=exif)
    first = read_image(tmp_path / "x.png")
    write_image(tmp_path / "y.png", first)
    assert np.array_equal(read_image(tmp_path / "y.png").pixels, first.pixels)


def test_palette_becomes_rgb_and_its_transparency_alpha(tmp_path):
    palette = PillowImage.fromarray(pixels()).quantize(16)
    palette.save(tmp_path / "p.png")
    palette.save(tmp_path / "t.png", transparency=0)
    back, clear = read_image(tmp_path / "p.png"), read_image(tmp_path / "t.png")
    assert np.array_equal(back.pixels, np.asarray(palette.convert("RGB"))) and back.alpha is None
    assert np.array_equal(clear.alpha == 0, np.asarray(palette) == 0)


@pytest.mark.parametrize("mode", ["1", "L"])
def test_one_bit_and_grey_files_are_grey(tmp_path, mode):
    picture = PillowImage.fromarray(pixels()).convert(mode)
    picture.save(tmp_path / "x.png")
    back = read_image(tmp_path / "x.png")
    assert back.was_gray and np.array_equal(back.pixels[..., 1], np.asarray(picture.convert("L")))


def test_cmyk_becomes_srgb_without_its_old_profile(tmp_path):
    # full magenta and yellow: red
    PillowImage.new("CMYK", (32, 32), (0, 255, 255, 0)).save(tmp_path / "x.jpg")
    back = read_image(tmp_path / "x.jpg")
    red, green, blue = back.pixels.reshape(-1, 3).mean(0)
    assert (
        back.pixels.dtype == np.uint8
        and back.icc is None
        and red > 200
        and green < 80
        and blue < 80
    )


@pytest.mark.parametrize("size", [(1, 1), (7, 5000), (5000, 7)])
def test_extreme_sizes_survive(tmp_path, size):
    write_image(tmp_path / "x.png", Image(pixels(*size)))
    assert np.array_equal(read_image(tmp_path / "x.png").pixels, pixels(*size))
    assert image_size(tmp_path / "x.png") == size


def test_names_with_brackets_are_names_not_options(tmp_path):
    write_image(tmp_path / "photo[1].png", Image(pixels()))
    assert np.array_equal(read_image(tmp_path / "photo[1].png").pixels, pixels())


def test_a_rewritten_file_is_read_anew(tmp_path):
    for value in (10, 200):
        write_image(tmp_path / "x.png", Image(np.full((4, 4, 3), value, np.uint8)))
        assert (read_image(tmp_path / "x.png").pixels == value).all()


def test_a_file_of_several_pages_says_that_only_the_first_is_used(tmp_path, caplog):
    first, second = (PillowImage.new("RGB", (8, 8), c) for c in ("red", "blue"))
    first.save(tmp_path / "x.tif", save_all=True, append_images=[second])
    with caplog.at_level(logging.WARNING):
        assert tuple(read_image(tmp_path / "x.tif").pixels[0, 0]) == (255, 0, 0)
    assert "2 pages" in caplog.text


# ------------------------------------------------------------------------------- what does not work


def jpeg() -> bytes:
    buffer = io.BytesIO()
    PillowImage.fromarray(pixels(200, 200)).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("note.png", b"this is a text file\n" * 9, "not a picture"),
        ("empty.jpg", b"", "empty"),
        ("cut.jpg", jpeg()[: len(jpeg()) // 2], "broken or truncated"),
        ("head.jpg", jpeg()[:20], "broken"),
        (
            "drawing.svg",
            b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"></svg>',
            "not a picture",
        ),
    ],
)
def test_each_bad_file_gets_one_sentence_with_its_name(tmp_path, name, data, reason):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ImageError, match=reason) as caught:
        read_image(tmp_path / name)
    assert name in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", [".png", ".webp", ".tif"])
def test_no_format_returns_half_a_picture(tmp_path, suffix):
    write_image(tmp_path / f"x{suffix}", Image(pixels(300, 300)))
    data = (tmp_path / f"x{suffix}").read_bytes()
    (tmp_path / f"x{suffix}").write_bytes(data[: len(data) // 2])
    with pytest.raises(ImageError, match="broken"):
        read_image(tmp_path / f"x{suffix}")


def test_missing_path_and_folder_are_named(tmp_path):
    with pytest.raises(ImageError, match="no such file"):
        read_image(tmp_path / "none.png")
    with pytest.raises(ImageError, match="is a folder"):
        read_image(tmp_path)


@pytest.mark.parametrize("name", ["x.png", "x.jpg", "x.gif"])
@pytest.mark.parametrize(
    "place", ["ldm_dream.data.header.kind_of", "ldm_dream.data.reader.check_limits"]
)
def test_a_disk_that_fails_while_a_picture_is_read_is_named(tmp_path, monkeypatch, name, place):
    PillowImage.fromarray(pixels()).save(tmp_path / name)

    def fails(*args):
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr(place, fails)
    with pytest.raises(ImageError, match=f"{name}: .*Stale file handle"):
        read_image(tmp_path / name)


def test_a_file_that_is_gone_before_it_is_decoded_is_named(tmp_path, monkeypatch):
    PillowImage.fromarray(pixels()).save(tmp_path / "x.jpg")
    monkeypatch.setattr(reader, "_say_what_changes", lambda header: header.path.unlink())
    with pytest.raises(ImageError, match="x.jpg: cannot be read: No such file"):
        read_image(tmp_path / "x.jpg")


def test_too_many_pixels_are_refused_before_decoding(tmp_path, monkeypatch):
    write_image(tmp_path / "x.png", Image(pixels(20, 30)))
    assert read_image(tmp_path / "x.png", max_pixels=600).pixels.shape == (20, 30, 3)
    monkeypatch.setattr(pyvips.Image, "numpy", lambda self: pytest.fail("decoded"))
    with pytest.raises(ImageError, match="30x20 is more than the allowed 599"):
        read_image(tmp_path / "x.png", max_pixels=599)


def test_jpeg_refuses_transparency_but_takes_an_opaque_alpha(tmp_path):
    with pytest.raises(ImageError, match="cannot hold transparency"):
        write_image(tmp_path / "x.jpg", Image(pixels(), pixels(channels=1)[..., 0]))
    write_image(tmp_path / "x.jpg", Image(pixels(), np.full((13, 18), 255, np.uint8)))
    assert read_image(tmp_path / "x.jpg").alpha is None


def test_an_unknown_suffix_lists_the_known_ones(tmp_path):
    with pytest.raises(ImageError, match=r"cannot write \.bmp; use one of \.png"):
        write_image(tmp_path / "x.bmp", Image(pixels()))


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    write_image(tmp_path / "x.png", Image(pixels()))
    before = (tmp_path / "x.png").read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(WriteError, match="No space left on device"):
        write_image(tmp_path / "x.png", Image(255 - pixels()))
    assert (tmp_path / "x.png").read_bytes() == before and [p.name for p in tmp_path.iterdir()] == [
        "x.png"
    ]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a limit of Linux")
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".webp"])
def test_a_disk_that_is_full_in_the_middle_is_one_sentence(tmp_path, suffix):
    with pytest.raises(WriteError, match="cannot be written: (File too large|No space left)"):
        in_a_new_process(written_on_a_small_disk, tmp_path / f"x{suffix}")
    assert not list(tmp_path.iterdir())


def written_on_a_small_disk(path):
    resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
    write_image(path, Image(pixels(300, 300)))


def test_a_missing_folder_is_made_and_a_file_in_its_place_is_one_sentence(tmp_path):
    write_image(tmp_path / "new/sub/x.png", Image(pixels()))
    assert (tmp_path / "new/sub/x.png").is_file()
    with pytest.raises(WriteError, match="a file stands where a folder is needed"):
        write_image(tmp_path / "new/sub/x.png/y.png", Image(pixels()))


def test_what_an_encoder_cannot_hold_is_one_sentence(tmp_path):
    with pytest.raises(ImageError, match="WebP ends at 16383 pixels"):
        write_image(tmp_path / "x.webp", Image(np.zeros((1, 17000, 3), np.uint8)))
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------ tensors and folders


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_tensors_return_every_level(dtype):
    levels = np.arange(np.iinfo(dtype).max + 1, dtype=dtype).reshape(16, -1, 1).repeat(3, 2)
    tensor = to_tensor(Image(levels))
    assert tensor.shape == (1, 3, *levels.shape[:2]) and tensor.dtype == torch.float32
    assert tensor.min() == -1 and tensor.max() == 1
    assert np.array_equal(from_tensor(tensor, dtype), levels)


def test_tensors_are_clamped_and_rounded_half_to_even():
    tensor = (torch.tensor([-3.0, 0.0, 3.0]) / 1).view(1, 1, 1, 3).expand(1, 3, 1, 3)
    assert from_tensor(tensor)[0, :, 0].tolist() == [0, 128, 255]  # 127.5 -> 128


@pytest.mark.parametrize(
    "bad", [torch.full((1, 3, 2, 2), torch.nan), torch.zeros(3, 2, 2), torch.zeros(2, 3, 2, 2)]
)
def test_tensors_that_are_no_picture_are_refused(bad):
    with pytest.raises(ValueError, match="from_tensor"):
        from_tensor(bad)


def test_find_images_sorts_filters_and_descends_only_when_asked(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("b.PNG", "a.jpg", ".hidden.png", "note.txt", "sub/c.webp"):
        (tmp_path / name).write_bytes(b"x")
    assert [p.name for p in find_images(tmp_path)] == ["a.jpg", "b.PNG"]
    assert [p.name for p in find_images(tmp_path, recursive=True)] == ["a.jpg", "b.PNG", "c.webp"]
    assert find_images(tmp_path / "note.txt") == [tmp_path / "note.txt"]


def test_folders_that_are_not_looked_into_are_counted(tmp_path, monkeypatch):
    for name in ("all/a.png", "all/sub/b.png", "all/locked/c.png", "else/d.png"):
        write_image(tmp_path / name, Image(pixels()))
    (tmp_path / "all/linked").symlink_to(tmp_path / "else")
    (tmp_path / "all/broken").symlink_to(tmp_path / "nothing")
    real = os.scandir

    def scandir(path):  # as for who may not read it; root may
        if os.fspath(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    listing = list_images(tmp_path / "all", recursive=True)
    assert [path.name for path in listing.pictures] == ["a.png", "b.png"]
    assert listing.left_out == {"linked folder": 1, "no file": 1, "unreadable subfolder": 1}
    assert list_images(tmp_path / "all").left_out == {"no file": 1, "subfolder": 3}
    with pytest.raises(ImageError, match="locked: cannot be read: Permission denied"):
        find_images(tmp_path / "all/locked")


def test_find_images_says_what_is_missing(tmp_path):
    with pytest.raises(ImageError, match="no such file or folder"):
        find_images(tmp_path / "none")
    with pytest.raises(ImageError, match="holds .* no picture"):
        find_images(tmp_path)
