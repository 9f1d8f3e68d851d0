"""`python -m benchmarks paper` and `claims`: trains, scores, goes on, and writes its page."""

import json
import os
import re
import signal
import threading
import time

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import (
    claims,
    discrepancy,
    paper,
    paper_page,
    paper_pictures,
    paper_systems,
    record,
    trainings,
)
from benchmarks.__main__ import build_parser
from benchmarks.paper_rows import Results, difference
from benchmarks.paper_systems import (
    DREAM,
    REGRESSION,
    STANDARD,
    STEPS,
    TIME,
    Point,
    System,
    jobs,
    points,
)
from benchmarks.tables import text
from ldm_dream.commands.train import main
from ldm_dream.config.autoencoder import PixelConfig
from ldm_dream.config.process import DDPMConfig
from ldm_dream.config.run import DiffusionRun
from ldm_dream.denoiser import Inputs
from ldm_dream.errors import UserError
from ldm_dream.model_folder import LoadedModel
from ldm_dream.networks.autoencoders import build_autoencoder
from ldm_dream.process import build_process
from ldm_dream.sampler import seeded
from runs import PlainDenoiser

SMALL = ["network.model_channels=16", "network.channel_mult=[1,2]", "network.image_size=32"]
SMALL += ["data.patch=32", "train.steps=8", "train.batch_size=2", "train.workers=0"]


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A system that trains in seconds, on noise; -> (words of the command, commands of trainings)."""
    for name in "ab":
        pixels = np.random.default_rng(ord(name)).integers(0, 256, (64, 64, 3), np.uint8)
        (tmp_path / "pictures").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / f"pictures/{name}.png")
    hr = (str(tmp_path / "pictures"),)
    config, floor = "configs/tiny/sr3-face.yaml", "configs/tiny/regression.yaml"
    system = System("SR3", config, hr, 2, 32, (1, 2), True, (2,), floor)
    monkeypatch.setitem(paper_systems.SYSTEMS, "cpu", {"sr3": system})
    for name, value in {"PACE_STEPS": 4, "PACE_EVERY": 1, "PACE_TURNS": 1}.items():
        monkeypatch.setattr(trainings, name, value)
    trained = []

    def here(words):  # without a process, which takes seconds to start
        trained.append(words)
        with pytest.raises(SystemExit) as ended:
            main(words[1:])
        assert not ended.value.code

    monkeypatch.setattr(trainings, "python", here)
    knobs = [*SMALL, f"data.train=[{hr[0]}]", f"data.val=[{hr[0]}]", "lpips_weights=null"]
    words = ["paper", "--seeds", "0", "--runs", str(tmp_path / "runs"), "--set", *knobs]
    words += ["--json", str(tmp_path / "rows.jsonl"), "--page", str(tmp_path / "page.html")]
    return words, trained


def test_it_trains_scores_goes_on_and_writes_its_page(tiny, tmp_path, capsys):
    words, trained = tiny
    paper.main(build_parser().parse_args([*words, "--table", "2"]))
    rows = record.read(tmp_path / "rows.jsonl")
    found = {(row["variant"], row["settings"].get("equal")) for row in rows}
    assert found == {
        (arm, equal)
        for arm, equals in {
            "bicubic": [None],
            STANDARD: [None, STEPS, TIME],
            DREAM: [None, STEPS],
            REGRESSION: [STEPS],
        }.items()
        for equal in equals
    }
    scored = [row for row in rows if "kind" not in row["settings"]]
    system = paper_systems.SYSTEMS["cpu"]["sr3"]
    arms = (STANDARD, DREAM, "p = 0", REGRESSION)
    assert [len(points(arm, system)) for arm in arms] == [9, 6, 2, 1]
    assert len(scored) == 2 + 9 + 6 + 1
    assert all(len(row["metrics"]["psnr_y"]) == 2 for row in scored)
    gaps = [row["metrics"] for row in rows if row not in scored]
    assert len(gaps) == 2 and all(len(found["mse/sampling/0"]) == 2 for found in gaps)
    results = Results(rows, "cpu")
    early, late = (results.at("sr3", DREAM, Point(share, STEPS, 2)) for share in (0.125, 1.0))
    assert early.by_seed[0]["training_steps"] == 1 and late.by_seed[0]["training_steps"] == 8
    assert early.values("psnr_y") != late.values("psnr_y")
    page = (tmp_path / "page.html").read_text()
    assert page.count("<svg") == 3
    arms = ("bicubic", REGRESSION, STANDARD, DREAM, "original")
    assert [page.count(f'<img alt="{arm}"') for arm in arms] == [1 + 2] * 5, "strips and cuts"
    floor = results.full("sr3", REGRESSION, 1)
    assert floor.by_seed[0]["training_steps"] == 8 and f"{floor.text('psnr_y')}</td>" in page
    assert f"{results.full('sr3', DREAM, 2).text('psnr_y')}</td>" in page

    capsys.readouterr()
    paper.main(build_parser().parse_args([*words, "--table", "2", "--estimate"]))
    line = capsys.readouterr().out.splitlines()[-2]
    assert re.fullmatch(r"\| sr3 +\| 8 +\| 0 +\| 0\.0 +\| 0\.0 +\| (?!0\.0)\d+\.\d +\|", line), line
    before, done = page, len(trained)
    paper.main(build_parser().parse_args([*words, "--table", "2"]))
    assert len(trained) == done, "what has its row is not trained again"
    assert len(record.read(tmp_path / "rows.jsonl")) == len(rows)
    assert (tmp_path / "page.html").read_text() == before

    lines = (tmp_path / "rows.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "rows.jsonl").write_text("".join(lines[:-1]))
    paper.main(build_parser().parse_args([*words, "--table", "2"]))
    again = record.read(tmp_path / "rows.jsonl")[-1]
    assert again["metrics"] == rows[-1]["metrics"], "a point that was lost is scored again, alike"


@pytest.fixture
def beside(tiny, tmp_path):
    """-> (a row of --other, the page) of a command in which everything else is done."""
    words, _ = tiny
    args = build_parser().parse_args(words)
    args.device = "cpu"

    def run(other):
        (tmp_path / "rows.jsonl").unlink(missing_ok=True)
        args.other = [other]
        made = paper.Paper(args)
        made.beside("sr3")
        made.beside("sr3")  # it has its row by then
        paper_page.write(tmp_path / "rows.jsonl", tmp_path / "page.html", "cpu")
        (row,) = record.read(tmp_path / "rows.jsonl")
        return row, (tmp_path / "page.html").read_text()

    return run


@pytest.mark.parametrize("side", [32, 64])
def test_results_of_others_stand_beside_ours(beside, tmp_path, side):
    """Of the size that is scored, or of the originals, whose centre that is."""
    (tmp_path / "theirs").mkdir()
    edge = (64 - side) // 2
    for name in "ab":
        with Image.open(tmp_path / f"pictures/{name}.png") as original:
            cut = original.crop((edge, edge, 64 - edge, 64 - edge))
        cut.putpixel((side // 2, side // 2), (0, 0, 0))
        cut.save(tmp_path / f"theirs/{name}_x4.png")
    row, page = beside(f"Flow++={tmp_path}/theirs")
    assert row["variant"] == "Flow++" and row["settings"]["from"] == f"{tmp_path}/theirs"
    assert all(30 < value < 70 for value in row["metrics"]["psnr_y"]), "one pixel is wrong"
    assert "<td>Flow++</td><td>1</td>" in page


def test_a_model_of_others_stands_beside_ours(beside):
    row, page = beside("ours=dream-latent-x4-tiny")
    assert row["settings"]["dtype"] in ("fp32", "bf16") and len(row["metrics"]["psnr_y"]) == 2
    assert '<figcaption>ours</figcaption><img alt="ours"' in page


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ("Bicubic=a", "--other Bicubic: there is a row of this name"),
        ("p1=a", "--other p1: there is a row of this name"),
        ("name", "--other name=: give NAME=PATH"),
        ("a/b=c", "--other a/b=c: give NAME=PATH"),
        ("a={}/pictures/none", "none: neither a model folder"),
        ("a={}/other", "--other a: .*other lacks some of the pictures, .* its original .a.png."),
        ("a={}/small", "a.png is 8x8; give the size of .*a.png, or its centre of 32x32 pixels"),
    ],
)
def test_an_other_that_is_no_use_is_one_sentence(beside, tmp_path, other, said):
    for folder, names in {"other": "x", "small": "ab"}.items():
        (tmp_path / folder).mkdir()
        for name in names:
            Image.new("RGB", (8, 8)).save(tmp_path / folder / f"{name}.png")
    with pytest.raises(UserError, match=said):
        beside(other.format(tmp_path))


def test_the_cut_is_where_the_detail_is():
    picture = np.full((30, 40, 3), 128, np.uint8)
    picture[12:22, 25:35] = np.random.default_rng(0).integers(0, 256, (10, 10, 3), np.uint8)
    top, left = paper_pictures.detailed(picture, 12)
    assert 10 <= top <= 12 and 23 <= left <= 25


def test_two_at_a_time_are_refused(tmp_path):
    with (
        trainings.alone(tmp_path),
        pytest.raises(UserError, match="another command is at work here"),
        trainings.alone(tmp_path),
    ):
        pass
    with trainings.alone(tmp_path):
        pass


def test_a_system_that_is_not_known_is_one_sentence():
    with pytest.raises(UserError, match="--systems edsr: not known at --scale cpu; choose of"):
        paper.main(build_parser().parse_args(["paper", "--systems", "edsr"]))


@pytest.mark.parametrize("word", ["seed=3", "loss.p=2", "train.save_every=9"])
def test_a_knob_that_it_sets_itself_is_refused(word):
    with pytest.raises(UserError, match="`paper` sets .* itself; leave it out"):
        paper.main(build_parser().parse_args(["paper", "--set", word]))


def test_a_training_that_is_stopped_saves_its_state_first(tmp_path):
    script = tmp_path / "training.py"
    script.write_text(
        "import pathlib, sys, time\n"
        "try:\n    pathlib.Path(sys.argv[1]).touch()\n    time.sleep(60)\n"
        "except KeyboardInterrupt:\n    time.sleep(1)\n    pathlib.Path(sys.argv[2]).touch()\n"
    )
    begun, saved = tmp_path / "begun", tmp_path / "saved"

    def stop():
        while not begun.exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=stop).start()
    with pytest.raises(KeyboardInterrupt):
        trainings.python([str(script), str(begun), str(saved)])
    assert saved.exists()


def test_a_training_that_fails_says_why(tmp_path):
    (tmp_path / "training.py").write_text("raise SystemExit('no pictures')")
    with pytest.raises(SystemExit, match="failed:\nno pictures"):
        trainings.python([str(tmp_path / "training.py")])


def test_what_says_most_is_trained_first():
    names = list(paper_systems.SYSTEMS["paper"])
    queue = list(jobs("paper", [1], [], names, [4, 5]))
    mains = [(job.seed, job.arm) for job in queue[: 4 * len(names)]]
    assert [seed for seed, _ in mains] == sorted(seed for seed, _ in mains)
    assert {arm for _, arm in mains} == {STANDARD, DREAM}
    assert {job.arm for job in queue[4 * len(names) :]} == {"p = 0", "p = 2", "p = 3"}
    assert len(queue) == len(set(queue)) == (2 * 2 + 3) * len(names)
    faces = {job.system for job in jobs("paper", [2], [], names, [0])}
    assert faces == {"sr3-face", "idm-face"}
    floors = {job.system for job in jobs("paper", [2], [], names, [0]) if job.arm == REGRESSION}
    assert floors == {"sr3-face"}
    assert not list(jobs("paper", [], [], names, [0]))
    assert {job.system for job in jobs("paper", [4], [], names, [0])} == {"sr3-photo"}


def test_the_published_systems_are_configs_without_dream():
    for systems in paper_systems.SYSTEMS.values():
        for system in systems.values():
            run = trainings.diffusion_run(system.config, [])
            assert run.loss.strength == 0 and list(system.sampling) == sorted(system.sampling)
            if system.regression:
                floor = trainings.diffusion_run(system.regression, [])
                assert floor.process.kind == "regression"
                assert (floor.scale, floor.data) == (run.scale, run.data)
            assert run.train.steps * paper_systems.SHARES[0] % 1 == 0


# ------------------------------------------------------------------------------------------- claims

SYSTEM = "resshift-ddpm"
FULL = paper_systems.SYSTEMS["cpu"][SYSTEM].sampling[-1]


def row(
    arm, seed=0, psnr=25.0, lpips=0.3, share=1.0, equal=STEPS, steps=FULL, seconds=1.0, enlarge=None
):
    settings = {"scale": "cpu", "seed": seed, "full": 8, "set": [], "dtype": "fp32"}
    settings |= {"share": share, "equal": equal, "steps": steps, "enlarge": enlarge}
    jitter = [0.01 * seed, -0.01, 0.02] if arm == STANDARD else [-0.02, 0.01 + 0.01 * seed, 0.01]
    metrics = {"psnr_y": [psnr + x for x in jitter], "lpips": [lpips + x / 10 for x in jitter]}
    metrics |= {"ssim_y": [psnr / 100 + x for x in jitter], "step_seconds": seconds}
    metrics |= {"frechet_efficientnet_lite0": lpips * 100, "training_steps": 8}
    machine = {"cpu": "a CPU", "vectors": "AVX2", "threads": 2, "gpu": None}
    machine |= {"torch": "2.14.1", "python": "3.11.7"}
    about = {"command": None, "commit": "abc1234", "dirty": False, "date": "2026-01-01T00:00:00Z"}
    about |= {"benchmark": "paper", "subject": SYSTEM, "variant": arm, "machine": machine}
    return about | {"settings": settings, "metrics": metrics}


def verdict(claim, rows, seeds=(0, 1)):
    """Of rows of one seed, and the same of others."""
    changed = [json.loads(json.dumps(one)) for one in rows for _ in seeds]
    for one, seed in zip(changed, list(seeds) * len(rows)):
        one["settings"]["seed"] = seed
    results = Results(changed, "cpu")
    sampling = paper_systems.SYSTEMS["cpu"][SYSTEM].sampling
    return claims.CLAIMS[claim][1](results, SYSTEM, sampling).word


def test_c1_wants_the_order_and_an_interval():
    arms = [STANDARD, "p = 3", "p = 2", DREAM, "p = 0"]
    rising = [row(arm, psnr=24 + i) for i, arm in enumerate(arms)]
    assert verdict("C1", rising) == "shown"
    swapped = [row(arm, psnr=24 + i) for i, arm in zip((0, 2, 1, 3, 4), arms)]
    assert verdict("C1", swapped) == "not shown"
    falling = [row(arm, psnr=24 - i) for i, arm in enumerate(arms)]
    assert verdict("C1", falling) == "against"
    assert verdict("C1", rising[:-1]) == "not run"
    assert verdict("C1", rising, seeds=[0]) == "shown by one seed"
    close = [row(arm, psnr=24 + i / 10000) for i, arm in enumerate(arms)]
    assert verdict("C1", close) == "not shown", "the means rise, but the interval holds 0"
    no_ssim = [one | {"metrics": {"psnr_y": one["metrics"]["psnr_y"]}} for one in rising]
    assert verdict("C1", no_ssim) == "not run"


@pytest.mark.parametrize(
    ("lpips", "word"),
    [(0.30, "shown"), (0.304, "shown"), (0.27, "shown"), (0.33, "against"), (0.3085, "not shown")],
)
def test_c2_allows_a_margin_in_lpips(lpips, word):
    both = [row(STANDARD, equal=TIME, lpips=0.304), row(DREAM, lpips=lpips)]
    both[1]["metrics"]["frechet_efficientnet_lite0"] = 1.0
    assert verdict("C2", both) == word
    both[1]["metrics"]["frechet_efficientnet_lite0"] = 99.0
    assert verdict("C2", both) == "against"
    for one in both:
        del one["metrics"]["frechet_efficientnet_lite0"]
    assert verdict("C2", both) == "not run"


def test_c2_pairs_the_frechet_distances_by_seed():
    rows = [row(STANDARD, seed, equal=TIME, lpips=0.3 + seed / 10) for seed in (0, 1, 2)]
    rows += [row(DREAM, seed, lpips=0.29 + seed / 10) for seed in (2, 1)]
    results = Results(rows, "cpu")
    found = claims.no_worse(results, SYSTEM, paper_systems.SYSTEMS["cpu"][SYSTEM].sampling)
    assert found.word == "shown" and found.figures.startswith("2 seeds; ")


def test_c3_wants_psnr_and_lpips_at_half_of_the_training():
    plain = row(STANDARD)
    assert verdict("C3", [plain, row(DREAM, psnr=25.5, share=0.5)]) == "shown"
    assert verdict("C3", [plain, row(DREAM, psnr=25.5, lpips=0.4, share=0.5)]) == "against"
    assert verdict("C3", [plain, row(DREAM, psnr=24.5, share=0.5)]) == "against"
    assert verdict("C3", [plain, row(DREAM, psnr=25.5)]) == "not run"


def test_c4_takes_a_tenth_of_the_sampling_steps():
    plain, few = row(STANDARD, equal=TIME), row(DREAM, psnr=25.5, steps=FULL // 10)
    assert verdict("C4", [plain, few]) == "shown"
    assert verdict("C4", [plain, row(DREAM, psnr=25.5)]) == "not run"


def gaps(arm, sampling, training=0.1):
    one = row(arm)
    one["settings"] = {"scale": "cpu", "seed": 0, "kind": paper_systems.DISCREPANCY, "steps": FULL}
    one["metrics"] = {f"mse/training/{t}": [training, training, training] for t in (0, 9, 40)}
    one["metrics"] |= {f"mse/sampling/{t}": [sampling, 2 * sampling, sampling] for t in (0, 9, 40)}
    return one


def test_c5_wants_a_smaller_gap_at_every_step():
    assert verdict("C5", [gaps(STANDARD, 0.5), gaps(DREAM, 0.3)]) == "shown"
    assert verdict("C5", [gaps(STANDARD, 0.5), gaps(DREAM, 0.7)]) == "against"
    assert verdict("C5", [gaps(STANDARD, 0.5)]) == "not run"
    half = gaps(DREAM, 0.3)
    half["metrics"]["mse/training/9"] = [-1.0] * 3
    assert verdict("C5", [gaps(STANDARD, 0.5), half]) == "not shown"
    # nearer in sampling because training has become worse: that closes the gap too
    assert verdict("C5", [gaps(STANDARD, 0.5), gaps(DREAM, 0.5, training=0.3)]) == "shown"


def test_c6_is_of_every_scale_of_a_system_that_has_them(monkeypatch):
    both = [row(STANDARD, equal=TIME, enlarge=2), row(DREAM, psnr=25.5, enlarge=2)]
    assert verdict("C6", both) == "not run"
    scaled = paper_systems.SYSTEMS["cpu"][SYSTEM]._replace(scales=(2,))
    monkeypatch.setitem(paper_systems.SYSTEMS["cpu"], SYSTEM, scaled)
    assert verdict("C6", both) == "shown"
    alike = [row(STANDARD, equal=TIME, enlarge=2), row(DREAM, enlarge=2)]
    assert verdict("C6", alike) == "not shown", "higher is more than no lower"
    monkeypatch.setitem(paper_systems.SYSTEMS["cpu"], SYSTEM, scaled._replace(scales=(2, 3)))
    assert verdict("C6", both) == "not run"


def test_c7_is_of_the_time_of_a_step():
    plain = row(STANDARD)
    assert verdict("C7", [plain, row(DREAM, seconds=1.3)]) == "shown"
    assert verdict("C7", [plain, row(DREAM, seconds=1.5)]) == "against"


def test_only_seeds_that_both_have_are_compared():
    rows = [row(STANDARD, 0), row(STANDARD, 1, psnr=30), row(DREAM, 0, psnr=26)]
    results = Results(rows, "cpu")
    found = difference(
        results.full(SYSTEM, DREAM, FULL), results.full(SYSTEM, STANDARD, FULL), "psnr_y"
    )
    assert found is not None and abs(found.mean - 1) < 0.01


def test_rows_of_several_commits_stand_in_one_table():
    rows = [row(STANDARD, equal=TIME), row(DREAM, psnr=26.0) | {"commit": "def5678"}]
    found = text("paper-latent", rows)
    assert "commit abc1234" in found and "commit def5678" in found
    assert "| +1.00 (+0.98 to +1.02) " in found and found.count(f"\n| {FULL} ") == 1


def test_only_rows_of_one_recipe_are_compared():
    rows = [row(STANDARD), row(DREAM, psnr=26.0)]
    other = row(DREAM, psnr=10.0)
    other["settings"]["full"], other["date"] = 4, "2025-01-01T00:00:00Z"
    results = Results([*rows, other], "cpu")
    assert results.full(SYSTEM, DREAM, FULL).by_seed[0] == rows[1]["metrics"]
    other["date"] = "2027-01-01T00:00:00Z"
    results = Results([*rows, other], "cpu")
    assert not results.full(SYSTEM, STANDARD, FULL).by_seed, "the latest is another recipe"


def test_claims_are_printed_for_every_system(tmp_path, capsys):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("\n".join(map(json.dumps, [row(STANDARD), row(DREAM, seconds=1.2)])))
    claims.main(build_parser().parse_args(["claims", "--rows", str(rows)]))
    printed = capsys.readouterr().out
    assert printed.count("\n| C") == len(claims.CLAIMS) * len(paper_systems.SYSTEMS["cpu"])
    assert "| shown " in printed and "1.20" in printed and "| not run " in printed
    with pytest.raises(UserError, match="is not there; `paper --json"):
        claims.main(build_parser().parse_args(["claims", "--rows", str(tmp_path / "none")]))


def test_estimates_of_a_network_that_knows_the_noise(monkeypatch):
    """In training it is right at every step; in sampling it is wrong wherever z_t is."""
    process = build_process(DDPMConfig(num_timesteps=8, beta_start=1e-3, beta_end=0.5))
    hr = torch.rand(2, 3, 16, 16) * 2 - 1
    pairs = [("a", hr[:1], hr[:1, :, ::4, ::4]), ("b", hr[1:], hr[1:, :, ::4, ::4])]
    known = seeded(0, hr)(0)
    knows = PlainDenoiser(lambda z_t, t: known.expand_as(z_t), process, "eps")
    knows.prepare = lambda lr, z_lr: Inputs(z_lr, ())  # type: ignore
    monkeypatch.setattr(discrepancy, "Denoiser", lambda *_: knows)
    run = DiffusionRun(process=DDPMConfig(num_timesteps=8), prediction="eps", scale=4)
    model = LoadedModel(run, torch.nn.Identity(), build_autoencoder(PixelConfig()), process)  # type: ignore
    found = discrepancy.discrepancies(model, pairs, 8, lambda sr, hr, lr: 1.0 * (sr != hr).any())
    assert set(found) == {
        f"{figure}/{kind}/{t}"
        for figure in ("mse", "lpips")
        for kind in ("training", "sampling")
        for t in range(8)
    }
    assert all(max(found[f"mse/training/{t}"]) < 1e-6 for t in range(8))
    assert all(found[f"lpips/training/{t}"] == [0, 0] for t in range(8))
    assert all(min(found[f"mse/sampling/{t}"]) > 1e-3 for t in range(8))


def test_estimates_are_clipped_alike_in_training_and_in_sampling(monkeypatch):
    process = build_process(DDPMConfig(num_timesteps=8, beta_start=1e-3, beta_end=0.9))
    hr = torch.rand(1, 3, 16, 16) * 2 - 1
    knows_nothing = PlainDenoiser(lambda z_t, t: 9 * torch.ones_like(z_t), process, "eps")
    knows_nothing.prepare = lambda lr, z_lr: Inputs(z_lr, ())  # type: ignore
    monkeypatch.setattr(discrepancy, "Denoiser", lambda *_: knows_nothing)
    run = DiffusionRun(process=DDPMConfig(num_timesteps=8), prediction="eps", scale=4)
    model = LoadedModel(run, torch.nn.Identity(), build_autoencoder(PixelConfig()), process)  # type: ignore
    found = discrepancy.discrepancies(model, [("a", hr, hr[..., ::4, ::4])], 8, None)
    assert all(max(values) <= 4 for values in found.values()), "both lie within the picture's range"


def test_without_rows_the_page_says_so(tmp_path):
    paper_page.write(tmp_path / "none.jsonl", tmp_path / "page.html", "cpu")
    page = (tmp_path / "page.html").read_text()
    assert page.count("Not run yet.") == len(paper_systems.SYSTEMS["cpu"])
