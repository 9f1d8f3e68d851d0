import io

import numpy as np
import PIL.Image
import pytest
import torch
from PIL import ExifTags

from ldm_dream.data.images import Image, ImageError, read_image
from ldm_dream.upscaling import hidden as hidden_module
from ldm_dream.upscaling.hidden import filled
from ldm_dream.upscaling.pictures import Canvas, Pixels, Source, unpack

RNG = np.random.default_rng(0)
U8, U16 = (
    RNG.integers(0, np.iinfo(d).max, (5, 7, 4), dtype=d, endpoint=True)
    for d in (np.uint8, np.uint16)
)

PICTURES = {
    "uint8 rgb": U8[..., :3],
    "uint8 rgba": U8,
    "uint8 grey": U8[..., 0],
    "uint16 rgb": U16[..., :3],
    "uint16 rgba": U16,
    "uint16 grey": U16[..., 0],
    "float32": U8[..., :3].astype(np.float32) / 255,
    "float64 grey": U8[..., 0] / 255.0,
    "PIL RGB": PIL.Image.fromarray(U8[..., :3]),
    "PIL RGBA": PIL.Image.fromarray(U8),
    "PIL L": PIL.Image.fromarray(U8[..., 0]),
    "PIL LA": PIL.Image.fromarray(U8[..., :2], "LA"),
    "PIL I;16": PIL.Image.fromarray(U16[..., 0]),
    "tensor": torch.rand(3, 5, 7),
    "tensor batch": torch.rand(2, 3, 5, 7, dtype=torch.float64),
    "Image": Image(U16[..., :3], U16[..., 3], b"profile"),
}


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_written_again_is_the_picture(name):
    picture = PICTURES[name]
    pixels = unpack(picture)
    rgb = pixels.cut(slice(0, pixels.colours), slice(0, 5), slice(0, 7))
    assert pixels.size == (5, 7) and rgb.dtype == torch.float32
    assert rgb.shape[1] in (1, 3) and rgb.min() >= 0 and rgb.max() <= 1
    again = drawn(pixels)
    assert type(again) is type(picture)
    if isinstance(picture, PIL.Image.Image):
        assert again.mode == picture.mode
    if isinstance(picture, Image):
        assert np.array_equal(again.pixels, picture.pixels) and np.array_equal(
            again.alpha, picture.alpha
        )
        assert again.icc == picture.icc
    elif isinstance(picture, torch.Tensor):
        torch.testing.assert_close(again, picture, rtol=0, atol=1e-7)
    else:
        assert np.asarray(again).dtype == np.asarray(picture).dtype
        np.testing.assert_allclose(
            np.asarray(again, float), np.asarray(picture, float), rtol=0, atol=1e-7
        )


def drawn(pixels, rgb=None):
    """The picture that its own colours (or `rgb`) make, written in two pieces."""
    if rgb is None:
        rgb = Source(pixels).whole(pixels.size) / 2 + 0.5
    canvas = Canvas(pixels, pixels.size)
    for rows in (slice(0, 1), slice(1, pixels.size[0])):
        canvas.write(rows, rgb[..., rows, :])
    return canvas.picture()


def test_alpha_is_apart_from_the_colours():
    pixels = unpack(U8)
    everywhere = slice(None)
    rgb = pixels.cut(slice(0, 3), everywhere, everywhere)
    assert torch.equal(rgb[0, 1], torch.from_numpy(U8[..., 1] / np.float32(255)))
    alpha = pixels.alpha(pixels.size, slice(0, 5))
    assert torch.equal(alpha[0, 0], torch.from_numpy(U8[..., 3] / np.float32(255)))


def test_grey_comes_back_as_the_mean_of_the_channels():
    pixels = unpack(U8[..., 0])
    tinted = torch.tensor([0.2, 0.4, 0.6]).view(1, 3, 1, 1).expand(1, 3, 5, 7)
    assert np.array_equal(drawn(pixels, tinted), np.full((5, 7), 102, np.uint8))


def test_a_palette_with_transparency_becomes_rgba_and_the_profile_stays():
    palette = PIL.Image.fromarray(U8[..., :3]).quantize(4)
    palette.info |= {"transparency": 0, "icc_profile": b"profile"}
    pixels = unpack(palette)
    assert np.unique(pixels.bands[..., 3]).tolist() == [0, 255]
    again = drawn(pixels)
    assert again.mode == "RGBA" and again.info == {"icc_profile": b"profile"}


def test_a_pil_picture_is_turned_upright_and_keeps_what_it_says():
    exif = PIL.Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    exif[ExifTags.Base.Make] = "camera"
    exif[ExifTags.Base.ImageWidth] = 7
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.ExifImageWidth] = 7
    file = io.BytesIO()
    PIL.Image.fromarray(U8[..., :3]).save(
        file, "jpeg", exif=exif, dpi=(300, 300), icc_profile=b"profile"
    )
    picture = PIL.Image.open(file)
    pixels = unpack(picture)
    upright = np.asarray(picture).transpose(1, 0, 2)[:, ::-1]
    assert np.array_equal(pixels.bands[0], upright)
    again = drawn(pixels)
    tags = again.getexif()
    assert ExifTags.Base.Orientation not in tags and tags[ExifTags.Base.Make] == "camera"
    assert tags[ExifTags.Base.ImageWidth] == 5
    assert tags.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.ExifImageWidth] == 5
    assert again.info["dpi"] == (300, 300) and again.info["icc_profile"] == b"profile"
    assert picture.getexif()[ExifTags.Base.Orientation] == 6, "the picture given stays as it is"


def test_cmyk_of_pillow_has_the_colours_of_the_same_file(tmp_path):
    picture = PIL.Image.fromarray(np.tile(U8, (4, 4, 1)), "CMYK")
    picture.save(tmp_path / "x.tif")
    assert np.array_equal(unpack(picture).bands[0], read_image(tmp_path / "x.tif").pixels)


def test_text_and_other_info_of_a_pil_picture_stay():
    picture = PIL.Image.fromarray(U8)
    picture.info |= {"Title": "a title", "dpi": (300, 300), "gamma": 0.45}
    assert drawn(unpack(picture)).info == picture.info


# ------------------------------------------------------------------------------------ hidden colours


def hidden_under(colour: int, levels: int, dtype) -> np.ndarray:
    """[12, 9, 4]: two dark halves, all but a small part of each hidden under `colour`."""
    bands = np.full((12, 9, 4), colour * levels, dtype)
    bands[..., 3] = 0
    bands[2:4, 1:4] = [0.25 * levels, 0, 0, levels]
    bands[8:11, 5:8] = [0.25 * levels, 0, 0.5 * levels, levels]
    return bands


@pytest.mark.parametrize("dtype, levels", [(np.uint8, 255), (np.uint16, 65535), (np.float32, 1)])
def test_hidden_colours_become_those_of_their_visible_neighbours(dtype, levels):
    ours = [filled(unpack(hidden_under(colour, levels, dtype))).bands[0] for colour in (0, 1)]
    assert np.array_equal(*ours), "what is hidden does not matter"
    given = hidden_under(0, levels, dtype)
    seen = given[..., 3] > 0
    assert np.array_equal(ours[0][seen], given[seen]) and ours[0].dtype == dtype
    assert np.array_equal(ours[0][..., 3], given[..., 3])
    assert np.ptp(ours[0][..., 0].astype(float)) <= 1e-6 * levels + 1
    assert ours[0][1, 1, 2] < 0.1 * levels < 0.4 * levels < ours[0][11, 7, 2]


def test_grey_pictures_have_hidden_colours_too():
    bands = np.zeros((6, 6, 2), np.uint8)
    bands[2:4, 2:4] = [200, 255]
    pixels = filled(unpack(PIL.Image.fromarray(bands, "LA")))
    assert (pixels.bands[..., 0] == 200).all()


def test_hardly_visible_in_16_bits_is_hidden():
    bands = np.zeros((6, 6, 4), np.uint16)
    bands[..., 3] = 100  # 0 in 8 bits
    bands[2:4, 2:4] = [9, 9, 9, 65535]
    assert (filled(unpack(bands)).bands[..., :3] == 9).all()


def test_a_large_picture_is_filled_in_strips_as_it_is_at_once(monkeypatch):
    """Up to what a coarse picture of another start differs by; and what is far away is filled too."""
    random = np.random.default_rng(0)
    bands = random.integers(0, 256, (1000, 70, 4), np.uint8)
    bands[..., 3] = 0
    bands[:40, :, 3] = bands[700:720, 30:50, 3] = 255
    smooth = np.linspace(40, 200, 1000)[:, None, None].astype(np.uint8)
    bands[..., :3] = np.where(bands[..., 3:] > 0, smooth, bands[..., :3])
    whole = filled(unpack(bands)).bands[0]
    monkeypatch.setattr(hidden_module, "STRIP", 0)
    strips = filled(unpack(bands)).bands[0]
    assert np.abs(strips.astype(int) - whole)[..., :3].max() <= 8
    others = bands.copy()
    others[..., :3][bands[..., 3] == 0] = 0
    assert np.array_equal(filled(unpack(others)).bands[0], strips)
    assert 40 <= strips[..., :3].min() and strips[..., :3].max() <= 200


def test_hidden_colours_take_floats_of_a_strip_at_a_time(monkeypatch):
    bands, cut, rows_at_once = np.zeros((3000, 1000, 4), np.uint8), Pixels.cut, []
    bands[::100, ::50] = 255
    monkeypatch.setattr(hidden_module, "STRIP", 2**17)

    def noted(pixels, channels, rows, columns):
        rows_at_once.append(rows.stop - rows.start)
        return cut(pixels, channels, rows, columns)

    monkeypatch.setattr(Pixels, "cut", noted)
    filled(unpack(bands))
    assert 0 < max(rows_at_once) <= 2**17 / 1000 + 2 * hidden_module.MARGIN


@pytest.mark.parametrize("alpha", [0, 255])
def test_nothing_is_filled_where_all_or_nothing_is_seen(alpha):
    pixels = unpack(np.dstack([U8[..., :3], np.full((5, 7), alpha, np.uint8)]))
    assert filled(pixels) is pixels


# ------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    "picture, says",
    [
        ("photo.png", "type str"),
        (np.zeros((4, 4, 5), np.uint8), r"shape \(4, 4, 5\)"),
        (np.zeros((0, 4, 3), np.uint8), "shape"),
        (np.zeros((4, 4), np.int32), "int32"),
        (np.full((4, 4, 3), 255.0), "to 255"),
        (np.full((4, 4, 3), np.nan), "nan"),
        (torch.zeros(1, 4, 4), r"\(1, 4, 4\)"),
        (torch.zeros(3, 4, 4, dtype=torch.uint8), "uint8"),
        (torch.full((3, 4, 4), -1.0), "from -1"),
        (PIL.Image.new("F", (4, 4)), "mode F"),
    ],
)
def test_what_is_no_picture_is_refused_in_one_sentence(picture, says):
    with pytest.raises(ImageError, match=says) as error:
        unpack(picture)
    assert "\n" not in str(error.value)
