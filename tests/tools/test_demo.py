"""What `make demo` prints and writes."""

import contextlib
import io
import runpy
import sys
from pathlib import Path

import pytest

from ldm_dream.data.images import read_image
from ldm_dream.upscaling.defaults import DEFAULT_MODEL

TOOL = Path(__file__).resolve().parents[2] / "tools/demo.py"
CORE = ("gmsd", "psnr_y", "ssim_y", "consistency_x1e5")  # figures that need no weights


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> tuple[Path, str]:
    """(folder that the demo wrote, what it printed) where LPIPS has no weights."""
    folder = tmp_path_factory.mktemp("demo")
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setenv("TORCH_HOME", str(folder / "empty"))
        patch.setattr(sys, "argv", [str(TOOL), "-o", str(folder / "made")])
        runpy.run_path(str(TOOL), run_name="__main__")
    return folder / "made", printed.getvalue()


def figures(text: str) -> dict[str, dict[str, float]]:
    head, *rows = (line.split() for line in text.partition("\n\n")[0].splitlines())
    return {row[0]: dict(zip(head[1:], map(float, row[1:]))) for row in rows}


def test_the_demo_beats_bicubic_in_all_but_the_likeness_of_small_windows(demo):
    """SSIM prefers the soft edges of bicubic where a JPEG has lost the fine ones."""
    rows = figures(demo[1])
    theirs, ours = rows["bicubic"], rows[DEFAULT_MODEL]
    assert tuple(ours) == CORE
    assert ours["psnr_y"] > theirs["psnr_y"] + 0.2
    assert ours["gmsd"] < 0.955 * theirs["gmsd"]
    assert ours["consistency_x1e5"] < theirs["consistency_x1e5"]
    assert ours["ssim_y"] > theirs["ssim_y"] - 0.015
    assert "better than bicubic: gmsd, psnr_y, consistency_x1e5; not: ssim_y\n" in demo[1]


def test_the_demo_says_what_each_figure_means_and_which_way_is_better(demo):
    for name in CORE:
        (line,) = [line for line in demo[1].splitlines() if line.startswith(f"{name}: ")]
        assert line.endswith(
            "higher is better" if name in ("psnr_y", "ssim_y") else "lower is better"
        )
    assert "lpips: not computed: " in demo[1]


def test_the_demo_writes_its_three_pictures(demo):
    """The demo writes the small picture the result and all three side by side."""
    sizes = {path.stem: read_image(path).pixels.shape for path in demo[0].iterdir()}
    assert sizes == {
        "lr": (80, 80, 3),
        "after": (320, 320, 3),
        "before-after": (320, 960, 3),
    }


def test_the_demo_writes_over_no_input(tmp_path, monkeypatch, capsys):
    weights = tmp_path / "weights.pth"
    weights.write_bytes(b"weights")
    (tmp_path / "after.png").hardlink_to(weights)
    words = [str(TOOL), "-o", str(tmp_path), "--lpips-weights", str(weights)]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(TOOL), run_name="__main__")
    assert end.value.code == 2 and "after.png: is an input" in capsys.readouterr().err
    assert weights.read_bytes() == b"weights" and not (tmp_path / "lr.jpg").exists()
