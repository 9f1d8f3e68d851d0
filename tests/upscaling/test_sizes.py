import pytest

from ldm_dream.upscaling.devices import UpscaleError
from ldm_dream.upscaling.engine import Options
from ldm_dream.upscaling.sizes import MOST, Size

PHOTO = (400, 600)  # height, width


def size_of(scale=None, **sides) -> Size:
    """By a model that makes pictures four times as large."""
    return Options(**sides).size(4, scale)


@pytest.mark.parametrize(
    "asked, size",
    [
        ({"scale": 1.5}, (600, 900)),
        ({"width": 1000}, (667, 1000)),
        ({"height": 1000}, (1000, 1500)),
        ({"width": 1000, "height": 1000}, (667, 1000)),
        ({"width": 9000, "height": 100}, (100, 150)),
        ({"megapixels": 0.96}, (800, 1200)),
        ({}, (1600, 2400)),
    ],
)
def test_a_size_keeps_the_proportions_and_reaches_what_was_asked_for(asked, size):
    assert size_of(**asked).of(PHOTO) == size


def test_no_size_is_below_a_pixel_and_every_asked_side_is_met():
    assert Size(width=1).of((10, 4000)) == (1, 1)
    for side in range(1, 400):
        for height, width in ((7, 13), (333, 1000), (4000, 3)):
            assert Size(width=side).of((height, width))[1] == side
            high, wide = Size(width=side, height=side).of((height, width))
            assert max(high, wide) == side


@pytest.mark.parametrize(
    "asked, says",
    [
        ({"scale": 2, "width": 100}, "scale=2 and width=100 cannot"),
        ({"width": 100, "height": 100, "megapixels": 1}, "cannot be asked for; give one of"),
        ({"width": 0}, "width=0 is not possible; give a whole number from 1 up to 1000000000"),
        ({"height": 10.5}, "height=10.5"),
        ({"width": True}, "width=True"),
        ({"megapixels": float("nan")}, "megapixels=nan"),
        ({"megapixels": 1e308}, "megapixels=1e.308"),
        ({"scale": 1e308}, "scale=1e.308"),
        ({"width": 10**400}, "width=1000"),
        ({"scale": 10**400}, "up to 1000000000"),
        ({"scale": "4"}, "scale='4'"),
    ],
)
def test_an_impossible_size_is_one_sentence(asked, says):
    with pytest.raises(UpscaleError, match=says) as error:
        size_of(**asked)
    assert "\n" not in str(error.value)
    with pytest.raises(UpscaleError):
        Size()


@pytest.mark.parametrize("asked", ["scale", "width", "height", "megapixels"])
def test_the_largest_number_that_is_allowed_is_a_size(asked):
    assert max(size_of(**{asked: MOST}).of((100, 100))) > 10**7
