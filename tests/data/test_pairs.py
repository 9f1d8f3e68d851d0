"""Laws of training and validation pairs."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch

from ldm_dream.config.data import DataConfig
from ldm_dream.data import pairs
from ldm_dream.data.images import Image, ImageError, read_image, write_image
from ldm_dream.data.pairs import Batch, PairDataset, Request
from ldm_dream.data.resize import degrade, imresize_levels
from ldm_dream.data.sources import DataError
from ldm_dream.data.validation import validation_pairs


@pytest.fixture
def folder(tmp_path):
    """Ten pictures of different sizes, two of them in a subfolder."""
    (tmp_path / "sub").mkdir()
    for i in range(10):
        pixels = np.random.default_rng(i).integers(
            0, 256, (41 + 3 * i, 70 - 2 * i, 3), dtype=np.uint8
        )
        write_image(tmp_path / ("sub" if i > 7 else ".") / f"{i}.png", Image(pixels))
    return tmp_path


def config(folder, **knobs) -> DataConfig:
    return DataConfig(**{"train": (str(folder),), "patch": 16, **knobs})


def samples(data: PairDataset, *numbers: int) -> Batch:
    return data.finish(data.load(Request(numbers, data.cfg.patch)))


def test_shapes_and_ranges(folder):
    batch = PairDataset(config(folder), scale=4, seed=0).batch(3, 5)
    assert (
        batch.hr.shape == (5, 3, 16, 16)
        and batch.lr.shape == (5, 3, 4, 4)
        and len(batch.draws) == 5
    )
    assert batch.hr.dtype == batch.lr.dtype == torch.float32
    assert batch.hr.min() >= -1 and batch.hr.max() <= 1 and batch.hr.std() > 0.3


def test_each_picture_counts_once_for_the_first_that_holds_it(folder):
    sub, one = str(folder / "sub"), str(folder / "0.png")
    train = (one, sub, str(folder))
    counts = PairDataset(config(folder, train=train), scale=4, seed=0).counts()
    assert counts == {one: 1, sub: 2, str(folder): 7}


def test_what_a_training_folder_holds_besides_is_said(folder, caplog):
    (folder / ".thumbs").mkdir()
    (folder / "note.txt").touch()
    PairDataset(config(folder), scale=4, seed=0)
    assert f"data.train: {folder} also holds 1 hidden folder, 1 txt; not used." in caplog.text


def test_a_batch_depends_on_seed_and_step_and_not_on_history(folder):
    walked = PairDataset(config(folder), scale=4, seed=7)
    history = [walked.batch(step, 3) for step in range(6)]
    resumed = PairDataset(config(folder), scale=4, seed=7).batch(5, 3)
    assert resumed.draws == history[5].draws
    assert torch.equal(resumed.hr, history[5].hr) and torch.equal(resumed.lr, history[5].lr)
    other = PairDataset(config(folder), scale=4, seed=8).batch(5, 3)
    assert not torch.equal(other.hr, resumed.hr)
    assert not torch.equal(history[4].hr, resumed.hr)


def test_an_epoch_shows_each_picture_once_in_its_own_order(folder):
    """An epoch shows each picture once and the next one in another order."""
    data = PairDataset(config(folder), scale=4, seed=0)
    shown = [samples(data, n).draws[0].picture for n in range(20)]
    assert sorted(shown[:10]) == sorted(shown[10:]) == list(range(10)) and shown[:10] != shown[10:]


def test_lr_patches_are_cut_from_the_degraded_whole_picture(folder):
    data = PairDataset(config(folder, augment="none"), scale=4, seed=0)
    batch = data.batch(0, 8)
    for i, draw in enumerate(batch.draws):
        hr = torch.from_numpy(
            read_image(data.pictures.path(data.used[draw.picture])).pixels
        ).permute(2, 0, 1)
        hr = hr[:, : hr.shape[1] // 4 * 4, : hr.shape[2] // 4 * 4]
        lr = degrade(hr, 4)[:, draw.top : draw.top + 4, draw.left : draw.left + 4]
        top, left = 4 * draw.top, 4 * draw.left
        assert torch.equal(batch.lr[i], lr.float() * (2 / 255) - 1)
        assert torch.equal(
            batch.hr[i], hr[:, top : top + 16, left : left + 16].float() * (2 / 255) - 1
        )


def test_augmentation_uses_all_eight_symmetries_alike_on_hr_and_lr(folder):
    data = PairDataset(config(folder), scale=1, seed=0)
    assert {samples(data, n).draws[0].symmetry for n in range(100)} == set(range(8))
    square = torch.arange(64.0).view(1, 8, 8)
    turned = {tuple(pairs.symmetry(square, k).flatten().tolist()) for k in range(8)}
    assert len(turned) == 8
    for k in range(8):  # a symmetry commutes with averaging 2x2 cells, so hr and lr stay aligned
        small = torch.nn.functional.avg_pool2d(square, 2)
        assert torch.equal(
            torch.nn.functional.avg_pool2d(pairs.symmetry(square, k), 2), pairs.symmetry(small, k)
        )


def test_without_augmentation_nothing_is_turned(folder):
    data = PairDataset(config(folder, augment="none"), scale=4, seed=0)
    assert {samples(data, n).draws[0].symmetry for n in range(30)} == {0}


def test_hflip_only_mirrors(folder):
    data = PairDataset(config(folder, augment="hflip"), scale=4, seed=0)
    assert {samples(data, n).draws[0].symmetry for n in range(30)} == {0, 1}


def test_every_place_of_a_picture_can_be_drawn(tmp_path):
    write_image(tmp_path / "x.png", Image(np.zeros((24, 20, 3), np.uint8)))
    data = PairDataset(config(tmp_path), scale=4, seed=0)
    draws = [samples(data, n).draws[0] for n in range(100)]
    assert {d.top for d in draws} == {0, 1, 2} and {d.left for d in draws} == {0, 1}


def test_at_scale_one_lr_is_hr(folder):
    batch = PairDataset(config(folder), scale=1, seed=0).batch(0, 2)
    assert batch.lr is batch.hr


def test_small_pictures_are_left_out_and_counted(folder, caplog):
    write_image(folder / "tiny.png", Image(np.zeros((15, 99, 3), np.uint8)))
    with caplog.at_level(logging.WARNING):
        data = PairDataset(config(folder), scale=4, seed=0)
    assert len(data) == 10 and [data.pictures.name(i) for i in data.small] == ["tiny"]
    assert "1 of 11 pictures are smaller than data.patch=16" in caplog.text


def truncate(path):
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def test_unreadable_files_are_named_once_and_replaced(folder, caplog):
    """Unreadable files are named once and replaced by the next readable one."""
    whole = PairDataset(config(folder), scale=4, seed=0)
    planned = [samples(whole, n).draws[0].picture for n in range(20)]
    truncate(folder / "4.png")
    with caplog.at_level(logging.WARNING):
        data = PairDataset(config(folder), scale=4, seed=0)
        shown = [samples(data, n).draws[0].picture for n in range(20)]
    assert shown == [5 if picture == 4 else picture for picture in planned]
    assert [data.pictures.name(i) for i in data.bad] == ["4"]
    assert caplog.text.count("4.png") == 1


def test_too_many_unreadable_files_stop_with_the_last_reason(folder):
    (folder / "0.png").write_text("not a picture")
    assert len(PairDataset(config(folder), scale=4, seed=0)) == 9
    truncate(folder / "1.png")
    data = PairDataset(config(folder), scale=4, seed=0)
    with pytest.raises(DataError, match=r"2 of 10 pictures cannot be read.*1\.png"):
        for n in range(10):
            samples(data, n)


def test_only_unreadable_files_stop_even_when_all_are_allowed_to_be_bad(folder):
    for path in folder.rglob("*.png"):
        truncate(path)
    write_image(folder / "tiny.png", Image(np.zeros((9, 9, 3), np.uint8)))
    data = PairDataset(config(folder, max_bad_fraction=1), scale=4, seed=0)
    with pytest.raises(DataError, match="10 of 11"):
        samples(data, 0)


def test_excluded_parts_of_a_path_leave_pictures_out(folder):
    assert len(PairDataset(config(folder, exclude=("sub/",)), scale=4, seed=0)) == 8
    with pytest.raises(DataError, match="all 10 pictures are left out"):
        PairDataset(config(folder, exclude=(".png",)), scale=4, seed=0)


def test_a_folder_given_twice_counts_once(folder):
    data = PairDataset(
        DataConfig(train=(str(folder), str(folder / "sub")), patch=16), scale=4, seed=0
    )
    assert len(data) == 10


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"train": ()}, "data.train: no folder is given"),
        ({"train": ("/none/such",)}, "data.train: /none/such: no such file or folder"),
        ({"patch": 18}, "data.patch=18 is not a multiple of scale=4; set it to 16"),
        ({"patch": 512}, "none of 10 pictures can be used"),
    ],
)
def test_each_mistake_in_the_data_section_is_one_sentence(folder, knobs, message):
    with pytest.raises(DataError, match=message):
        PairDataset(config(folder).model_copy(update=knobs), scale=4, seed=0)


def test_a_batch_has_one_scale_that_depends_on_seed_and_number(folder):
    data = PairDataset(config(folder, scales=(1, 4)), scale=4, seed=7)
    batches = [data.batch(number, 2) for number in range(60)]
    sides = [batch.hr.shape[-1] for batch in batches]
    assert set(sides) == set(range(4, 17))
    resumed = PairDataset(config(folder, scales=(1, 4)), scale=4, seed=7).batch(40, 2)
    assert torch.equal(resumed.hr, batches[40].hr) and torch.equal(resumed.lr, batches[40].lr)
    other = PairDataset(config(folder, scales=(1, 4)), scale=4, seed=8)
    assert [other.batch(number, 1).hr.shape[-1] for number in range(60)] != sides


def test_scales_are_uniform(folder):
    # lr of 8: sides 12 .. 28
    data = PairDataset(config(folder, patch=32, scales=(1.5, 3.5)), scale=4, seed=0)
    sides = np.array([data._hr_side(number) for number in range(4000)])
    counts = np.bincount(sides, minlength=29)[12:]
    assert (
        counts.sum() == 4000
        and (abs(counts[1:-1] - 250) < 60).all()
        and (abs(counts[[0, -1]] - 125) < 45).all()
    )


@pytest.mark.parametrize("degradation", [{"kind": "bicubic"}, {"kind": "blind"}])
def test_a_random_scale_changes_only_hr_and_that_by_bicubic(folder, degradation):
    fixed = PairDataset(config(folder, degradation=degradation), scale=4, seed=0).batch(3, 4)
    found = PairDataset(
        config(folder, degradation=degradation, scales=(2.6, 2.7)), scale=4, seed=0
    ).batch(3, 4)
    assert found.draws == fixed.draws and torch.equal(found.lr, fixed.lr)
    # bicubic rounds rows before columns: it comes before turning
    for hr, wanted, draw in zip(found.hr, fixed.hr, found.draws):
        undo = draw.symmetry if draw.symmetry < 4 else (4, 6, 5, 7)[draw.symmetry - 4]
        levels = pairs.symmetry(((wanted + 1) * 127.5).round().to(torch.uint8), undo)
        resized = imresize_levels(levels, *hr.shape[-2:])
        assert hr.shape[-1] in (10, 11) and torch.equal(
            hr, pairs.to_float(pairs.symmetry(resized, draw.symmetry))
        )
    same = PairDataset(
        config(folder, degradation=degradation, scales=(4, 4)), scale=4, seed=0
    ).batch(3, 4)
    assert torch.equal(same.hr, fixed.hr)


def test_at_scale_one_the_hr_of_a_whole_picture_is_its_lr(tmp_path):
    write_image(
        tmp_path / "x.png",
        Image(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)),
    )
    batch = PairDataset(config(tmp_path, scales=(1, 1)), scale=4, seed=0).batch(0, 8)
    assert torch.equal(batch.hr, batch.lr)


def test_validation_pairs_are_centred_whole_test_pictures(folder):
    cfg = DataConfig(val=(str(folder),))
    found = validation_pairs(cfg, scale=2, limit=99, crop=40)
    assert [name for name, _, _ in found] == [str(i) for i in range(10)]
    for name, hr, lr in found:
        assert hr.shape == (1, 3, 32, 32) and lr.shape == (1, 3, 16, 16)
        levels = ((hr + 1) * 127.5).round().to(torch.uint8)
        assert torch.equal(pairs.to_float(degrade(levels, 2)), lr)
        whole = torch.from_numpy(read_image(next(folder.rglob(f"{name}.png"))).pixels).permute(
            2, 0, 1
        )
        top, left = (whole.shape[1] - 32) // 2, (whole.shape[2] - 32) // 2
        assert torch.equal(levels[0], whole[:, top : top + 32, left : left + 32])


def test_validation_pictures_are_spread_over_the_files(folder):
    cfg = DataConfig(val=(str(folder),))
    assert [name for name, _, _ in validation_pairs(cfg, 2, limit=4, crop=None)] == [
        "0",
        "3",
        "6",
        "9",
    ]
    assert [name for name, _, _ in validation_pairs(cfg, 2, limit=1, crop=None)] == ["0"]
    assert validation_pairs(cfg, 2, limit=0, crop=None) == []
    # 41x70 in multiples of 16
    assert validation_pairs(cfg, 2, limit=1, crop=None)[0][1].shape == (
        1,
        3,
        32,
        64,
    )


def test_validation_does_not_lose_pictures_silently(folder):
    cfg = DataConfig(val=(str(folder),))
    with pytest.raises(DataError, match="smaller than 64 pixels"):
        validation_pairs(cfg, 8, limit=3, crop=None)
    truncate(folder / "0.png")
    with pytest.raises(ImageError, match=r"0\.png"):
        validation_pairs(cfg, 2, limit=3, crop=None)
