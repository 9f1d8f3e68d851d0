"""`python -m benchmarks dream-gain`: equal time, one row a seed and arm, and the table of them."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from benchmarks import dream_gain, record
from benchmarks.__main__ import build_parser
from benchmarks.tables import text
from ldm_dream.errors import UserError

CONFIG = "configs/tiny/dream-photo-x4-tiny.yaml"


@pytest.fixture
def trained(monkeypatch):
    """Trainings that take no time: their commands. A step with DREAM takes 1.25 times as long."""
    commands = []

    def train(words):
        commands.append(words)
        place = Path(words[words.index("--run-dir") + 1])
        place.mkdir(parents=True)
        rate = 5.0 if "loss.strength=0" in words else 4.0
        rows = [{"step": 1, "val/psnr_y": 1.0}] + 4 * [{"step": 1, "steps_per_second": rate}]
        (place / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))

    monkeypatch.setattr(dream_gain, "python", train)
    model = SimpleNamespace(dtype="float32")
    monkeypatch.setattr(
        dream_gain, "Upscaler", SimpleNamespace(from_pretrained=lambda folder: model)
    )
    monkeypatch.setattr(dream_gain, "name_of", lambda dtype: "fp32")
    scored = {"psnr_y/clean": [20.0, 24.0], "frechet_x/clean": 3.0}
    monkeypatch.setattr(dream_gain, "scores", lambda *_: scored)
    return commands


def run(tmp_path, *words):
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    for name in ("a", "b"):
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    words = ["--hr", str(tmp_path), "--runs", str(tmp_path / "runs"), *words]
    words += ["--json", str(tmp_path / "rows.jsonl"), "--config", CONFIG]
    dream_gain.main(build_parser().parse_args(["dream-gain", *words]))
    return record.read(tmp_path / "rows.jsonl")


def test_both_arms_take_equal_time_with_every_seed(trained, tmp_path):
    rows = run(tmp_path, "--steps", "80", "--seeds", "3", "5")
    found = [(row["variant"], row["settings"]["seed"], row["settings"]["steps"]) for row in rows]
    assert found == [("plain", 3, 100), ("DREAM", 3, 80), ("plain", 5, 100), ("DREAM", 5, 80)]
    runs = trained[-4:]
    assert [("loss.strength=0" in words) for words in runs] == [True, False, True, False]
    assert all(f"train.steps={n}" in words for words, n in zip(runs, (100, 80, 100, 80)))
    assert "seed=3" in runs[0] and "seed=5" in runs[3]


def test_the_time_of_a_step_is_taken_once(trained, tmp_path):
    args = build_parser().parse_args(["dream-gain", "--hr", "x", "--config", CONFIG])
    run_ = dream_gain.load_config(CONFIG, [])
    assert dream_gain.pace(args, tmp_path / "runs", run_) == {"plain": 0.2, "DREAM": 0.25}
    taken = len(trained)
    assert taken == 2 * dream_gain.PACE_TURNS
    assert dream_gain.pace(args, tmp_path / "runs", run_) == {"plain": 0.2, "DREAM": 0.25}
    assert len(trained) == taken


def test_what_has_no_two_arms_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="trains an autoencoder"):
        dream_gain.main(
            build_parser().parse_args(
                ["dream-gain", "--hr", "x", "--config", "configs/tiny/vq-f4-fast.yaml"]
            )
        )


def test_the_table_names_both_arms_and_an_interval(trained, tmp_path):
    rows = run(tmp_path, "--seeds", "0", "1")
    for row in rows:
        if row["variant"] == "DREAM":
            row["metrics"]["psnr_y/clean"] = [20.5, 24.5]
    found = text("dream-gain", rows)
    assert "| clean | PSNR-Y | 22.000 | 22.500 | +0.500" in " ".join(found.split()).replace(
        " |", " |"
    )
    assert "+0.500 to +0.500" in found and "2 of `" in found and "frechet" not in found
