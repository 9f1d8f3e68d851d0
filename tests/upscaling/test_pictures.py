import numpy as np
import PIL.Image
import pytest
import torch

from ldm_dream.data.images import Image, ImageError
from ldm_dream.upscaling.pictures import unpack

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
def test_pack_undoes_unpack(name):
    picture = PICTURES[name]
    rgb, alpha, pack = unpack(picture)
    assert (
        rgb.shape[1:] == (3, 5, 7)
        and rgb.dtype == torch.float32
        and rgb.min() >= 0
        and rgb.max() <= 1
    )
    again = pack(rgb, alpha)
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


def test_alpha_is_apart_from_the_colours():
    rgb, alpha, _ = unpack(U8)
    assert torch.equal(rgb[0, 1], torch.from_numpy(U8[..., 1] / np.float32(255)))
    assert torch.equal(alpha[0, 0], torch.from_numpy(U8[..., 3] / np.float32(255)))


def test_grey_comes_back_as_the_mean_of_the_channels():
    _, _, pack = unpack(U8[..., 0])
    tinted = torch.tensor([0.2, 0.4, 0.6]).view(1, 3, 1, 1).expand(1, 3, 2, 2)
    assert np.array_equal(pack(tinted, None), np.full((2, 2), 102, np.uint8))


def test_a_palette_with_transparency_becomes_rgba_and_the_profile_stays():
    palette = PIL.Image.fromarray(U8[..., :3]).quantize(4)
    palette.info |= {"transparency": 0, "icc_profile": b"profile"}
    rgb, alpha, pack = unpack(palette)
    assert alpha.unique().tolist() == [0, 1]
    assert pack(rgb, alpha).mode == "RGBA" and pack(rgb, alpha).info["icc_profile"] == b"profile"


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
