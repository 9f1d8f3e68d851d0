"""The README shows code that is the source's, lines that run, and ways that are short."""

import re
import textwrap
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, re.S | re.M)


def section(title: str) -> str:
    return README.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def test_the_formula_and_the_loss_in_the_readme_are_those_of_loss_py():
    shown = re.findall(r"^```(?:python)?\n(.*?)^```", section("What is DREAM"), re.S | re.M)
    formula, function = shown
    source = (ROOT / "ldm_dream/loss.py").read_text(encoding="utf-8")
    assert textwrap.indent(formula, "    ") in source
    assert function.startswith("def diffusion_loss(")
    assert f"\n\n\n{function}\n\n" in source, "copy diffusion_loss anew from loss.py"


def test_the_four_lines_of_python_run_as_they_stand(tmp_path, monkeypatch):
    """On a smaller photo of the same name, for speed."""
    lines = next(body for language, body in BLOCKS if language == "python")
    assert len([line for line in lines.splitlines() if line]) == 4
    photo = Path("tools/assets/coffee.png")
    (tmp_path / photo.parent).mkdir(parents=True)
    with Image.open(ROOT / photo) as whole:
        whole.crop((0, 0, 24, 20)).save(tmp_path / photo)
    monkeypatch.chdir(tmp_path)
    exec(lines, {})
    with Image.open("larger.png") as larger:
        assert larger.size == (96, 80)


@pytest.mark.parametrize(("which", "most"), [("training step", 7), ("sampling call", 8)])
def test_the_ways_through_the_code_are_short(which, most):
    way = section("Read the code").partition(f"One {which} ")[2].partition("\n\nOne ")[0]
    files = re.findall(r"^\d+\. `([\w/]+\.py)`", way, re.M)
    assert 1 < len(files) <= most
    assert all((ROOT / file).is_file() for file in files)
