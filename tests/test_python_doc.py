"""docs/python.md runs from top to bottom, as a reader would type it; the hub is a stand-in."""

import re
import shutil
import sys
import types
from dataclasses import fields
from pathlib import Path

from PIL import Image

import ldm_dream
from ldm_dream.upscaling.engine import Options

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs/python.md").read_text(encoding="utf-8")


def test_the_page_about_python_runs_as_it_stands(tmp_path, monkeypatch, capsys):
    with Image.open(ROOT / "tools/assets/coffee.png") as photo:
        photo.crop((0, 0, 12, 10)).save(tmp_path / "photo.jpg")
    hub = types.ModuleType("huggingface_hub")
    hub.create_repo = lambda repo_id, **_: None
    hub.upload_folder = lambda repo_id, folder_path, token: shutil.copytree(folder_path, repo_id)
    hub.snapshot_download = lambda repo_id, **_: repo_id
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    monkeypatch.chdir(tmp_path)
    known = {}
    exec("\n".join(re.findall(r"^```python\n(.*?)^```", PAGE, re.S | re.M)), known)
    assert isinstance(known["first"], ldm_dream.Image) and known["second"].size == (48, 40)
    assert known["array"].shape == (40, 48, 3) and known["tensor"].shape == (2, 3, 80, 96)
    assert known["poster"].size == (60, 50)
    assert [known[name].scale for name in ("again", "shared", "offline")] == [4, 4, 4]
    with Image.open("larger.jpg") as larger:
        assert larger.size == (48, 40)
    told = capsys.readouterr().out
    assert "3 of 3\n" in told and "missing.jpg: no such file" in told
    assert re.search(r"Upscaler\('dream-photo-x4-tiny', scale=4, device='cpu', dtype='fp32'", told)


def test_the_page_about_python_names_every_option_and_everything_at_the_top():
    rows = re.findall(r"^\| (`.*?`) \| ", PAGE.partition("\n## Options")[2], re.M)
    named = re.findall(r"`(\w+)`", " ".join(rows))
    assert [field.name for field in fields(Options)] == named
    assert set(ldm_dream.__all__) <= set(re.findall(r"`(\w+)`", PAGE.partition("\n## ")[0]))
