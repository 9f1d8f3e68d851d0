"""A stranger's first hour: the commands of README.md and docs/train.md, in their order, in an empty
folder with some photos. Trainings are cut to two steps of one sample; all else runs as it stands.
"""

import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
# what a reader does once: tests of the Makefile and of each tool stand elsewhere
SET_UP = ("git", "make", "export", "pip", "cd")
SHORT = {
    "train.steps": 2,
    "train.batch_size": 1,
    "train.workers": 0,
    "train.log_every": 1,
    "train.val_every": 2,
    "train.val_images": 1,
    "train.val_crop": 64,
    "train.save_every": 2,
}


def photos(folder: Path, count: int, side: int) -> None:
    """Crops of the bundled photo."""
    folder.mkdir(parents=True)
    with Image.open(ROOT / "tools/assets/coffee.png") as whole:
        for i in range(count):
            left, top = 7 * i % (320 - side), 5 * i % (320 - side)
            whole.crop((left, top, left + side, top + side)).save(folder / f"{i:02}.png")


@pytest.fixture
def home(tmp_path, monkeypatch):
    for name in ("tools", "configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def commands(document: Path) -> list[list[str]]:
    """Lines of its bash blocks as words, with the YAML that a file is made of as ["photos.yaml", ..]."""
    found = []
    for language, body in re.findall(r"^```(\w*)\n(.*?)^```", document.read_text(), re.S | re.M):
        if language == "bash":
            lines = [shlex.split(line, comments=True) for line in body.splitlines()]
            found += [words for words in lines if words and words[0] not in SET_UP]
        elif language == "yaml":
            found.append(["yaml", body])
    return found


def run(words: list[str], monkeypatch) -> None:
    assert words[0] == "python", words
    name, *arguments = words[1:]
    if name == "tools/train.py":
        arguments += ["--set", *(f"{key}={value}" for key, value in SHORT.items())]
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    try:
        runpy.run_path(name, run_name="__main__")
    except SystemExit as ended:
        assert not ended.code, f"{shlex.join(words)}: exit status {ended.code}"


def test_the_commands_of_the_readme_run(home, monkeypatch):
    photos(home / "photos", 2, 128)
    photos(home / "other-photos", 1, 64)
    for words in commands(ROOT / "README.md"):
        run(words, monkeypatch)
    with Image.open(home / "larger/00.png") as larger:
        assert larger.size == (512, 512)


def test_the_way_from_a_folder_to_a_larger_picture_runs(home, monkeypatch):
    photos(home / "photos/train", 20, 140)
    photos(home / "photos/val", 1, 72)
    done = commands(ROOT / "docs/train.md")
    files = {"photos.yaml": None}
    for words in done:
        if words[0] != "yaml":
            run(words, monkeypatch)
        elif "configs/quickstart.yaml" in words[1]:
            Path("photos.yaml").write_text(words[1])
            del files["photos.yaml"]
    assert not files
    with Image.open(home / "larger/00.png") as larger:
        assert larger.size == (288, 288)
    for name in ("quickstart", "photos", "photos-plain", "my-vq", "photos-my-vq"):
        assert (home / "runs" / name / "model/model.safetensors").is_file()
    scale = re.search(r"latent_scale: ([\d.]+)", Path("models/my-vq/config.yaml").read_text())
    assert scale and float(scale[1]) != 1
