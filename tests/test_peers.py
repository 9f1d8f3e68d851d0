"""The table of published networks beside ours: a run, what is left out, and the networks themselves."""

import multiprocessing
import os
import signal
import sys
from argparse import Namespace
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import ncnn_models, peer_methods, peer_scores, peers, record
from benchmarks.__main__ import build_parser
from benchmarks.choices import METHODS, WEARS
from benchmarks.peer_methods import SCALE, _pixels
from benchmarks.peer_methods import peers as known_peers
from benchmarks.peer_networks import FastSrgan, Imdn
from benchmarks.peer_processes import in_turns
from benchmarks.tables import text
from benchmarks.wear import PLANS
from ldm_dream.errors import UserError
from ldm_dream.scoring.metrics import MetricError
from ldm_dream.scoring.set_metrics import SetMetric


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Two pictures, one of no multiple of four; methods run in threads of this process."""
    monkeypatch.setattr(peers, "process", lambda: ThreadPoolExecutor(1))
    threads = torch.get_num_threads()
    (tmp_path / "hr").mkdir()
    y, x = np.mgrid[:66, :81]
    for number in (1, 2):
        planes = [np.sin(x / (3 + number)), np.cos(y / 5), np.sin((x + y) / 7)]
        pixels = ((np.stack(planes, 2) + 1) * 127).astype(np.uint8)
        Image.fromarray(pixels[:64, :64] if number == 2 else pixels).save(
            tmp_path / f"hr/{number}.png"
        )
    yield tmp_path
    torch.set_num_threads(threads)


def run(folder, *words: str) -> list[record.Row]:
    said = ["peers", "--hr", str(folder / "hr"), "--threads", "1", "--repetitions", "2", *words]
    peers.main(build_parser().parse_args([*said, "--json", str(folder / "rows.jsonl")]))
    return record.read(folder / "rows.jsonl")


def test_a_run_gives_a_row_for_each_method_and_wear(folder, capsys):
    words = ["--peers", "bicubic", "imdn", "--weights", str(folder), "--wear", "clean", "web40"]
    sheet = folder / "sheet.png"
    rows = run(folder, *words, "-n", "dream-latent-x4-tiny", "--steps", "1", "--sheet", str(sheet))
    methods = ["bicubic", "dream-latent-x4-tiny, 1 steps"]
    assert [(row["subject"], row["settings"]["wear"]) for row in rows] == [
        (method, wear) for wear in ("clean", "web40") for method in methods
    ]
    assert all(len(row["metrics"]["psnr_y"]) == row["settings"]["count"] == 2 for row in rows)
    assert {row["settings"]["dtype"] for row in rows} <= {"fp32", "bf16"}
    assert all(len(row["metrics"]["seconds_per_megapixel"]) == 2 for row in rows)
    means = [np.mean(row["metrics"]["psnr_y"]) for row in rows]
    assert means[0] > means[2], "clean pictures come back better"
    printed = capsys.readouterr().out
    assert f"{sheet}: bicubic | dream-latent-x4-tiny, 1 steps | original" in printed
    with Image.open(sheet) as picture:
        assert picture.size == (3 * 64, 4 * (64 + 4))  # a row for each picture and wear
    assert "without IMDN: " in printed and "imdn_x4_author.pth: no such file" in printed
    assert "| 2 of hr, web40 | bicubic " in printed and "| PSNR-Y " in printed


def test_without_any_method_it_says_so(folder):
    with pytest.raises(UserError, match="no method is left"):
        run(folder, "--peers", "imdn", "--weights", str(folder), "--wear", "clean")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (BrokenProcessPool("gone"), "its process was killed"),
        (UserError("ncnn failed."), "ncnn failed."),
        (RuntimeError("no memory"), "RuntimeError: no memory"),
    ],
)
def test_a_method_that_fails_midway_costs_only_its_own_rows(
    folder, error, said, capsys, monkeypatch
):
    calls = []

    def once(lr):
        calls.append(lr)
        if len(calls) > 1:
            raise error
        return peer_methods.bicubic(lr, SCALE)

    fails = peer_methods.Method("fails", lambda threads: peer_methods.Loaded(once, "fp32"))
    monkeypatch.setattr(peers, "peers", lambda _: known_peers(folder) | {"span": fails})
    rows = run(folder, "--peers", "span", "bicubic", "--wear", "clean")
    assert [row["subject"] for row in rows] == ["bicubic"] and len(calls) == 2
    assert f"without fails: {said}" in capsys.readouterr().out


def die(name: str) -> None:
    if name == "dies":
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_that_is_killed_is_left_out(capsys):
    fork = multiprocessing.get_context("fork")  # spawn would import torch again
    with ProcessPoolExecutor(1, mp_context=fork) as dies, ThreadPoolExecutor(1) as lives:
        processes = {"dies": dies, "lives": lives}
        assert in_turns(processes, die) == {"lives": None} and [*processes] == ["lives"]
    assert "without dies: its process was killed" in capsys.readouterr().out


def test_steps_are_of_our_models(folder):
    with pytest.raises(UserError, match="name one with -n"):
        run(folder, "--peers", "bicubic", "--steps", "1", "--limit", "1")


def test_without_pictures_it_says_so(folder, monkeypatch):
    with pytest.raises(UserError, match="no picture to measure on"):
        run(folder, "--limit", "0")
    monkeypatch.setattr(peers, "TEST_SETS", folder / "none")
    with pytest.raises(UserError, match="--hr"):
        peers.picture_sets(build_parser().parse_args(["peers"]))


def test_folders_are_one_set_cut_as_wear_cuts_it(folder):
    words = ["peers", *2 * ["--hr", str(folder / "hr")], "--crop", "32"]
    (pictures,) = peers.picture_sets(build_parser().parse_args(words))
    assert pictures.name == "hr" and [hr.shape[-2:] for hr in pictures.hr] == [(32, 32)] * 2
    with pytest.raises(UserError, match="--crop: Set5 and Set14 are taken whole"):
        peers.picture_sets(build_parser().parse_args(["peers", "--crop", "32"]))


def test_the_choices_are_what_there_is(tmp_path):
    assert tuple(known_peers(tmp_path)) == METHODS
    assert tuple(PLANS) == WEARS


@pytest.mark.parametrize("package", ["not_there_ncnn_py", "json.tool"])
def test_a_missing_package_is_one_sentence(package, monkeypatch):
    monkeypatch.setitem(sys.modules, "ncnn", ModuleType("ncnn"))
    with pytest.raises(UserError, match=r"is not here; .*ldm_dream\[bench\]"):
        ncnn_models.load(package, "models/none", 1)


def test_a_wheel_that_a_python_lacks_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "ncnn", ModuleType("ncnn"))
    monkeypatch.setattr(ncnn_models, "NEWEST", {"not_there_ncnn_py": (3, 9)})
    with pytest.raises(UserError, match="no wheel for a Python newer than 3.9; use Python 3.9"):
        ncnn_models.load("not_there_ncnn_py", "models/none", 1)


@pytest.mark.parametrize(("kind", "tensors"), [(Imdn, 92), (FastSrgan, 36)])
def test_a_published_network_has_its_tensors_and_scale(kind, tensors):
    torch.manual_seed(0)
    network = kind().eval().requires_grad_(False)
    assert len(network.state_dict()) == tensors
    assert network(torch.rand(1, 3, 6, 5)).shape == (1, 3, 6 * SCALE, 5 * SCALE)


def test_a_score_that_one_picture_lacks_is_left_out_and_said(capsys, monkeypatch):
    def of_the_larger(sr, hr, lr):
        if len(sr) < 32:
            raise MetricError("too small.")
        return 1.0

    monkeypatch.setattr(peer_scores, "SCORES", {"some": lambda args: of_the_larger})
    monkeypatch.setattr(peer_scores, "SET_SCORES", {})
    scorer, found = peer_scores.Scorer(Namespace()), peer_scores.Found()
    for side in (32, 16):
        picture = np.zeros((side, side, 3), np.uint8)
        scorer.add(found, picture, picture, picture[::4, ::4])
    assert found.values == {"some": [1.0]} and scorer.metrics(found) == {}
    assert "no some: too small." in capsys.readouterr().out


def test_a_set_has_one_value(monkeypatch):
    table = {"frechet_x": lambda args: SetMetric("frechet_x", None, "")}
    monkeypatch.setattr(peer_scores, "SCORES", {})
    monkeypatch.setattr(peer_scores, "SET_SCORES", table)
    monkeypatch.setattr(
        SetMetric, "features", lambda self, x: torch.tensor([float(x.mean()), float(x.std())])
    )
    monkeypatch.setattr(
        SetMetric, "compare", lambda self, a, b: {self.name: float((a - b).abs().sum())}
    )
    scorer, found = peer_scores.Scorer(Namespace()), peer_scores.Found()
    for level in (10, 20):
        sr, hr = (np.full((8, 8, 3), x, np.uint8) for x in (level, level + 1))
        scorer.add(found, sr, hr, sr)
    assert scorer.metrics(found) == {"frechet_x": 2.0}


def test_planes_become_pixels():
    planes = np.array([0.0, 0.501, 1.0], np.float32).reshape(3, 1, 1)
    assert _pixels(planes).tolist() == [[[0, 128, 255]]]


def about(**settings) -> record.Row:
    machine = {"cpu": "a CPU", "vectors": None, "threads": 2, "gpu": None}
    return {
        "benchmark": "peers",
        "command": None,
        "commit": "abc1234",
        "dirty": False,
        "date": "2026-01-01T00:00:00Z",
        "machine": {**machine, "torch": "2.14", "python": None},
        "variant": "Set5, clean",
        "settings": {"pictures": "Set5", "count": 2, "dtype": None, **settings},
    }


def cells(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]


def test_scores_that_only_some_rows_have_are_columns_too():
    some, more = {"psnr_y": [20.0, 30.0]}, {"psnr_y": [30.0, 31.0], "lpips": [0.1, 0.3]}
    costs = {"seconds_per_megapixel": [3.0, 1.0, 2.0], "peak_mib": 12.4}
    rows = [
        {**about(), "subject": name, "metrics": m | costs} for name, m in (("a", some), ("b", more))
    ]
    assert not any(map(record.faults, rows))
    lines = cells(text("peers", rows))
    assert ["2 of Set5, clean", "a", "", "25.000", "", "2.000", "12"] in lines
    assert ["2 of Set5, clean", "b", "", "30.500", "0.200", "2.000", "12"] in lines
    assert text("peers-difference", rows).endswith("No rows yet.")


def test_ours_is_set_against_the_best_peer_and_those_for_photos():
    costs = {"seconds_per_megapixel": [3.0, 1.0], "peak_mib": 12.4}
    scores = {
        "Real-ESRGAN x4plus": {"psnr_y": [20.0, 22.0], "lpips": [0.1, 0.2]},
        "smooth": {"psnr_y": [30.0, 32.0], "lpips": [0.5, 0.6]},
    }
    rows = [{**about(), "subject": name, "metrics": m | costs} for name, m in scores.items()]
    elsewhere = {**about(), "variant": "Set5, web40", "subject": "elsewhere"}
    rows.append({**elsewhere, "metrics": {"psnr_y": [50.0, 50.0]}})
    ours = {"psnr_y": [31.0, 32.0], "lpips": [0.15, 0.25], "niqe": [4.0, 5.0]} | costs
    rows.append({**about(model="m", steps=1), "subject": "m, 1 steps", "metrics": ours})
    where = ["2 of Set5, clean", "m, 1 steps"]
    assert cells(text("peers-difference", rows))[-2:] == [
        [
            *where,
            "PSNR-Y",
            "smooth",
            "+0.500 (+0.000 to +1.000)",
            "+10.500 (+10.000 to +11.000)",
            "",
        ],
        [*where, "LPIPS", "Real-ESRGAN x4plus", *2 * ["+0.050 (+0.050 to +0.050)"], ""],
    ]
