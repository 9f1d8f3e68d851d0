"""Curves of runs: what is read from metrics.jsonl is what the SVG and TensorBoard's event files
hold.
"""

from __future__ import annotations

import json
import math
import re
import runpy
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from ldm_dream.training.curves import (
    HEIGHT,
    PlotError,
    read_curves,
    read_runs,
    svg,
    ticks,
    write_tensorboard,
)
from ldm_dream.writing import WriteError

TOOL = Path(__file__).resolve().parents[2] / "tools/plot.py"
SVG = "{http://www.w3.org/2000/svg}"


def run_dir(folder: Path, rows: list[dict], end: str = "") -> Path:
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + end)
    return folder


ROWS = [
    {"step": 10, "loss/network": 0.5, "steps_per_second": 2.0, "eta_s": 9.0},
    {"step": 20, "loss/network": 0.4, "steps_per_second": 2.0, "eta_s": 8.0},
    {"step": 20, "val/psnr_y": 24.5},
]


def test_a_curve_has_each_step_once_and_the_later_row_counts(tmp_path, caplog):
    again = [{"step": 20, "loss/network": 0.3}, {"step": 30, "loss/network": float("nan")}]
    curves = read_curves(run_dir(tmp_path / "a", ROWS + again, end='{"step": 40, "loss/netw'))
    assert (
        curves["loss/network"][:2] == [(10, 0.5), (20, 0.3)] and curves["loss/network"][2][0] == 30
    )
    assert curves["val/psnr_y"] == [(20, 24.5)] and "eta_s" not in curves
    assert "line 6 is no row of numbers" in caplog.text


def test_lines_of_the_svg_lie_where_the_values_are(tmp_path):
    rows = [{"step": step, "x <y>": value} for step, value in ((0, 1.0), (50, 3.0), (100, 2.0))]
    runs = read_runs(
        [
            run_dir(tmp_path / "a&b", rows),
            run_dir(tmp_path / "c", [{"step": 100, "x <y>": 1.0}, *ROWS]),
        ]
    )
    root = ElementTree.fromstring(svg(runs))
    panel = next(
        group for group in root.iter(f"{SVG}g") if group.find(f"{SVG}text").text == "x <y>"
    )
    (line,) = panel.iter(f"{SVG}polyline")
    (x0, low), (x1, high), (x2, middle) = (
        [float(n) for n in point.split(",")] for point in line.get("points").split()
    )
    assert (
        x1 - x0 == pytest.approx(x2 - x1)
        and low - high == pytest.approx(2 * (low - middle))
        and 0 < high < low < HEIGHT
    )
    (dot,) = panel.iter(f"{SVG}circle")  # of the other run, which has one value here
    assert (float(dot.get("cx")), float(dot.get("cy"))) == (x2, low)
    assert [text.text for text in root.findall(f"{SVG}text")] == ["a&b", "c"]  # legend


@pytest.mark.parametrize(
    "values",
    [
        [0.0, 0.0],
        [5e-5],
        [float("nan")],
        [1e9, -1e9],
        [1.0, 1.0 + 1e-9],
        [1.0, 1.0 + 1e-15],
        [1.7e308, -1.7e308],
        [0.0, 5e-324],
        [9e299, -9e299],
    ],
)
def test_any_values_can_be_drawn(values):
    ElementTree.fromstring(svg({"run": {"x": list(enumerate(values))}}))


@pytest.mark.parametrize(
    "low, high, want",
    [
        (0, 10, [0, 2, 4, 6, 8, 10]),
        (0.31, 0.52, [0.35, 0.4, 0.45, 0.5]),
        (-3, 1, [-3, -2, -1, 0, 1]),
        (9e5, 1e6, [9e5, 9.2e5, 9.4e5, 9.6e5, 9.8e5, 1e6]),
    ],
)
def test_ticks_are_round_numbers_inside(low, high, want):
    assert ticks(low, high) == want


def test_event_files_hold_the_same_numbers(tmp_path):
    event_accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator"
    )
    runs = read_runs([run_dir(tmp_path / "a", ROWS)])
    write_tensorboard(runs, tmp_path / "events")
    events = event_accumulator.EventAccumulator(str(tmp_path / "events/a")).Reload()
    assert set(events.Tags()["scalars"]) == set(runs["a"])
    for name, points in runs["a"].items():
        assert [(e.step, e.value) for e in events.Scalars(name)] == [
            (step, pytest.approx(value)) for step, value in points
        ]


def test_without_tensorboard_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(PlotError, match=r"pip install 'ldm_dream\[train\]'"):
        write_tensorboard({}, tmp_path)


def test_the_tool_draws_several_runs_and_says_a_mistake_in_one_sentence(
    tmp_path, monkeypatch, capsys
):
    def tool(*words: object) -> None:
        monkeypatch.setattr(sys, "argv", [str(TOOL), *map(str, words)])
        runpy.run_path(str(TOOL), run_name="__main__")

    first, second = run_dir(tmp_path / "x/run", ROWS), run_dir(tmp_path / "y/run", ROWS)
    tool(first, second)
    assert (
        "x/run" in (first / "curves.svg").read_text()
        and "y/run" in (first / "curves.svg").read_text()
    )
    assert not list(first.glob(".*"))
    for folder, text in (
        (tmp_path, "no metrics.jsonl in it"),
        (run_dir(tmp_path / "z", []), "no row of numbers in it yet"),
    ):
        with pytest.raises(SystemExit) as end:
            tool(folder)
        assert end.value.code == 2 and re.search(text, capsys.readouterr().err)


def tool(monkeypatch, *words: object) -> None:
    monkeypatch.setattr(sys, "argv", [str(TOOL), *map(str, words)])
    runpy.run_path(str(TOOL), run_name="__main__")


def test_lines_that_are_no_rows_are_named_and_passed_over(tmp_path, caplog):
    """Of a killed run, of a full disk, or of another program."""
    lines = [
        '{"step": 10, "x": 1.0}',
        "",
        "\0\0\0",
        '{"step": "10", "x": 5.0}',
        '{"step": true, "x": 5.0}',
        '{"step": -1, "x": 5.0}',
        '{"step": 11, "x": "5"}',
        '{"step": 11, "x": 1' + 400 * "0" + "}",
        "[" * 100_000,
        '{"step": 12, "x": 2.0}{"step": 13',
        '{"step": 14, "x": NaN}',
        '{"step": 15, "x": -Infinity}',
        '{"step": 16, "x": null}',
        '{"step": 17, "x": 3.0}',
        '{"step": 18, "x',
    ]
    folder = run_dir(tmp_path / "a", [])
    (folder / "metrics.jsonl").write_bytes("\n".join(lines).encode() + b"\xff")
    curve = read_curves(folder)["x"]
    assert [step for step, _ in curve] == [10, 14, 15, 16, 17]
    assert [value for _, value in curve if math.isfinite(value)] == [1.0, 3.0]
    assert len(re.findall("is no row of numbers", caplog.text)) == 10
    ElementTree.fromstring(svg({"a\x00\udce9": {"\x1b[": curve}}))


@pytest.mark.parametrize("name", ["metrics.jsonl", "config.yaml", "link.svg"])
def test_a_plot_is_never_written_over_a_run(tmp_path, monkeypatch, capsys, name):
    run = run_dir(tmp_path / "a", ROWS)
    (run / "config.yaml").write_text("scale: 4")
    (run / "link.svg").hardlink_to(run / "metrics.jsonl")
    before = {path: path.read_bytes() for path in run.iterdir()}
    with pytest.raises(SystemExit) as end:
        tool(monkeypatch, run, "-o", run / name)
    assert end.value.code == 2 and capsys.readouterr().err.count("\n") == 1
    assert {path: path.read_bytes() for path in run.iterdir()} == before


def test_event_files_replace_those_of_before_and_nothing_else(tmp_path):
    pytest.importorskip("tensorboard")
    a, b = (run_dir(tmp_path / name / "run", ROWS) for name in "ab")
    runs = read_runs([a, tmp_path / "b/../b/run", b])
    assert list(runs) == ["a/run", "b/run"]
    events = tmp_path / "events"
    write_tensorboard(runs, events)
    write_tensorboard(runs, events)
    assert all(len(list((events / name).glob("events*"))) == 1 for name in runs)
    with pytest.raises(WriteError, match="holds metrics.jsonl, which was not written here"):
        write_tensorboard(runs, tmp_path)
    assert (a / "metrics.jsonl").is_file()
