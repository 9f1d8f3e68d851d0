"""Bulk upscaling by Ray Data, on two local workers, one of which is killed."""

import importlib.util
import os
import signal
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from ldm_dream.data.images import Image, read_image, write_image
from ldm_dream.upscaling.planning import BatchError, Naming
from ldm_dream.upscaling.ray import MissingRay, Pool, Worker, upscale_store

ROOT = Path(__file__).resolve().parents[2]
COUNT = 8
needs = pytest.mark.skipif(
    not importlib.util.find_spec("ray"), reason="needs Ray: pip install 'ldm_dream[bulk]'"
)


class Double:
    """An upscaler that kills its process at the picture of `height`, once; `marks` says whether it
    has, and holds a file for each picture and process that was upscaled.
    """

    scale = 2

    def __init__(self, marks: Path, height: int = 0):
        self.marks, self.height = marks, height

    def __call__(self, image: Image, scale: float) -> Image:
        height = len(image.pixels)
        if height == self.height and not (self.marks / "killed").exists():
            (self.marks / "killed").touch()
            time.sleep(0.5)  # the one before is stored meanwhile
            os.kill(os.getpid(), signal.SIGKILL)
        (self.marks / f"{height}-{os.getpid()}").touch()
        return replace(image, pixels=image.pixels.repeat(2, 0).repeat(2, 1))


@pytest.fixture
def pictures(tmp_path) -> Path:
    """0.png and the like, in one of which are no pixels; by their heights told apart."""
    rng = np.random.default_rng(0)
    for number in range(COUNT):
        pixels = rng.integers(0, 256, (8 + number, 8, 3), dtype=np.uint8)
        write_image(tmp_path / "in" / f"{number % 2}/{number}.png", Image(pixels))
    (tmp_path / "in/bad.png").write_text("no picture")
    (tmp_path / "in/note.txt").touch()
    (tmp_path / "marks").mkdir()
    return tmp_path / "in"


@pytest.fixture(scope="module")
def ray():
    import ray

    places = (ROOT, ROOT / "kernels", ROOT / "tests", ROOT / "tests/upscaling")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", ":".join(map(str, places)))
        patch.setenv("RAY_worker_niceness", "0")  # else a busy machine starves them
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
        yield ray
        ray.shutdown()


@needs
def test_of_two_workers_of_ray_one_is_killed_and_all_is_done(ray, pictures, tmp_path):
    marks, out = tmp_path / "marks", tmp_path / "out"
    store = partial(upscale_store, str(pictures), str(out), Pool(workers=2))
    rows = store(load=partial(Double, marks, height=13)).take_all()
    assert (marks / "killed").exists()
    upscaled = [path.name.partition("-")[0] for path in marks.glob("*-*")]
    assert sorted(map(int, upscaled)) == [8 + number for number in range(COUNT)]
    for number in range(COUNT):
        name = f"{number % 2}/{number}.png"
        wanted = read_image(pictures / name).pixels.repeat(2, 0).repeat(2, 1)
        assert np.array_equal(read_image(out / name).pixels, wanted)
    assert sum(path.is_file() for path in out.rglob("*")) == COUNT
    status = {row["source"]: row["status"] for row in rows}
    assert len(rows) == COUNT + 1 and status.pop("bad.png") == "failed"
    assert set(status.values()) <= {"done", "skipped"}  # skipped: by the one that was killed


def worker(pictures, tmp_path, load=None) -> Worker:
    load = load or partial(Double, tmp_path / "marks")
    return Worker(str(pictures), f"file://{tmp_path}/out", load, None, {}, Pool())


def test_a_worker_tells_each_picture_and_leaves_out_what_is_stored(pictures, tmp_path):
    pytest.importorskip("pyarrow", reason="needs pip install 'ldm_dream[bulk]'")
    write_image(tmp_path / "out/1/1.png", Image(np.zeros((1, 1, 3), np.uint8)))
    (tmp_path / "out/file").touch()
    pairs = {
        "bad.png": "bad.png",
        "0/0.png": "0/0.png",
        "1/1.png": "1/1.png",
        "gone.png": "gone.png",
        "1/3.png": "file/3.png",
    }
    batch = {"source": np.array(list(pairs)), "target": np.array(list(pairs.values()))}
    rows = worker(pictures, tmp_path)(batch)
    assert rows["status"].tolist() == ["failed", "done", "skipped", "failed", "failed"]
    assert rows["height"].tolist() == [0, 16, 0, 0, 0] and rows["source"].tolist() == list(pairs)
    for number, says in ((0, "bad.png: not a picture"), (3, "gone.png: cannot be fetched")):
        assert rows["error"][number].startswith(says)
    assert "file/3.png: cannot be stored" in rows["error"][4]
    assert read_image(tmp_path / "out/1/1.png").pixels.shape == (1, 1, 3)


def test_a_store_that_is_no_folder_holds_whole_files_only(pictures, tmp_path):
    pytest.importorskip("pyarrow", reason="needs pip install 'ldm_dream[bulk]'")
    store = pytest.importorskip("fsspec").filesystem("memory")
    for name in ("0/0.png", "bad.png"):
        store.pipe_file(f"/raw/{name}", (pictures / name).read_bytes())
    load = partial(Double, tmp_path / "marks")
    stored = Worker("fsspec+memory:///raw", "fsspec+memory:///x2", load, None, {}, Pool())
    names = np.array(["0/0.png", "bad.png"])
    for status in ("done", "skipped"):
        assert stored({"source": names, "target": names})["status"].tolist() == [status, "failed"]
    assert store.find("/x2") == ["/x2/0/0.png"]
    content = store.cat_file("/x2/0/0.png")
    assert read_image("0.png", content=content).pixels.shape == (16, 16, 3)


@needs
def test_impossible_stores_are_one_sentence(pictures, tmp_path, monkeypatch):
    with pytest.raises(BatchError, match="holds no picture"):
        upscale_store(str(tmp_path / "marks"), str(tmp_path / "out"))
    write_image(pictures / "0/0.jpg", Image(np.zeros((1, 1, 3), np.uint8)))
    with pytest.raises(BatchError, match=r"0\.jpg and .*0\.png would both become 0/0\.webp"):
        upscale_store(str(pictures), str(tmp_path / "out"), naming=Naming(ext="webp"))


def test_without_ray_one_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    monkeypatch.delitem(__import__("sys").modules, "ray.data", raising=False)
    with pytest.raises(MissingRay, match=r"pip install 'ldm_dream\[bulk\]'"):
        upscale_store("in", "out")
