import json
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from ldm_dream.data.images import Image, find_images, read_image, write_image
from ldm_dream.scoring.evaluation import bicubic, low_resolution
from runs import pictures

TOOL = Path(__file__).resolve().parents[2] / "tools/evaluate.py"


@pytest.fixture
def evaluate(monkeypatch, capsys, tmp_path):
    """The tool in this process, with an empty torch cache: words of the command line -> (stdout,
    stderr).
    """
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch_home"))

    def run(*args) -> tuple[str, str]:
        monkeypatch.setattr(sys, "argv", [str(TOOL), *map(str, args)])
        runpy.run_path(str(TOOL), run_name="__main__")
        return capsys.readouterr()

    return run


@pytest.fixture
def folders(tmp_path) -> tuple[Path, Path, Path]:
    """HR, LR and bicubic results of two pictures."""
    hr = pictures(tmp_path / "hr", count=2)
    for name in ("lr", "sr"):
        (tmp_path / name).mkdir()
    for path in find_images(hr):
        lr = low_resolution(read_image(path).pixels, 4)
        write_image(tmp_path / "lr" / path.name, Image(lr))
        write_image(tmp_path / "sr" / path.name, Image(bicubic(lr, 4)))
    return hr, tmp_path / "lr", tmp_path / "sr"


def test_a_folder_is_scored_with_each_protocol_beside_its_number(evaluate, folders, tmp_path):
    hr, lr, sr = folders
    out, err = evaluate("--hr", hr, "--sr", sr, "--lr", lr, "--json", tmp_path / "new/scores.json")
    report = json.loads((tmp_path / "new/scores.json").read_text())
    means = report["means"]["sr"]
    assert (
        means["psnr_y"] > 20
        and 0 < means["consistency_x1e5"] < 50
        and report["pictures"] == len(report["rows"]) == 2
    )
    assert all(f"  {metric}: {report['protocol'][metric]}" in out for metric in means)
    assert (
        all(f"  {metric}: not computed: " in out for metric in ("lpips", "fid", "frechet_alexnet"))
        and not err
    )


def test_dream_legacy_and_the_net_are_chosen_on_the_command_line(evaluate, folders):
    pytest.importorskip("lpips")
    hr, _, sr = folders
    out, _ = evaluate("--hr", hr, "--sr", sr, "--protocol", "dream-legacy")
    assert "protocol dream-legacy" in out and "psnr_y" not in out and "vgg16-*.pth" in out
    out, _ = evaluate("--hr", hr, "--sr", sr, "--protocol", "dream-legacy", "--lpips-net", "alex")
    assert "lpips: not computed: put torchvision's alexnet-owt-*.pth" in out
    assert "frechet_alexnet" in out and "frechet_vgg16" not in out


def test_a_weights_file_brings_lpips_and_the_stand_in_for_fid(evaluate, folders, tmp_path):
    """A weights file brings lpips and the stand in which is not called fid."""
    pytest.importorskip("lpips")
    pytest.importorskip("torch_fidelity")
    from torchvision.models import alexnet

    torch.manual_seed(0)
    torch.save(alexnet(weights=None).state_dict(), tmp_path / "alexnet.pth")
    hr, _, sr = folders
    out, _ = evaluate("--hr", hr, "--sr", sr, "--lpips-weights", tmp_path / "alexnet.pth")
    heads = out.splitlines()[1].split()
    assert {"lpips", "frechet_alexnet"} <= set(heads) and not {"fid", "kid_x1e3"} & set(heads)
    assert (
        "  frechet_alexnet: squared Frechet distance" in out
        and "2 pictures" in out
        and "ill-conditioned" in out
    )
    assert "  fid: not computed: put torch-fidelity's weights-inception" in out


def test_a_match_that_fits_nothing_is_one_sentence(evaluate, folders, capsys):
    hr, _, sr = folders
    with pytest.raises(SystemExit) as stop:
        evaluate("--hr", hr, "--sr", sr, "--match", "set5")
    assert stop.value.code == 2 and "no picture was scored" in capsys.readouterr().err


def test_a_model_is_scored_at_its_scale_without_colour_fix_under_legacy(
    evaluate, folders, tmp_path, monkeypatch
):
    """A model of scale 2 is scored at 2; --scale goes first."""
    from ldm_dream.upscaling import upscaler

    calls = []

    class Stand:
        scale, engine = 2, SimpleNamespace(color_fix="wavelet")
        dtype, device = torch.float32, "cpu"

        def __call__(self, lr, scale, color_fix, steps=None):
            calls.append((scale, steps, color_fix))
            return bicubic(lr, scale)

    monkeypatch.setattr(upscaler.Upscaler, "from_pretrained", lambda *a, **k: Stand())
    hr = folders[0]
    out, _ = evaluate("--hr", hr, "-n", "x2", "--protocol", "dream-legacy", "--steps", 3)
    assert (
        "protocol dream-legacy, x2" in out
        and "x2 ran in fp32 on cpu, with the colour fix none." in out
    )
    evaluate("--hr", hr, "-n", "x2", "--scale", 4, "--match", "1")
    legacy = ("--protocol", "dream-legacy")
    evaluate("--hr", hr, "-n", "x2", "--match", "1", *legacy, "--color-fix", "adain")
    assert calls == [(2, 3, "none"), (2, 3, "none"), (4, None, None), (2, None, "adain")]


@pytest.mark.parametrize(
    "words, text",
    [
        (["--sr", "sr", "--steps", 4], "--steps: has no effect with --sr, where no model runs"),
        (["-n", "dream-latent-x4-tiny", "--suffix", "_x4"], "--suffix: has no effect without --sr"),
    ],
)
def test_what_would_be_ignored_is_refused(evaluate, folders, capsys, words, text):
    with pytest.raises(SystemExit) as stop:
        evaluate("--hr", folders[0], *words)
    assert stop.value.code == 2 and text in capsys.readouterr().err


def test_json_is_never_written_over_an_input(evaluate, folders, tmp_path, capsys):
    hr, lr, sr = folders
    weights = tmp_path / "weights.pth"
    weights.write_bytes(b"weights")
    soft, hard = tmp_path / "soft.json", tmp_path / "hard.json"
    soft.symlink_to(hr / "0.png")
    hard.hardlink_to(sr / "1.png")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.p*") if path.is_file()}
    for target in (hr / "0.png", lr / "1.png", soft, hard, weights, hr):
        with pytest.raises(SystemExit) as stop:
            words = ("--hr", hr, "--sr", sr, "--lr", lr, "--lpips-weights", weights)
            evaluate(*words, "--json", target)
        out, err = capsys.readouterr()
        assert stop.value.code == 2 and not out and err.count("\n") == 1, target
    assert before == {path: path.read_bytes() for path in before}
