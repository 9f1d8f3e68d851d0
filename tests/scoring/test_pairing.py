"""Which result belongs to which original, by name."""

from pathlib import Path

import numpy as np
import pytest

from ldm_dream.data.images import Image, find_images, write_image
from ldm_dream.scoring.evaluation import (
    PROTOCOLS,
    EvaluationError,
    Evaluator,
    evaluate_folder,
    find_originals,
)
from ldm_dream.scoring.pairing import PairingError, check_sizes, find_partners


def folder(path: Path, *names: str) -> Path:
    """Empty files with these names: names are all that is looked at."""
    path.mkdir(parents=True)
    for name in names:
        (path / name).touch()
    return path


def matched(tmp_path: Path, hr: list[str], sr: list[str], ending: str | None = None) -> dict:
    originals = find_images(folder(tmp_path / "hr", *hr))
    found = find_partners(originals, folder(tmp_path / "sr", *sr), ending)
    return {path.name: partner.name for path, partner in found.files.items()}


@pytest.mark.parametrize(
    "hr, sr, want",
    [
        (["a.png"], ["a.jpg"], ["a.jpg"]),
        (["a.png", "b.png"], ["a_x4.png", "b_x4.webp", "c.png"], ["a_x4.png", "b_x4.webp"]),
        (["0001.png", "0002.png"], ["0001x4.png", "0002x4.png"], ["0001x4.png", "0002x4.png"]),
        (["1.png", "10.png"], ["1-sr.png", "10-sr.png"], ["1-sr.png", "10-sr.png"]),
        (["1.png", "1_2.png"], ["1.png", "1_2.png"], ["1.png", "1_2.png"]),
        (["a.jpg", "a.png"], ["a.png", "a.jpg"], ["a.jpg", "a.png"]),
        (["a.jpg", "a.png"], ["a_x4.png", "a_x4.jpg"], ["a_x4.jpg", "a_x4.png"]),
        (["a.PNG"], ["a.png", "a.jpg"], ["a.png"]),
    ],
)
def test_partners_have_the_name_or_one_ending_behind(tmp_path, hr, sr, want):
    assert list(matched(tmp_path, hr, sr).values()) == want


def test_the_ending_may_be_given(tmp_path):
    names = ["a_1.png", "a_2.png"]
    assert matched(tmp_path, ["a.png"], names, "_2") == {"a.png": "a_2.png"}
    assert find_partners(find_images(tmp_path / "hr"), tmp_path / "sr", "_2").spare == 1
    (tmp_path / "sr/a.png").touch()
    for options, want in (
        ({"ending": ""}, "a.png"),
        ({"ending": "_1"}, "a_1.png"),
        ({"bare_first": True}, "a.png"),
    ):
        found = find_partners(find_images(tmp_path / "hr"), tmp_path / "sr", **options)
        assert [path.name for path in found.files.values()] == [want]


@pytest.mark.parametrize(
    "hr, sr, ending, text",
    [
        (["a.png"], ["a_1.png", "a_2.png"], None, "names end in _1 and in _2; .*--suffix _1"),
        (["1.png"], ["10.png"], None, "no picture named 1 for .*, and so for 1 of 1"),
        (["a.png", "b.png"], ["a_x4.png", "b_x2.png"], None, "for 2 of 2"),
        (["a.png", "b.png"], ["a.png", "b_x2.png"], None, "no picture named b .* for 1 of 2"),
        (["a.png"], ["a.png"], "_x4", "no picture named a_x4"),
        (["a.png"], ["a.png", "a_x4.png"], None, "both a and a_x4; .*--suffix _x4 or --suffix ''"),
        (["a.png", "b.png"], ["a.png", "b.png", "b_x4.png"], None, "both b and b_x4"),
        (["a.png"], ["a.jpg", "a.webp"], None, "holds a.jpg and a.webp for it; take away"),
        (["a.png", "a.jpg"], ["a.png"], None, "may belong to each of a.jpg and of a.png"),
    ],
)
def test_names_that_do_not_decide_are_refused(tmp_path, hr, sr, ending, text):
    with pytest.raises(PairingError, match=text):
        matched(tmp_path, hr, sr, ending)


def test_originals_of_one_stem_get_their_own_scores(tmp_path):
    pixels = np.random.default_rng(0).integers(10, 200, (32, 32, 3), dtype=np.uint8)
    for name, away in (("a.png", 1), ("a.webp", 9)):
        for place, levels in (("hr", 0), ("sr", away)):
            (tmp_path / place).mkdir(exist_ok=True)
            write_image(tmp_path / place / name, Image(pixels + np.uint8(levels)))
    evaluator = Evaluator(PROTOCOLS["standard"], 4)
    evaluate_folder(evaluator, find_images(tmp_path / "hr"), tmp_path / "sr")
    png, webp = evaluator.rows
    assert (png["picture"], webp["picture"]) == ("a.png", "a.webp")
    assert png["psnr_rgb"] == pytest.approx(48.13, abs=0.01) and webp["psnr_rgb"] < 40
    assert evaluator.report()["pictures"] == 2


def test_sizes_are_checked_before_any_score(tmp_path):
    for place, sides in (("hr", (32, 32)), ("sr", (32, 28))):
        (tmp_path / place).mkdir()
        for name, side in zip("ab", sides):
            pixels = np.zeros((side, side, 3), np.uint8)
            write_image(tmp_path / place / f"{name}.png", Image(pixels))
    evaluator = Evaluator(PROTOCOLS["standard"], 4)
    with pytest.raises(PairingError, match="b.png: is 32x32 and its result 28x28"):
        evaluate_folder(evaluator, find_images(tmp_path / "hr"), tmp_path / "sr")
    assert not evaluator.rows
    with pytest.raises(PairingError, match="is 32x32, less than the scale 64"):
        check_sizes(None, None, 64, find_images(tmp_path / "hr"))


def test_what_else_a_folder_holds_is_counted(tmp_path):
    hr = folder(tmp_path / "hr", "a_set5.png", "b.png", "c.xyz")
    files, notes = find_originals(hr, "set5")
    assert [path.name for path in files] == ["a_set5.png"]
    assert notes == [
        f"1 pictures of {hr} do not have 'set5'.",
        f"{hr} also holds 1 xyz; not scored.",
    ]


def test_a_text_that_no_name_holds_is_refused(tmp_path):
    with pytest.raises(EvaluationError, match="none of its 1 has 'set5' in its name"):
        find_originals(folder(tmp_path / "hr", "a.png"), "set5")
