"""Pairs whose LR pictures are blindly degraded: where a patch lies, and what it depends on."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from degradations import HARMLESS, smooth

from ldm_dream.config.data import BlindConfig, DataConfig, FirstOrder, SecondOrder
from ldm_dream.config.run import MAY_CHANGE
from ldm_dream.data.images import Image, read_image, write_image
from ldm_dream.data.pairs import (
    Batch,
    PairDataset,
    Request,
    to_float,
)
from ldm_dream.data.resize import degrade
from ldm_dream.data.validation import validation_pairs
from ldm_dream.data.windows import JPEG_BLOCK, MARGIN, degrades_on_device, window_of
from ldm_dream.training.distributed import Rank
from ldm_dream.training.latents import LatentDataset
from ldm_dream.training.start import Start
from ldm_dream.training.trainer import Trainer
from runs import diffusion_run


class Halves(torch.nn.Conv2d):
    """An encoder that keeps what it saw."""

    def encode(self, x):
        return torch.nn.functional.avg_pool2d(x, 4)


@pytest.fixture
def folder(tmp_path):
    for i in range(4):
        write_image(tmp_path / f"{i}.png", Image(smooth(70 + 8 * i, 140 - 9 * i)))
    return tmp_path


def config(folder, degradation=BlindConfig(), **knobs) -> DataConfig:  # noqa: B008
    return DataConfig(
        train=(str(folder),), val=(str(folder),), degradation=degradation, **{"patch": 32, **knobs}
    )


def samples(data: PairDataset, *numbers: int) -> Batch:
    return data.finish(data.load(Request(numbers, data.cfg.patch)))


def test_a_blind_sample_is_a_function_of_seed_and_number(folder):
    walked = PairDataset(config(folder), scale=4, seed=7)
    history = [walked.batch(step, 3) for step in range(3)]
    alone = samples(PairDataset(config(folder), scale=4, seed=7), 8)
    assert torch.equal(alone.lr[0], history[2].lr[2]) and torch.equal(alone.hr[0], history[2].hr[2])
    assert not torch.equal(samples(PairDataset(config(folder), scale=4, seed=8), 8).lr, alone.lr)
    assert alone.lr.shape == (1, 3, 8, 8) and alone.lr.min() >= -1 and alone.lr.max() <= 1


@pytest.mark.parametrize("pool", [0, 4])
def test_pairs_degraded_on_the_device_are_those_of_the_loader(folder, pool):
    """Of the same device: `load` leaves them to `finish`, from the same windows and plans."""
    found = []
    for on_device in (False, True):
        data = PairDataset(config(folder), scale=4, seed=7)
        data.degrades_on_device = on_device
        loaded = data.load(data.request(1, 4))
        assert (loaded.lr is None) == (loaded.windows is not None) == on_device
        made = LatentDataset(data, Halves(1, 1, 1), pool, with_hr=True) if pool else data
        found.append([made.batch(number, 4) for number in range(2)])
    for plain, again in zip(*found):
        assert torch.equal(plain.lr, again.lr) and torch.equal(plain.hr, again.hr)


def test_hr_patches_are_those_of_the_bicubic_run(folder):
    bicubic = PairDataset(DataConfig(train=(str(folder),), patch=32), scale=4, seed=7).batch(0, 6)
    found = PairDataset(config(folder), scale=4, seed=7).batch(0, 6)
    assert found.draws == bicubic.draws and torch.equal(found.hr, bicubic.hr)


def test_blind_lr_lies_where_its_hr_patch_lies(folder):
    """Blind lr lies where its hr patch lies in every symmetry and at every border."""
    data = PairDataset(config(folder, HARMLESS), scale=4, seed=0)
    bicubic = PairDataset(DataConfig(train=(str(folder),), patch=32), scale=4, seed=0)
    numbers = range(60)
    found, expected = samples(data, *numbers), samples(bicubic, *numbers)
    assert {draw.symmetry for draw in found.draws} == set(range(8))
    for lr, wanted, other in zip(found.lr, expected.lr, expected.lr.roll(1, -1)):
        assert (lr - wanted).abs().mean() < 0.06 < (lr - other).abs().mean()


def test_a_patch_is_degraded_with_its_real_neighbours(folder):
    hr = torch.from_numpy(read_image(folder / "3.png").pixels).permute(2, 0, 1)[:, :92, :112]
    margin = (MARGIN + JPEG_BLOCK) * 4
    padded = np.pad(
        hr.numpy(), ((0, 0), (margin, 2 * margin), (margin, 2 * margin)), mode="symmetric"
    )
    shapes = set()
    for top, left in [(0, 0), (15, 20), (10, 13), (11, 0)]:
        (rows, columns), (y, x) = window_of(top, left, 8, 4, (92, 112))
        window = hr[:, rows][:, :, columns]
        shapes.add(window.shape)
        assert min(y, x) >= MARGIN and max(y, x) + 8 + MARGIN <= window.shape[-1] / 4
        assert (top - y) % JPEG_BLOCK == (left - x) % JPEG_BLOCK == 0
        row, column = (top - y) * 4 + margin, (left - x) * 4 + margin
        expected = padded[:, row : row + window.shape[1], column : column + window.shape[2]]
        np.testing.assert_array_equal(window, expected)
    assert len(shapes) == 1


def test_at_scale_one_lr_is_degraded_too(folder):
    batch = PairDataset(config(folder), scale=1, seed=0).batch(0, 2)
    assert batch.lr.shape == batch.hr.shape and not torch.equal(batch.lr, batch.hr)


def test_validation_pictures_keep_their_degradation(folder):
    """Validation pictures keep their degradation whatever is chosen beside them."""
    full = {name: lr for name, _, lr in validation_pairs(config(folder), 4, limit=4, crop=64)}
    few = {name: lr for name, _, lr in validation_pairs(config(folder), 4, limit=2, crop=64)}
    assert list(few) == ["0", "3"] and all(torch.equal(full[name], lr) for name, lr in few.items())
    assert full["0"].shape == (1, 3, 16, 16)
    for (_, hr, lr), (_, _, clean) in zip(
        *(validation_pairs(c, 4, 1, 64) for c in (config(folder), config(folder, HARMLESS)))
    ):
        bicubic = to_float(degrade(((hr + 1) * 127.5).round().to(torch.uint8), 4))
        assert (clean - bicubic).abs().mean() < 0.06 < (lr - bicubic).abs().mean()


def test_cached_latents_belong_to_the_lr_patch_that_their_sample_shows(folder):
    data = LatentDataset(
        PairDataset(config(folder), scale=4, seed=0), Halves(1, 1, 1), 4, with_hr=True
    )
    rounds = [data.batch(number, 4) for number in range(3)]
    for batch in rounds:
        seen = [
            next(i for i, hr in enumerate(rounds[0].hr) if torch.equal(hr, other))
            for other in batch.hr
        ]
        assert torch.equal(batch.lr, rounds[0].lr[seen]) and torch.equal(
            batch.z_lr, rounds[0].z_lr[seen]
        )


@pytest.mark.parametrize(
    ("where", "device", "cores", "processes", "wanted"),
    [
        (None, "cuda", 8, 1, False),
        (None, "cuda", 7, 1, True),
        (None, "cuda", 16, 4, True),
        (None, "cpu", 1, 1, False),
        ("device", "cpu", 16, 1, True),
        ("device", "cuda", 16, 1, True),
        ("workers", "cuda", 1, 1, False),
    ],
)
def test_a_gpu_degrades_where_workers_are_few(monkeypatch, where, device, cores, processes, wanted):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    cfg = DataConfig(degradation=BlindConfig(), degrade_on=where)
    assert degrades_on_device(cfg, device) == wanted
    webp = BlindConfig(first=FirstOrder(webp_prob=0.1))
    assert not degrades_on_device(DataConfig(degradation=webp), device)


def test_where_to_degrade_needs_something_to_degrade(folder):
    assert config(folder).model_copy(update={"degrade_on": "device"}).degrade_on
    with pytest.raises(ValueError, match="data.degrade_on=workers has no effect without"):
        DataConfig(train=("t",), degrade_on="workers")
    with pytest.raises(ValueError, match="cannot compress as WebP"):
        webp = BlindConfig(second=SecondOrder(webp_prob=0.1))
        DataConfig(train=("t",), degradation=webp, degrade_on="device")
    assert not any(knob.startswith("data.degrade_on") for knob in MAY_CHANGE)


def test_a_run_says_where_it_degrades(tmp_path):
    run = diffusion_run(tmp_path)
    for where in ("workers", "device"):
        data = run.data.model_copy(update={"degradation": BlindConfig(), "degrade_on": where})
        start = Start(run.model_copy(update={"data": data}))
        trainer = Trainer(start, Rank(0, 1, torch.device("cpu")), tmp_path / "run")
        assert isinstance(trainer.data, PairDataset)
        assert trainer.data.degrades_on_device == (where == "device")
