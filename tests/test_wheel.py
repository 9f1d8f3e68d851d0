"""The wheel in an empty environment, outside the checkout: all that a user of `pip install` has.

The environment sees the packages of this interpreter, but not what is installed of this project.
"""

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("ldm_dream", "kernels", "configs", "pyproject.toml", "README.md", "LICENSE")
SHORT = (
    "train.steps=20 train.batch_size=1 train.workers=0 train.val_every=20 train.val_images=1 "
    "train.val_crop=64 train.save_every=20 train.log_every=20 data.patch=64"
)


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A folder with an environment in `env`, photos, and nothing else."""
    for needed in ("pip", "setuptools"):
        if not importlib.util.find_spec(needed):
            pytest.skip(f"{needed} is not installed, which builds the wheel")
    home, source = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("source")
    for name in SOURCES:  # a copy, since the build leaves files in its folder
        whole = (ROOT / name).is_dir()
        copy = shutil.copytree if whole else shutil.copy
        hidden = {"ignore": shutil.ignore_patterns("__pycache__")} if whole else {}
        copy(ROOT / name, source / name, **hidden)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    alone = ["--no-deps", "--no-index"]
    python = home / "env/bin/python"
    run(pip + ["wheel", *alone, "--no-build-isolation", "-w", str(source / "dist"), str(source)])
    run([sys.executable, "-m", "venv", "--without-pip", str(home / "env")])
    (wheel,) = (source / "dist").glob("*.whl")
    run([*pip, "--python", str(python), "install", *alone, "--no-compile", str(wheel)])
    (installed,) = (home / "env/lib").glob("python*/site-packages")
    places = dict.fromkeys(sysconfig.get_path(kind) for kind in ("purelib", "platlib"))
    (installed / "others.pth").write_text("\n".join(places))
    (home / "photos").mkdir()
    with Image.open(ROOT / "tools/assets/coffee.png") as photo:
        for i in range(3):
            photo.crop((70 * i, 60 * i, 70 * i + 130, 60 * i + 130)).save(home / f"photos/{i}.png")
        (home / "small").mkdir()
        for i in range(2):
            photo.crop((0, 0, 20 + i, 16)).save(home / f"small/{i}.png")
    return home


def outside() -> dict[str, str]:
    """The environment of a process that knows nothing of the checkout, on one core."""
    kept = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return kept | {"OMP_NUM_THREADS": "1"}


def run(words: list[str], cwd: Path | None = None) -> str:
    """-> what it prints. Fails with all that it said."""
    done = subprocess.run(words, cwd=cwd, env=outside(), capture_output=True, text=True)
    assert done.returncode == 0, f"{words}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def ldm_dream(home: Path, words: str) -> str:
    return run([str(home / "env/bin/ldm-dream"), *words.split()], home)


def test_the_wheel_says_what_it_can_do(home):
    assert " upscale Upscale pictures " in " ".join(ldm_dream(home, "--help").split())
    python = str(home / "env/bin/python")
    assert run([python, "-m", "ldm_dream", "models"], home).startswith("dream-latent-x4-tiny  x4")
    place = run([python, "-c", "import ldm_dream as x, dream_kernels as y; print(x, y)"], home)
    assert place.count(str(home / "env")) == 2
    dry = ldm_dream(home, "train configs/sr3/face-8x-dream.yaml --dry-run")
    assert dry.startswith("# run folder: runs/sr3/face-8x-dream")


def test_the_wheel_upscales_a_folder(home):
    assert ldm_dream(home, "upscale small -o larger --steps 1").splitlines()[-1] == "2 done"
    with Image.open(home / "larger/1.png") as larger:
        assert larger.size == (84, 64)


def test_the_wheel_trains_the_quickstart(home):
    ldm_dream(home, f"train configs/quickstart.yaml --set data.train=[photos] {SHORT}")
    assert (home / "runs/quickstart/model/model.safetensors").is_file()


@pytest.mark.skipif(not importlib.util.find_spec("gradio"), reason="the extra app is not installed")
def test_the_wheel_serves_the_page(home):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(home / "env/bin/ldm-dream"), "app", "--port", str(port)]
    (home / "temporary").mkdir()
    env = outside() | {"TMPDIR": str(home / "temporary")}
    with (home / "app.log").open("w") as log:
        page = subprocess.Popen(command, cwd=home, env=env, stdout=log, stderr=log)
    try:
        assert "<html" in fetched(f"http://127.0.0.1:{port}/", page), (home / "app.log").read_text()
        assert list((home / "temporary").glob("ldm-dream-*"))
    finally:
        page.send_signal(signal.SIGTERM)
        status = page.wait(60)
    assert status == 128 + signal.SIGTERM, (home / "app.log").read_text()
    assert not list((home / "temporary").glob("ldm-dream-*"))


def fetched(address: str, page: subprocess.Popen) -> str:
    """The page as soon as it is there; "" where its process has ended or five minutes have passed."""
    end = time.monotonic() + 300  # on a machine that does much else; alone it takes seconds
    while page.poll() is None and time.monotonic() < end:
        try:
            with urllib.request.urlopen(address, timeout=10) as answer:
                return answer.read().decode()
        except urllib.error.URLError:
            time.sleep(0.3)
    return ""
