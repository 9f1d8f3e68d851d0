"""Benchmarks: their rows become curves, and the list that `all` runs is one of commands that exist."""

import time

import pytest
import torch

from benchmarks.__main__ import build_parser
from benchmarks.all import COMMANDS
from benchmarks.all import main as everything
from benchmarks.plot import collect
from benchmarks.step_profile import shares
from benchmarks.way import call_way, step_way
from ldm_dream.config.files import load_config


def test_rows_become_curves_over_steps_and_the_later_measurement_counts():
    quality = {"benchmark": "steps-quality", "pictures": ["hr"]}
    rows = [
        quality | {"method": "bicubic", "psnr_y": 24.0},
        quality | {"method": "a model 4", "psnr_y": 25.0, "lpips": 0.2},
        quality | {"method": "a model 1", "psnr_y": 24.5},
        quality | {"method": "a model 4", "psnr_y": 26.0},
        {"benchmark": "train-step", "seconds": 1.0},
        {
            "benchmark": "sampling",
            "model": "m",
            "size": 64,
            "tile": None,
            "batch_size": 1,
            "device": "cpu",
            "steps": 4,
            "seconds": 2.0,
        },
    ]
    assert collect(rows) == {
        "a model": {"psnr_y": [(1, 24.5), (4, 26.0)], "lpips": [(4, 0.2)]},
        "m, 64 px, tile auto, 1 at a time, cpu": {"seconds": [(4, 2.0)]},
    }


@pytest.mark.parametrize("device", COMMANDS)
def test_all_runs_commands_that_exist(device):
    for words in COMMANDS[device]:
        args = build_parser().parse_args([*words, "--device", device, "--json", "rows.jsonl"])
        assert args.command == words[0]
        if (
            args.command == "train-step" and not args.ours_only
        ):  # the official recipe knows this prediction alone
            assert load_config(args.config, args.set).prediction == "eps"


def test_all_stops_when_the_minutes_are_over_and_the_report_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(COMMANDS, "cpu", [["kernels", "--repetitions", "1000000"], ["sampling"]])
    args = build_parser().parse_args(["all", "--minutes", "0.3", "-o", str(tmp_path)])
    begun = time.monotonic()
    with pytest.raises(SystemExit, match="kernels, sampling"):
        everything(args)
    assert time.monotonic() - begun < 60
    report = (tmp_path / "report.md").read_text()
    assert report.count("Stopped: the 0.3 minutes were over") == 2
    assert "provider" in report, "what the first one had printed"


def test_a_profile_gives_the_time_of_calls_inside_to_the_outermost_kind():
    x = torch.randn(8, 32, 48, 48)
    layer = torch.nn.Conv2d(32, 32, 3)

    def step():
        start = time.perf_counter()
        layer(x).sum().backward()
        return time.perf_counter() - start

    step()
    found = shares(step)
    assert found["convolution"] > 0.6 and found["dropout"] == found["group norm + SiLU"] == 0
    assert sum(found.values()) == pytest.approx(1)


def test_a_training_step_is_read_in_twelve_files():
    way = step_way()
    assert {"ldm_dream/process.py", "ldm_dream/data/pairs.py"} <= way.keys(), "the step was counted"
    assert len(way) <= 12, "\n".join(way)


def test_a_sampling_call_is_read_in_ten_files():
    way = call_way()
    assert {"ldm_dream/sampler.py", "ldm_dream/upscaling/upscaler.py"} <= way.keys()
    assert len(way) <= 10, "\n".join(way)
