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
from PIL import Image as PillowImage

from ldm_dream.data.images import Image, ImageError, read_image, write_image
from ldm_dream.data.metadata import Metadata
from ldm_dream.upscaling.devices import UpscaleError
from ldm_dream.upscaling.engine import Options
from ldm_dream.upscaling.planning import BatchError, Naming
from ldm_dream.upscaling.ray import Files, MissingRay, Pool, Worker, _named, upscale_store

ROOT = Path(__file__).resolve().parents[2]
COUNT = 8
AS_IT_IS = Pool(), None, Files(), Options()  # of a Worker
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

    def __call__(self, image: Image, scale: float | None, **options) -> Image:
        height = len(image.pixels)
        if height == self.height and not (self.marks / "killed").exists():
            (self.marks / "killed").touch()
            self._wait_until_stored()
            os.kill(os.getpid(), signal.SIGKILL)
        (self.marks / f"{height}-{os.getpid()}").touch()
        return replace(image, pixels=image.pixels.repeat(2, 0).repeat(2, 1))

    def _wait_until_stored(self) -> None:
        """What this process has upscaled."""
        heights = [int(path.name.partition("-")[0]) for path in self.marks.glob(f"*-{os.getpid()}")]
        results = [self.marks.parent / "out" / name_of(height - 8) for height in heights]
        end = time.monotonic() + 60
        while not all(result.exists() for result in results) and time.monotonic() < end:
            time.sleep(0.01)


def name_of(number: int) -> str:
    return f"{number % 2}/{number}.png"


@pytest.fixture
def pictures(tmp_path) -> Path:
    """0.png and the like, in one of which are no pixels; by their heights told apart."""
    rng = np.random.default_rng(0)
    for number in range(COUNT):
        pixels = rng.integers(0, 256, (8 + number, 8, 3), dtype=np.uint8)
        write_image(tmp_path / "in" / name_of(number), Image(pixels))
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
        name = name_of(number)
        wanted = read_image(pictures / name).pixels.repeat(2, 0).repeat(2, 1)
        assert np.array_equal(read_image(out / name).pixels, wanted)
    assert sum(path.is_file() for path in out.rglob("*")) == COUNT
    status = {row["source"]: row["status"] for row in rows}
    assert len(rows) == COUNT + 1 and status.pop("bad.png") == "failed"
    assert set(status.values()) <= {"done", "skipped"}  # skipped: by the one that was killed


def worker(pictures, tmp_path, load=None) -> Worker:
    load = load or partial(Double, tmp_path / "marks")
    return Worker(str(pictures), f"file://{tmp_path}/out", load, *AS_IT_IS)


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
    stored = Worker("fsspec+memory:///raw", "fsspec+memory:///x2", load, *AS_IT_IS)
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
        upscale_store(str(pictures), str(tmp_path / "out"), files=Files(ext="webp"))


@needs
@pytest.mark.parametrize("target", ["in", "in/x4", ".", "link", "in/../in/x4/", "file"])
def test_results_never_lie_among_the_pictures_of_a_store(pictures, tmp_path, target):
    (tmp_path / "link").symlink_to(pictures)
    place = f"file://{pictures}/x4" if target == "file" else str(tmp_path / target)
    with pytest.raises(BatchError, match="must be a place apart from .*; name another target"):
        upscale_store(str(pictures), place)
    for apart in ("in-x4", "x4"):
        upscale_store(str(pictures), str(tmp_path / apart))
    upscale_store(str(pictures), "fsspec+memory:///")


@needs
def test_impossible_options_of_a_store_end_before_ray_begins(pictures, tmp_path):
    places = str(pictures), str(tmp_path / "out")
    for error, options in (
        (TypeError, {"stepps": 3}),
        (UpscaleError, {"width": 0}),
        (UpscaleError, {"width": 100, "scale": 2}),
        (UpscaleError, {"color_fix": "none at all"}),
        (ImageError, {"files": Files(quality=101)}),
        (ImageError, {"files": Files(quality=80)}),  # of PNG
    ):
        with pytest.raises(error):
            upscale_store(*places, **options)


def test_names_in_a_store_do_not_depend_on_what_else_is_there():
    """So that a picture that comes later is not taken for done."""
    names = ["a.gif", "b/a.JPG"]
    wanted = [("a.gif", "a_gif_x2.png"), ("b/a.JPG", "b/a_x2.JPG")]
    assert _named(names, Naming("_x2")) == wanted
    assert _named([*names, "a.png"], Naming("_x2")) == [*wanted, ("a.png", "a_x2.png")]
    assert _named(names, Naming("", "webp"))[0] == ("a.gif", "a.webp")


def test_a_worker_takes_all_that_a_command_takes(pictures, tmp_path):
    pytest.importorskip("pyarrow", reason="needs pip install 'ldm_dream[bulk]'")
    asked = []

    def load():
        def upscale(image, scale, **options):
            asked.append((scale, options["width"], options["seed"]))
            return replace(image, pixels=image.pixels.repeat(5, 0).repeat(5, 1))

        upscale.scale = 4
        return upscale

    image = Image(np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8))
    write_image(pictures / "a.jpg", replace(image, metadata=Metadata({}, dpi=(300, 300))))
    sizes = []
    for quality in (20, 95):
        files = Files(quality=quality, keep_metadata=quality == 20)
        out = tmp_path / str(quality)
        how = Options(width=40, seed=3)
        worker = Worker(str(pictures), str(out), load, Pool(), None, files, how)
        names = np.array(["a.jpg"])
        assert worker({"source": names, "target": names})["width"].tolist() == [40]
        with PillowImage.open(out / "a.jpg") as result:
            assert (result.info.get("dpi") == (300, 300)) == files.keep_metadata
        sizes.append((out / "a.jpg").stat().st_size)
    assert sizes[0] < sizes[1]
    assert asked == [(None, 40, 3)] * 2


def test_without_ray_one_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    monkeypatch.delitem(__import__("sys").modules, "ray.data", raising=False)
    with pytest.raises(MissingRay, match=r"pip install 'ldm_dream\[bulk\]'"):
        upscale_store("in", "out")
