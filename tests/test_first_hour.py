"""A stranger's first hour: the commands of README.md and of the pages in docs, in their order, in an
empty folder with some photos or archives. Trainings are cut to two steps of one sample, the SR3
configs to a small network, upscaling to one step, and torchrun to one process; all else runs as it stands.
"""

import json
import re
import runpy
import shlex
import shutil
import sys
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from ldm_dream.commands.main import COMMANDS, main
from preparing import archives

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
SMALL = {  # of the SR3 configs, in place of the published network
    "network.model_channels": 8,
    "network.channel_mult": "[1,2]",
    "network.num_res_blocks": 1,
    "network.attention_resolutions": "[]",
    "network.norm_groups": 4,
    "sampler": "{kind: ddim, steps: 2}",
}
# what is not run of the pages below, by how it begins, and why
NOT_RUN = {
    "ldm-dream import": "wants published weights; tests/interchange has their layouts",
    "ldm-dream upscale photos -o out -n models/resshift-4x": "wants published weights",
    "ldm-dream upscale photos -o out -n 4x-model.pth": "wants weights of another project",
    "python -m benchmarks all --device cuda": "wants a GPU",
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
    """Lines of its bash blocks as words, with the YAML that a file is made of as ["photos.yaml", ..].
    Not those of a table that is made of rows: they measure for hours.
    """
    found = []
    text = re.sub(r"<!-- table: .*?<!-- /table -->", "", document.read_text(), flags=re.S)
    for language, body in re.findall(r"^```(\w*)\n(.*?)^```", text, re.S | re.M):
        if language == "bash":
            lines = [shlex.split(line, comments=True) for line in body.splitlines()]
            found += [words for words in lines if words and words[0] not in SET_UP]
        elif language == "yaml":
            found.append(["yaml", body])
    return found


def run(words: list[str], monkeypatch) -> None:
    is_tool = words[0] == "python"
    assert is_tool or words[0] == "ldm-dream", words
    name, *arguments = words[1:]
    file = Path(name).stem if is_tool else COMMANDS[name].file
    if file == "train":
        cut = SHORT | SMALL if "sr3" in arguments[0] else SHORT
        arguments += ["--set", *(f"{key}={value}" for key, value in cut.items())]
    if file == "upscale":
        arguments += ["--steps", "1"]
    if file == "prepare_data" and "--list" not in arguments:
        arguments += ["--workers", "1"]
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    try:
        runpy.run_path(name, run_name="__main__") if is_tool else main([name, *arguments])
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
    photos(home / "photos/train", 2, 128)
    for words in commands(ROOT / "docs/train.md"):
        if words[0] != "yaml":
            run(words, monkeypatch)
        elif "configs/quickstart.yaml" in words[1]:
            photos(home / "photos/val", 1, 72)  # asked for there, and not before
            Path("photos.yaml").write_text(words[1])
    assert Path("photos.yaml").is_file()
    with Image.open(home / "larger/00.png") as larger:
        assert larger.size == (512, 512)
    for name in ("quickstart", "photos", "photos-plain", "my-vq", "photos-my-vq"):
        assert (home / "runs" / name / "model/model.safetensors").is_file()
    scale = re.search(r"latent_scale: ([\d.]+)", Path("models/my-vq/config.yaml").read_text())
    assert scale and float(scale[1]) != 1


# ----------------------------------------------------------------------------------- other pages


def alone(words: list[str]) -> list[str]:
    """The same command without torchrun, which would start processes."""
    while re.fullmatch(r"[A-Z_]+=\S*", words[0]):
        words = words[1:]
    if words[0] == "torchrun":
        is_tool = [word.startswith("tools/") for word in words]
        if True in is_tool:
            return ["python", *words[is_tool.index(True) :]]
        return ["ldm-dream", *words[words.index("ldm_dream") + 1 :]]
    return words


def run_page(name: str, monkeypatch, before=lambda: None) -> None:
    """All commands of a page but those of NOT_RUN; `before` each of them."""
    for words in commands(ROOT / "docs" / name):
        if words[0] != "yaml" and not shlex.join(words).startswith(tuple(NOT_RUN)):
            before()
            run(alone(words), monkeypatch)


def is_trained(run_dir: str) -> bool:
    return (Path("runs") / run_dir / "model/model.safetensors").is_file()


def test_what_is_not_run_stands_in_the_pages():
    pages = "".join(page.read_text() for page in (ROOT / "docs").glob("*.md"))
    assert [start for start in NOT_RUN if start not in pages] == []


def test_the_commands_for_the_papers_data_sets_run(home, monkeypatch):
    archives.div2k(home / "downloads")
    faces = {f"celebahq_16_128/hr_128/{n:05d}.png": archives.picture(n, 128, 128) for n in (1, 2)}
    archives.write_zip(home / "downloads/celebahq_16_128.zip", faces)
    photos(home / "data/set14/hr", 1, 64)
    photos(home / "data/set14/lr", 1, 16)
    run_page("datasets.md", monkeypatch)
    assert len([*Path("data/dream/celebahq_128").glob("*.png")]) == 2
    assert is_trained("try")


def test_the_commands_for_training_pictures_run(home, monkeypatch):
    """Lists, and given LR pictures of DIV2K as it is published and as it is prepared."""
    photos(home / "photos", 2, 64)
    Path("large.txt").write_text("photos/00.png\nphotos/01.png\n")
    archives.div2k(home / "downloads")
    run(shlex.split("ldm-dream prepare div2k"), monkeypatch)
    for archive in (home / "downloads").iterdir():
        zipfile.ZipFile(archive).extractall("data")
    run_page("training-pictures.md", monkeypatch)
    assert all(map(is_trained, ("large", "given", "given-squares")))


def test_the_commands_to_read_a_run_run(home, monkeypatch):
    pytest.importorskip("tensorboard")
    for name in ("dream", "standard"):
        folder = home / f"runs/tiny/{name}-latent-x4-tiny"
        folder.mkdir(parents=True)
        rows = ({"step": step, "loss/network": 1 / step} for step in (10, 20))
        (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    run_page("read-a-run.md", monkeypatch)
    assert Path("curves.svg").is_file() and [*Path("runs/events").rglob("*tfevents*")]


def test_the_commands_to_import_and_export_run(home, monkeypatch):
    pytest.importorskip("diffusers")
    run_page("import.md", monkeypatch)
    assert [*Path("exported").rglob("*.safetensors")]


def test_the_commands_for_one_gpu_and_more_run(home, monkeypatch):
    photos(home / "photos", 1, 64)
    photos(home / "data/ffhq_128", 2, 128)
    photos(home / "data/celebahq_128", 1, 128)
    Path("data/celebahq_128-eval100.txt").write_text("celebahq_128/00.png\n")
    folder = "sr3/face-8x-dream"

    def anew() -> None:
        """Other settings are another run, which wants a folder of its own."""
        shutil.rmtree(Path("runs") / folder, ignore_errors=True)

    run_page("scale.md", monkeypatch, anew)
    assert is_trained(folder)
