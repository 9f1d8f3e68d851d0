"""Benchmarks: rows of one schema from clean trees, tables that are what the rows say, steps that do
the same work, and the way that a reader has through a training step and a sampling call.
"""

import argparse
import json
import re
import subprocess
import time

import pytest
import torch

from benchmarks import data, data_wait, record, table
from benchmarks.__main__ import build_parser
from benchmarks.all import COMMANDS
from benchmarks.all import main as everything
from benchmarks.kernel_cases import CASES
from benchmarks.plot import collect
from benchmarks.step_profile import shares
from benchmarks.step_variants import OFFICIAL, Variant, make_step
from benchmarks.tables import TABLES, newest, text
from benchmarks.way import call_way, step_way
from benchmarks.wear import WEARS, worn
from ldm_dream.config.files import load_config
from ldm_dream.data.resize import imresize
from ldm_dream.errors import UserError

RESULTS = sorted(record.RESULTS.glob("*.jsonl"))


def row(benchmark="sampling", subject="m", variant="v", settings=(), metrics=(), **others):
    machine = {"cpu": "a CPU", "vectors": "AVX2", "threads": 2, "gpu": None}
    machine |= {"torch": "2.14.1", "python": "3.11.7"}
    about = {"command": None, "commit": "abc1234", "dirty": False, "date": "2026-01-01T00:00:00Z"}
    about |= {"benchmark": benchmark, "subject": subject, "variant": variant, "machine": machine}
    return about | {"settings": dict(settings), "metrics": dict(metrics)} | others


# --------------------------------------------------------------------------------------------- rows


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.name)
def test_every_kept_row_has_the_schema_and_a_clean_tree(path):
    rows = record.read(path)  # raises for a row that has another schema
    assert rows
    assert {row["benchmark"] for row in rows} == {path.stem}
    assert not any(row["dirty"] or "dirty" in row["commit"] for row in rows)


def test_kept_rows_of_kernels_are_of_ops_that_exist():
    rows = record.read(record.RESULTS / "kernels.jsonl")
    assert {row["subject"] for row in rows} <= CASES.keys()


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"seed": 1}, "seed"),
        ({"dirty": "no"}, "dirty"),
        ({"benchmark": "speed"}, "speed"),
        ({"machine": {"cpu": "a CPU"}}, "machine lacks"),
        ({"metrics": {}}, "no metrics"),
        ({"metrics": {"secs": 1.0}}, "secs"),
        ({"metrics": {"seconds": "1.0"}}, "no number"),
        ({"metrics": {"seconds": [1.0, True]}}, "no number"),
    ],
)
def test_a_row_of_another_schema_is_named(change, fault):
    good = row(metrics={"seconds": 1.0})
    assert record.faults(good) == []
    assert fault in record.faults(good | change)[0]
    del good["commit"]
    assert "lacks commit" in record.faults(good)[0]


def test_a_file_with_a_broken_row_is_refused_with_its_line(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row(metrics={"seconds": 1.0})) + '\n{"benchmark": "sampling"}\n')
    with pytest.raises(UserError, match="line 2: row lacks"):
        record.read(path)


def test_a_row_in_another_dtype_replaces_none(tmp_path):
    old = row("steps-quality", settings={"steps": 1}, metrics={"psnr_y": 1.0})
    rows = [old, *(old | {"settings": {"steps": 1, "dtype": x}} for x in ("bf16", "fp32"))]
    rows = [{**x, "date": f"2026-01-0{day}T00:00:00Z"} for day, x in enumerate(rows, 1)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(x) + "\n" for x in rows))
    kept = newest(record.read(path), runs=False)
    assert [x["settings"]["dtype"] for x in kept] == ["bf16", "fp32"], "the first was fp32 too"
    assert [*collect(kept)] == ["m, bf16", "m"]


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A git repository with one commit in place of this one."""
    git = ["git", "-C", str(tmp_path), "-c", "user.name=n", "-c", "user.email=e"]
    (tmp_path / "source.py").write_text("x = 1\n")
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "first"]):
        subprocess.run([*git, *words], check=True)
    monkeypatch.setattr(record, "ROOT", tmp_path)
    monkeypatch.setattr(record, "RESULTS", tmp_path / "benchmarks/results")
    record.RESULTS.mkdir(parents=True)
    record.tree.cache_clear()
    yield tmp_path
    record.tree.cache_clear()


def test_a_clean_tree_adds_to_the_results_run_after_run(repository):
    for _ in range(2):
        record.tree.cache_clear()  # as in a process of its own
        assert not record.tree().dirty and re.fullmatch("[0-9a-f]{7,}", record.tree().commit)
        record.append(str(record.RESULTS / "sampling.jsonl"), [row()])
    assert (record.RESULTS / "sampling.jsonl").read_text().count("\n") == 2


@pytest.mark.parametrize("changed", ["source.py", "new.py"])
def test_a_changed_tree_writes_only_elsewhere_and_says_so(repository, changed):
    (repository / changed).write_text("x = 2\n")
    with pytest.raises(UserError, match="commit first"):
        record.append(str(record.RESULTS / "sampling.jsonl"), [row()])
    assert not list(record.RESULTS.iterdir())
    args = argparse.Namespace(device="cpu")
    rows = record.complete(args, "sampling", [record.Measured("m", "v", {}, {"seconds": 1.0})])
    assert rows[0]["dirty"] and record.faults(rows[0]) == []
    record.append(str(repository / "elsewhere/sampling.jsonl"), rows)
    assert record.read(repository / "elsewhere/sampling.jsonl") == rows


def test_outside_git_a_tree_is_not_taken_for_clean(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "_git", lambda *_: subprocess.run(["false"], check=True))
    record.tree.cache_clear()
    assert record.tree() == ("unknown", True)
    record.tree.cache_clear()


def test_a_row_names_the_command_without_where_it_was_written():
    words = ["train-step", "--set", "a.b=1", "c=[1,2]", "--json", "rows.jsonl", "--ours-only"]
    kept = "train-step --set a.b=1 'c=[1,2]' --ours-only"
    assert record.command(words) == f"python -m benchmarks {kept}"
    assert record.command(["kernels", "--json=rows.jsonl"]) == "python -m benchmarks kernels"
    placed = ["paper", "--page", "a.html", "--runs", "b", "--table", "1"]
    assert record.command(placed) == "python -m benchmarks paper --table 1"


def test_rows_become_curves_over_steps_and_the_later_measurement_counts():
    def quality(subject, steps, **metrics):
        return row("steps-quality", subject, settings={"steps": steps}, metrics=metrics)

    sampled = {"size": 64, "tile": None, "batch_size": 1, "steps": 4}
    rows = [
        quality("bicubic", None, psnr_y=24.0),
        quality("a model", 4, psnr_y=25.0, lpips=0.2),
        quality("a model", 1, psnr_y=24.5),
        quality("a model", 4, psnr_y=26.0),
        row("train-step", metrics={"seconds": 1.0}),
        row("sampling", settings=sampled, metrics={"seconds": 2.0}),
    ]
    assert collect(rows) == {
        "a model": {"psnr_y": [(1, 24.5), (4, 26.0)], "lpips": [(4, 0.2)]},
        "m, 64 px, tile auto, 1 at a time, CPU": {"seconds": [(4, 2.0)]},
    }


# ------------------------------------------------------------------------------------------- tables


def test_the_documents_say_what_the_rows_say():
    table.main(argparse.Namespace(check=True))  # exits if not


def test_every_table_stands_in_a_document():
    documents = [record.ROOT / name for name in table.DOCUMENTS]
    found = "".join(path.read_text() for path in documents if path.exists())
    missing = [name for name in TABLES if f"{table.BEGIN}{name} -->" not in found]
    assert not missing


def test_a_typed_figure_is_found_and_written_over(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(table, "ROOT", tmp_path)
    monkeypatch.setattr(table, "RESULTS", tmp_path)
    monkeypatch.setattr(table, "DOCUMENTS", ("README.md", "not-there.md"))
    settings = {"pictures": ["hr"], "crop": 64, "color_fix": "none", "steps": 4, "dtype": "fp32"}
    kept = row("steps-quality", "m", settings=settings, metrics={"psnr_y": 24.8126})
    (tmp_path / "steps-quality.jsonl").write_text(json.dumps(kept) + "\n")
    document = tmp_path / "README.md"
    document.write_text(f"before\n{table.BEGIN}steps-quality -->\n25.1\n{table.END}\nafter\n")
    with pytest.raises(SystemExit, match=r"README\.md"):
        table.main(argparse.Namespace(check=True))
    assert "25.1" in document.read_text()
    table.main(argparse.Namespace(check=False))
    table.main(argparse.Namespace(check=True))
    written = document.read_text()
    assert written.startswith("before\n") and written.endswith("\nafter\n")
    assert "24.813" in written and "25.1" not in written
    assert "`hr`, centre crop 64" in written and "a CPU (AVX2), 2 threads" in written
    assert "commit abc1234" in written


@pytest.mark.parametrize("marked", ["speed -->\n<!-- /table -->\n", "kernels -->\n"])
def test_a_table_that_is_unknown_or_not_closed_is_refused(marked):
    with pytest.raises(UserError, match="a document"):
        table.filled(f"{table.BEGIN}{marked}", "a document")


def train_step_run(date, official=True, seconds=(2.0, 2.2, 2.4), power="1"):
    about = {"compile": False, "batch": 4, "average": "median", "set": [f"loss.p={power}"]}
    about["official"] = official
    speeds = {"ours DREAM": ("bf16", 1.0), "ours standard": ("bf16", 2.0)}
    if official:
        speeds |= {"official fp32 DREAM": ("fp32", 0.25), "official bf16 DREAM": ("bf16", 0.5)}
        speeds |= {"official compiled DREAM": ("bf16", 1.0)}
    return [
        row("train-step", "c.yaml", name, {**about, "precision": precision},
            {"seconds": seconds[1] / speed, "repetitions": [s / speed for s in seconds],
             "tensors_mib": 100 / speed, "parameters": 24_500_000}, date=date)
        for name, (precision, speed) in speeds.items()
    ]  # fmt: skip


def test_of_a_run_made_twice_the_later_counts():
    first, later = (train_step_run(f"2026-01-0{day}", seconds=(day,) * 3) for day in (1, 2))
    other = train_step_run("2026-01-01", power="3")
    assert newest([*first, *other, *later], runs=True) == [*other, *later]
    alone = train_step_run("2026-01-03", official=False)
    assert newest([*first, *alone], runs=True) == [*first, *alone], "it lacks the official rows"


def test_the_table_of_steps_has_ratios_with_spread_and_labels_precisions():
    rows = train_step_run("2026-01-01")
    for name, factor in {"ours DREAM": (1.0, 1.1, 1.0), "ours standard": (1.0, 1.0, 1.0)}.items():
        changed = next(r for r in rows if r["variant"] == name)["metrics"]
        changed["repetitions"] = [x * f for x, f in zip(changed["repetitions"], factor)]
    line = text("train-step", rows).splitlines()[-1]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells == [
        "`c.yaml` `loss.p=1`", "24.5 M", "8.800", "4.400", "2.200", "2.200 (bf16)",
        "0.250 (0.250 to 0.275), bf16 / fp32", "0.500 (0.500 to 0.550)", "1.000 (1.000 to 1.100)",
        "2.000 (2.000 to 2.200)", "2.000",
    ]  # fmt: skip
    assert text("dream-cost", rows).endswith("No rows yet."), "they stand in the other table"
    alone = train_step_run("2026-01-01", official=False)
    assert "No rows" in text("train-step", alone) and "No rows" not in text("dream-cost", alone)


# ---------------------------------------------------------------------------------------- the steps


def tiny(recipe: str, dream: bool = True, *more: str):
    overrides = ("network.model_channels=16", "network.channel_mult=[1]", "network.image_size=32")
    overrides += ("data.patch=32", "train.batch_size=2", "train.precision=fp32", *more)
    return make_step(Variant(recipe, dream, "configs/tiny/sr3-dream.yaml", overrides, "cpu", False))


@pytest.mark.parametrize("dream", [True, False])
def test_ours_and_the_official_recipes_do_the_same_work(dream):
    losses = {recipe: tiny(recipe, dream).loss().item() for recipe in ("ours", *OFFICIAL)}
    assert losses["ours"] == pytest.approx(losses["official fp32"], rel=1e-5)
    for recipe in OFFICIAL[1:]:
        assert losses[recipe] == pytest.approx(losses["official fp32"], rel=1e-2)
        assert losses[recipe] != losses["official fp32"], "it is not under autocast"


@pytest.mark.parametrize("recipe", OFFICIAL)
def test_an_official_step_trains_every_weight(recipe):
    """Autocast keeps casts of weights; those of the pass without gradient must not reach the other."""
    step = tiny(recipe)
    before = [p.detach().clone() for p in step.network.parameters()]
    step.loss().backward()
    assert all(p.grad is not None for p in step.network.parameters())
    step()
    assert any((p != old).any() for p, old in zip(step.network.parameters(), before))


def test_wears_are_the_same_at_each_call_and_worse_than_clean():
    y, x = torch.meshgrid(torch.arange(128.0), torch.arange(96.0), indexing="ij")
    hr = torch.stack([torch.sin(x / 5 + y / 9), torch.cos(x * y / 300), torch.sin(y / 4)])[None]
    lr = imresize(hr, 0.25).clamp(-1, 1)
    first, again, other = worn(hr, 4, 0), worn(hr, 4, 0), worn(hr, 4, 1)
    assert list(first) == list(WEARS) and all(
        picture.shape == lr.shape for picture in first.values()
    )
    assert all(torch.equal(first[wear], again[wear]) for wear in WEARS)
    assert not torch.equal(first["camera"], other["camera"])
    lost = {wear: (picture - lr).abs().mean().item() for wear, picture in first.items()}
    assert lost["clean"] < 1 / 255 < lost["jpeg75"] < lost["web40"]
    assert lost["camera"] > lost["jpeg75"]


def test_the_table_of_wear_has_a_column_for_each_wear():
    metrics = {f"psnr_y/{w}": 20.0 + i for i, w in enumerate(WEARS)} | {"lpips/web40": 0.5}
    settings = {"pictures": ["hr"], "count": 2, "crop": 64, "steps": None, "color_fix": "none"}
    settings["dtype"] = "fp32"
    rows = [row("wear", "m", settings=settings, metrics=metrics)]
    assert not record.faults(rows[0])
    found = text("wear", rows)
    assert "| clean" in found and "0.500 / 22.00" in found and "2 of `hr`, centre crop 64" in found


def test_a_profile_gives_the_time_of_calls_inside_to_the_outermost_kind():
    x = torch.randn(8, 32, 48, 48)
    layer = torch.nn.Conv2d(32, 32, 3)

    def step():
        start = time.perf_counter()
        layer(x).sum().backward()
        return time.perf_counter() - start

    step()
    found = shares(step)
    named = sum(share for kind, share in found.items() if kind != "everything else")
    assert found["convolution"] > 0.7 * named  # waiting, on a busy machine, is in the rest
    assert found["dropout"] == found["group norm + SiLU"] == 0
    assert sum(found.values()) == pytest.approx(1)


# ----------------------------------------------------------------------------------------- commands


@pytest.mark.parametrize("device", COMMANDS)
def test_all_runs_commands_that_exist(device):
    for words in COMMANDS[device]:
        args = build_parser().parse_args([*words, "--device", device, "--json", "rows.jsonl"])
        assert args.command == words[0]
        # the official recipe knows this prediction alone
        if args.command == "train-step" and not args.ours_only:
            assert load_config(args.config, args.set).prediction == "eps"


def test_only_those_that_go_on_from_their_rows_keep_them_unasked():
    pictures = ["--hr", "x"]
    asked = {"kernels": [], "peers": [], "wear": pictures, "dream-gain": pictures}
    kept = {"paper": [], "variants": pictures}
    parser = build_parser()
    assert all(parser.parse_args([name, *words]).json is None for name, words in asked.items())
    for name, words in kept.items():
        assert parser.parse_args([name, *words]).json == f"runs/{name}/{name}.jsonl"


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


# ---------------------------------------------------------------------------------------------- way


def test_a_training_step_is_read_in_thirteen_files():
    way = step_way()
    assert {"ldm_dream/process.py", "ldm_dream/data/pairs.py"} <= way.keys(), "the step was counted"
    assert len(way) <= 13, "\n".join(way)


def test_a_sampling_call_is_read_in_few_files():
    way = call_way()
    assert {"ldm_dream/sampler.py", "ldm_dream/upscaling/upscaler.py"} <= way.keys()
    assert len(way) <= 17, "\n".join(way)


# --------------------------------------------------------------------------------------------- data


def test_loading_is_measured_for_each_kind_of_pictures(tmp_path, monkeypatch):
    words = [
        "data",
        "--workers",
        "0",
        "1",
        "--pictures",
        "4",
        "--micro-batch",
        "2",
        "--rounds",
        "1",
    ]
    args = build_parser().parse_args(words)
    for name in ("ffhq-128", "blind"):
        kind = data.DATA_KINDS[name]._replace(size=(72, 80), patch=32, scale=4)
        monkeypatch.setitem(data.DATA_KINDS, name, kind)
        (tmp_path / name).mkdir()
        source = data.make(tmp_path / name, kind, args.pictures)
        for workers in args.workers[: 1 if kind.is_blind else 2]:
            found = data.measure(name, source, workers, args)
            about = record.complete(args, "data", [found])
            assert record.faults(about[0]) == [] and min(found.metrics.values()) > 0
            assert f"| {name} " in text("data", about)


def test_waiting_for_data_is_measured_in_turns(monkeypatch, capsys):
    small = data.DATA_KINDS["div2k"]._replace(size=(72, 80))
    monkeypatch.setitem(data.DATA_KINDS, "div2k", small)
    words = ["data-wait", "--workers", "0", "--pictures", "2", "--steps", "1", "--repetitions", "1"]
    words += ["--set", "network.model_channels=16", "network.channel_mult=[1]", "data.patch=32"]
    words += ["network.image_size=32", "train.batch_size=2", "train.precision=fp32"]
    data_wait.main(build_parser().parse_args(words))
    printed = capsys.readouterr().out
    assert "| kept " in printed and "| not kept " in printed and "%" in printed
