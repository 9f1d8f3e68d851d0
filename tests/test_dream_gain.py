"""`python -m benchmarks dream-gain`: equal time, one row a seed and arm, and the table of them."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import dream_gain, record, trainings
from benchmarks.__main__ import build_parser
from benchmarks.peer_scores import Scorer
from benchmarks.tables import text
from ldm_dream.data.resize import upsample
from ldm_dream.errors import UserError

CONFIG = "configs/tiny/dream-photo-x4-tiny.yaml"
scores = dream_gain.worn_scores


@pytest.fixture
def trained(monkeypatch):
    """Trainings that take no time: their commands. A step with DREAM takes 1.25 times as long."""
    commands = []

    def train(words):
        commands.append(words)
        place = Path(words[words.index("--run-dir") + 1])
        place.mkdir(parents=True, exist_ok=True)
        rate = 5.0 if "loss.strength=0" in words else 4.0
        rows = [{"step": 1, "val/psnr_y": 1.0}] + 4 * [{"step": 1, "steps_per_second": rate}]
        (place / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))

    monkeypatch.setattr(trainings, "python", train)
    model = SimpleNamespace(dtype=torch.float32)
    monkeypatch.setattr(dream_gain.Upscaler, "from_pretrained", lambda folder: model)
    scored = {"psnr_y/clean": [20.0, 24.0], "frechet_x/clean": 3.0, "niqe/clean": [1.0, np.inf]}
    monkeypatch.setattr(dream_gain, "worn_scores", lambda *_: dict(scored))
    return commands


def run(tmp_path, *words, config=CONFIG):
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    for name in ("a", "b"):
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    words = ["--hr", str(tmp_path), "--runs", str(tmp_path / "runs"), *words]
    words += ["--json", str(tmp_path / "rows.jsonl"), "--config", config]
    dream_gain.main(build_parser().parse_args(["dream-gain", *words]))
    return record.read(tmp_path / "rows.jsonl")


def test_both_arms_take_equal_time_with_every_seed(trained, tmp_path):
    rows = run(tmp_path, "--steps", "80", "--seeds", "3", "5")
    found = [(row["variant"], row["settings"]["seed"], row["metrics"]["steps"]) for row in rows]
    assert found == [("plain", 3, 100), ("DREAM", 3, 80), ("plain", 5, 100), ("DREAM", 5, 80)]
    runs = trained[-4:]
    assert [("loss.strength=0" in words) for words in runs] == [True, False, True, False]
    assert all(f"train.steps={n}" in words for words, n in zip(runs, (100, 80, 100, 80)))
    assert "seed=3" in runs[0] and "seed=5" in runs[3]


def test_the_time_of_a_step_is_taken_once_and_belongs_to_its_recipe(trained, tmp_path):
    run(tmp_path, "--seeds", "0")
    assert len(trained) == 2 * trainings.PACE_TURNS + 2
    short = trained[: 2 * trainings.PACE_TURNS]
    assert all("train.val_images=0" in words for words in short), "nothing is validated"
    run(tmp_path, "--seeds", "0")
    assert len(trained) == 2 * trainings.PACE_TURNS + 4
    for other in (["--steps", "9"], ["--set", "train.learning_rate=1e-5"]):
        with pytest.raises(UserError, match="name another folder"):
            run(tmp_path, "--seeds", "0", *other)


@pytest.mark.parametrize(
    "config, words, says",
    [
        ("configs/tiny/vq-f4-fast.yaml", [], "trains an autoencoder"),
        ("configs/sr3/face-8x-dream.yaml", [], "scale is 8; the scores are for 4"),
        (CONFIG, ["--set", "loss.strength=0"], "both arms are plain"),
        (CONFIG, ["--limit", "1"], "needs 2 pictures or more"),
    ],
)
def test_what_cannot_be_compared_is_one_sentence(trained, tmp_path, config, words, says):
    with pytest.raises(UserError, match=says):
        run(tmp_path, *words, config=config)
    assert not trained


def test_the_table_names_both_arms_and_an_interval(trained, tmp_path):
    rows = run(tmp_path, "--seeds", "0", "1")
    for row in rows:
        if row["variant"] == "DREAM":
            row["metrics"]["psnr_y/clean"] = [20.5, 24.5]
    found = " ".join(text("dream-gain", rows).split())
    assert "| clean | PSNR-Y | 22.000 | 22.500 | +0.500 | +0.500 to +0.500 |" in found
    assert "| steps of training | 500 | 400 |" in found
    assert "400 steps with DREAM, fp32; 2 of `" in found
    assert "frechet" not in found and "niqe" not in found, "they are not of each picture"
    assert text("dream-gain", [row for row in rows if row["variant"] == "plain"])


def test_each_wear_has_the_scores_of_its_pictures():
    hr = torch.rand(1, 3, 96, 96) * 2 - 1
    enlarged = lambda lr, seed: upsample(lr, (96, 96)).clamp(0, 1)  # noqa: E731
    args = SimpleNamespace(lpips_weights=None, vgg_weights=None)
    found = scores(enlarged, [("a", hr, hr), ("b", hr, hr)], Scorer(args))  # type: ignore
    assert {name.split("/")[1] for name in found} == {"clean", "jpeg75", "web40", "camera"}
    assert found["psnr_y/clean"][0] == found["psnr_y/clean"][1]
    assert found["psnr_y/clean"][0] > found["psnr_y/web40"][0]
    about = dict.fromkeys(record.MACHINE, 1) | {"cpu": "c", "gpu": None, "vectors": None}
    about |= {"torch": "2", "python": None}
    row = {"benchmark": "dream-gain", "subject": "c", "variant": "plain", "settings": {}}
    row |= {"metrics": found, "command": None, "commit": "x", "dirty": False, "date": "d"}
    assert not record.faults(row | {"machine": about})
