"""Laws of training and validation on LR pictures that are given."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from ldm_dream.config.data import DataConfig
from ldm_dream.config.files import load_config
from ldm_dream.config.run import MAY_CHANGE, AutoencoderRun, DiffusionRun
from ldm_dream.data.images import Image, write_image
from ldm_dream.data.listing import DataError
from ldm_dream.data.pairs import PairDataset, Request
from ldm_dream.data.validation import validation_pairs
from ldm_dream.errors import ConfigError
from ldm_dream.networks.vqgan import VQGAN
from ldm_dream.training.check import check_run
from ldm_dream.training.latents import LatentDataset
from ldm_dream.training.run_folder import changes
from runs import VQGAN_TINY

SCALE = 2


def hr_picture(i: int) -> np.ndarray:
    """Of a size of its own, mostly no multiple of the scale."""
    shape = (26 + 3 * i, 31 + i, 3)
    return np.random.default_rng(i).integers(0, 256, shape, dtype=np.uint8)


def lr_picture(i: int, up: bool = False) -> np.ndarray:
    """HR cut (or, with `up`, as MATLAB does it, one more row and column where it is no multiple), each
    pixel the upper left one of its cell and inverted: as no degradation here makes it.
    """
    hr = hr_picture(i)
    if not up:
        hr = hr[: hr.shape[0] // SCALE * SCALE, : hr.shape[1] // SCALE * SCALE]
    return np.ascontiguousarray(255 - hr[::SCALE, ::SCALE])


def make(folder: Path, hr: str = "hr/{}.png", lr: str = "lr/{}.png", count: int = 5) -> Path:
    for i in range(count):
        for name, pixels in ((hr, hr_picture(i)), (lr, lr_picture(i, up=bool(i % 2)))):
            path = folder / name.format(f"a{i}")
            path.parent.mkdir(parents=True, exist_ok=True)
            PIL.Image.fromarray(pixels).save(path, lossless=True)
    return folder


def config(folder: Path, hr: str = "hr", lr: str = "lr", **knobs) -> DataConfig:
    return DataConfig(
        **{"train": (f"{folder}/{hr}",), "lr": (f"{folder}/{lr}",), "patch": 16, **knobs}
    )


def dataset(folder: Path, *names: str, **knobs) -> PairDataset:
    return PairDataset(config(folder, *names, **knobs), SCALE, seed=0)


def is_pair(hr: torch.Tensor, lr: torch.Tensor) -> bool:
    return torch.allclose(lr, -hr[..., ::SCALE, ::SCALE], atol=1e-6)


# names of the files of a pair, and the entries that find them
NAMINGS = [
    ("hr/{}.png", "lr/{}.png", "hr", "lr"),  # the same names
    ("hr/b/{}.png", "lr/b/{}.webp", "hr", "lr"),  # in a subfolder, of another kind
    ("hr/{}.png", "X2/{}x2.png", "hr", "X2/{}x2"),  # DIV2K
    ("all/{}_HR.png", "all/{}_LR2.png", "all/{}_HR", "all/{}_LR2"),  # RealSR
    ("scans/{}/high/0.png", "scans/{}/low/0.png", "scans/{}/high/0", "scans/{}/low/0.png"),
]


@pytest.mark.parametrize(("hr", "lr", "train", "given"), NAMINGS)
def test_pairs_are_found_by_their_names(tmp_path, hr, lr, train, given):
    make(tmp_path, hr, lr)
    data = dataset(tmp_path, train, given, augment="none")
    batch = data.batch(0, 20)
    assert len(data) == 5 and {draw.picture for draw in batch.draws} == set(range(5))
    assert batch.lr.shape == (20, 3, 8, 8) and is_pair(batch.hr, batch.lr)


def test_a_patch_and_its_lr_are_turned_alike(tmp_path):
    data = dataset(make(tmp_path))
    samples = [data.finish(data.load(Request((n,), 16))) for n in range(40)]
    assert {s.draws[0].symmetry for s in samples} == set(range(8))
    for s in samples:  # a turn moves the pixel that LR shows within its cell
        cells = -s.hr.unfold(2, SCALE, SCALE).unfold(3, SCALE, SCALE).flatten(4)
        assert (cells - s.lr[..., None]).abs().amin(-1).max() < 1e-6
    copy = pickle.loads(pickle.dumps(data))
    assert torch.equal(copy.batch(3, 4).lr, data.batch(3, 4).lr)


def test_at_scale_one_lr_is_what_is_given(tmp_path):
    for folder, sign in (("hr", False), ("lr", True)):
        (tmp_path / folder).mkdir()
        pixels = hr_picture(0)
        write_image(tmp_path / folder / "x.png", Image(255 - pixels if sign else pixels))
    batch = PairDataset(config(tmp_path), 1, seed=0).batch(0, 3)
    assert torch.allclose(batch.lr, -batch.hr, atol=1e-6)


def test_lists_and_lmdbs_give_pairs_too(tmp_path):
    lmdb = pytest.importorskip("lmdb")
    make(tmp_path)
    files = dataset(tmp_path).batch(1, 6)
    for name, ending in (("hr", ""), ("lr", "x2")):
        lines = [f"{name}/a{i}.png" for i in range(5)]
        (tmp_path / f"{name}.txt").write_text("\n".join(lines))
        values = {
            f"x/{Path(line).stem}{ending}".encode(): (tmp_path / line).read_bytes()
            for line in lines
        }
        place = str(tmp_path / f"{name}.lmdb")
        with lmdb.open(place, map_size=2**24) as opened, opened.begin(write=True) as transaction:
            for key, value in values.items():
                transaction.put(key, value)
    for names in (
        ("hr.lmdb", "lr.lmdb/{}x2"),
        ("hr.lmdb/x/{}", "lr.lmdb/x/{}x2"),
        ("hr.txt/hr/{}", "lr.txt/lr/{}"),
    ):
        found = dataset(tmp_path, *names).batch(1, 6)
        assert torch.equal(found.hr, files.hr) and torch.equal(found.lr, files.lr)


def test_the_memory_budget_changes_no_batch(tmp_path):
    make(tmp_path)
    wanted = dataset(tmp_path).batch(1, 6)
    tight = dataset(tmp_path, keep_gib=0)
    tight.batch(0, 6)
    found = tight.batch(1, 6)  # of pictures that were read whole before
    assert torch.equal(found.hr, wanted.hr) and torch.equal(found.lr, wanted.lr)


def test_other_lr_pictures_are_another_set(tmp_path):
    make(tmp_path)
    before = dataset(tmp_path).fingerprint()
    assert dataset(tmp_path).fingerprint() == before
    write_image(tmp_path / "lr/a2.png", Image(lr_picture(2) // 2))
    assert dataset(tmp_path).fingerprint() != before


def test_an_lr_picture_that_cannot_be_read_takes_its_pair_out(tmp_path, caplog):
    make(tmp_path, count=12)
    path = tmp_path / "lr/a1.png"
    path.write_bytes(path.read_bytes()[:200])  # its header is whole
    data = dataset(tmp_path)
    data.batch(0, 12)
    assert [data.pictures.name(i) for i in data.bad] == ["a1"] and "lr/a1.png" in caplog.text
    path.write_text("no picture")
    assert len(dataset(tmp_path)) == 11


def _lost(folder: Path) -> None:
    (folder / "lr/a3.png").unlink()


def _misfit(folder: Path) -> None:
    write_image(folder / "lr/a2.png", Image(hr_picture(2)))


def _twice(folder: Path) -> None:
    write_image(folder / "lr/a2.jpg", Image(lr_picture(2)))
    (folder / "lr/a2.png").rename(folder / "lr/a2.webp")


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (
            _lost,
            r"data.lr: 1 of 5 pictures of .*/hr have no LR picture in .*/lr, such as a3.png; add",
        ),
        (
            _misfit,
            r"data.lr: 1 of 5 pairs do not fit, such as .*/hr/a2.png and .*/lr/a2.png: "
            "HR has 33x32 pixels and LR 33x32; at scale 2 LR has 16x16",
        ),
        (
            _twice,
            r"a2.png has several LR pictures in .*/lr: a2.(jpg|webp), a2.(jpg|webp); leave one",
        ),
    ],
)
def test_a_pair_that_is_none_stops_with_its_name(tmp_path, spoil, says):
    spoil(make(tmp_path))
    with pytest.raises(DataError, match=says):
        dataset(tmp_path)


def test_a_pattern_that_finds_nothing_or_the_picture_itself_is_refused(tmp_path):
    make(tmp_path)
    with pytest.raises(
        DataError, match="data.lr: .*/lr: none of its 5 pictures has a name like {}x4"
    ):
        dataset(tmp_path, "hr", "lr/{}x4")
    with pytest.raises(DataError, match="data.lr: .*/hr/a0.png would be its own LR picture"):
        dataset(tmp_path, "hr", "hr")
    with pytest.raises(DataError, match="data.lr: .*/none: no such file or folder"):
        dataset(tmp_path, "hr", "none")


# ----------------------------------------------------------------------------------------- validation


def test_validation_cuts_a_given_pair_at_one_place(tmp_path):
    make(tmp_path)
    cfg = DataConfig(
        val=(f"{tmp_path}/hr",), val_lr=(f"{tmp_path}/lr",), degradation={"kind": "blind"}
    )
    for crop, most in ((None, 32), (16, 16)):
        found = validation_pairs(cfg, SCALE, limit=9, crop=crop)
        assert [name for name, _, _ in found] == [f"a{i}" for i in range(5)]
        assert max(hr.shape[-1] for _, hr, _ in found) == most
        assert all(is_pair(hr, lr) for _, hr, lr in found)


def test_a_part_of_the_training_pairs_validates(tmp_path):
    make(tmp_path, count=10)
    data = dataset(tmp_path, val_fraction=0.3)
    found = validation_pairs(data.cfg, SCALE, limit=99, crop=None)
    assert len(found) + len(data) == 10 and all(is_pair(hr, lr) for _, hr, lr in found)
    batch = dataset(tmp_path, val_fraction=0.3, augment="none").batch(0, 9)
    assert is_pair(batch.hr, batch.lr)


def test_a_validation_pair_that_does_not_fit_is_refused(tmp_path):
    _misfit(make(tmp_path))
    cfg = DataConfig(val=(f"{tmp_path}/hr",), val_lr=(f"{tmp_path}/lr",))
    with pytest.raises(DataError, match="data.val_lr: .*/hr/a2.png and .*/lr/a2.png: HR has 33x32"):
        validation_pairs(cfg, SCALE, limit=9, crop=None)


# -------------------------------------------------------------------------------- with the other knobs


def test_cached_latents_are_of_the_given_pictures(tmp_path):
    data = LatentDataset(
        dataset(make(tmp_path), augment="none"), VQGAN(VQGAN_TINY), 6, with_hr=True
    )
    for number in range(3):
        batch = data.batch(number, 4)
        assert batch.hr is not None and is_pair(batch.hr, batch.lr)


@pytest.mark.parametrize(
    ("knobs", "says"),
    [
        ({"lr": ("a", "b")}, "data.lr names 2 places and data.train 1; give one for each"),
        ({"lr": ("a",), "degradation": {"kind": "blind"}}, "data.degradation has no effect"),
        ({"lr": ("a",), "scales": (1, 2)}, "data.scales has no effect"),
        ({"lr": ("a",), "val": ("v",)}, "set data.val_lr"),
        ({"val": ("v",), "val_fraction": 0.1}, "both say what validates"),
        ({"val_lr": ("a",)}, "data.val_lr names 1 places and data.val 0"),
        ({"val_fraction": 1.0}, "val_fraction"),
        ({"lr": ("{}/{}",)}, "more than once"),
    ],
)
def test_knobs_that_do_not_fit_are_refused(knobs, says):
    with pytest.raises(ValueError, match=says):
        DataConfig(train=("t",), **knobs)


def test_a_knob_that_does_not_fit_is_one_sentence_of_a_config(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("task: diffusion\ndata: {train: [t], lr: [a], scales: [1, 2]}\n")
    with pytest.raises(ConfigError, match="data.scales has no effect") as caught:
        load_config(path, [])
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="an autoencoder sees only HR"):
        AutoencoderRun(data={"train": ("t",), "lr": ("l",)})


def test_places_may_change_in_a_run_and_the_split_may_not():
    def run(**data):
        return DiffusionRun(data={"train": ("t",), "patch": 128, **data})

    assert changes(run(lr=("a",)), run(lr=("b",))).keys() <= set(MAY_CHANGE)
    assert not changes(run(), run(val_fraction=0.1)).keys() <= set(MAY_CHANGE)


def test_a_run_folder_within_the_pictures_of_a_pattern_is_refused(tmp_path):
    run = DiffusionRun(data={"train": (f"{tmp_path}/{{}}_HR",), "patch": 128})
    with pytest.raises(ConfigError, match="lies in the data folder"):
        check_run(run, tmp_path / "run")
