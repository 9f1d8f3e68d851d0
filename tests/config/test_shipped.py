"""Laws of the configs that the project ships: one scheme of names, a run folder for each."""

import re
from collections import Counter
from pathlib import Path

import pytest

from ldm_dream.config.files import default_run_dir, load_config
from ldm_dream.config.run import DiffusionRun

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
SHIPPED = sorted(CONFIGS.rglob("*.yaml"))
IDS = [path.relative_to(CONFIGS).with_suffix("").as_posix() for path in SHIPPED]
# the runs behind a bundled model: its name, and -part of it
BUNDLED = (
    "vq-f4-tiny",
    "vq-f4-fast",
    "dream-latent-x4-tiny",
    "standard-latent-x4-tiny",
    "dream-photo-x4-tiny",
)


@pytest.mark.parametrize("path", SHIPPED, ids=IDS)
def test_a_name_says_what_how_much_larger_and_whether_dream(path):
    """NAME-SCALE[-variant][-dream]; in tiny/ the system alone; kebab-case everywhere."""
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", path.stem), "not in kebab-case"
    if path.stem.startswith(BUNDLED):
        assert path.parent.name == "tiny"
        return
    run = load_config(path)
    if not isinstance(run, DiffusionRun):
        return
    if path.stem == "quickstart":  # beside its command, for a reader who knows no name yet
        return
    assert path.stem.endswith("-dream") == bool(run.loss.strength)
    if path.parent.name != "tiny":
        assert f"-{run.scale}x" in path.stem


@pytest.mark.parametrize("path", SHIPPED, ids=IDS)
def test_runs_for_a_cpu_stand_in_tiny(path):
    """A run of another folder is as long as published, or nobody has run it."""
    for_a_cpu = path.parent.name == "tiny" or path.stem == "quickstart"
    assert (load_config(path).train.steps <= 10_000) == for_a_cpu


def test_no_two_configs_share_a_run_folder():
    counts = Counter(default_run_dir(path) for path in SHIPPED)
    assert len(SHIPPED) > 30 and max(counts.values()) == 1, counts.most_common(1)


@pytest.mark.parametrize(
    ("config", "folder"),
    [
        ("configs/tiny/sr3.yaml", "runs/tiny/sr3"),
        ("/a/configs/b/configs/c/d.yaml", "runs/c/d"),
        ("configs/top.yaml", "runs/top"),
        ("elsewhere/sr3.v2.yaml", "runs/sr3.v2"),
        ("/configs", "runs/configs"),
    ],
)
def test_the_run_folder_mirrors_the_place_below_configs(config, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert default_run_dir(Path(config)) == Path(folder)


def test_the_run_folder_is_the_same_from_any_working_folder(monkeypatch):
    monkeypatch.chdir(CONFIGS / "tiny")
    for name in ("sr3.yaml", "../tiny/sr3.yaml", str(CONFIGS / "tiny/sr3.yaml")):
        assert default_run_dir(Path(name)) == Path("runs/tiny/sr3")


def test_a_part_starts_from_the_run_folder_of_the_part_before():
    """init_from names what the default run folder of another shipped config will hold, or a bundled
    model.
    """
    models = {(default_run_dir(path) / "model").as_posix() for path in SHIPPED}
    models |= {folder.name for folder in (CONFIGS.parent / "ldm_dream/weights").iterdir()}
    starts = {load_config(path).train.init_from for path in SHIPPED} - {None}
    assert len(starts) == 6 and starts <= models


# where a path of a config comes from, if it is not in the repository -> what its head says of that
HINTS = {
    "data/": "tools/prepare_data.py",
    "../shared/": "--set 'data.train=[FOLDER]'",
    "weights/vgg16": "torchvision's VGG16",
    "weights/": "tools/import_checkpoint.py",
    "runs/": "Second part",
}


def heads(path: Path) -> str:
    """The comment at the top of a config and of those that it is based on."""
    text = path.read_text(encoding="utf-8")
    head = "".join(line for line in text.splitlines(keepends=True) if line.startswith("#"))
    base = re.search(r"^base: (.+)$", text, re.M)
    return head + (heads(path.parent / base[1]) if base else "")


@pytest.mark.parametrize("path", SHIPPED, ids=IDS)
def test_a_path_that_is_not_there_is_explained_at_the_top(path):
    run = load_config(path)
    names = [*run.data.train, *run.data.val, run.lpips_weights, run.vgg_weights]
    names += [run.train.init_from]
    names.append(getattr(run.autoencoder, "pretrained", None))
    said = heads(path)
    for name in filter(None, names):
        hint = next((text for start, text in HINTS.items() if name.startswith(start)), None)
        assert hint is None or hint in said, f"{name}: say at the top how it comes to be"
        assert hint or name in BUNDLED, name
