"""Laws of the loader: what is loaded ahead, in whatever process, is what is loaded when it is asked."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from ldm_dream.config.data import DataConfig
from ldm_dream.data.images import Image, write_image
from ldm_dream.data.loader import Loader, LoaderError
from ldm_dream.data.pairs import Batch, PairDataset
from ldm_dream.data.sources import DataError

KNOBS = {"kept": {}, "not kept": {"keep_gib": 0}, "blind": {"degradation": {"kind": "blind"}}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pictures of different sizes, one of them broken."""
    folder = tmp_path_factory.mktemp("pictures")
    for i in range(7):
        pixels = np.random.default_rng(i).integers(
            0, 256, (60 + 5 * i, 90 - 3 * i, 3), dtype=np.uint8
        )
        write_image(folder / f"{i}.{'jpg' if i % 2 else 'png'}", Image(pixels))
    broken = folder / "2.png"
    broken.write_bytes(broken.read_bytes()[:9000])
    return folder


def pairs(folder, **knobs) -> PairDataset:
    train = DataConfig(train=(str(folder),), patch=32, max_bad_fraction=0.5, **knobs)
    return PairDataset(train, scale=4, seed=3)


def paths(data: PairDataset) -> list[Path]:
    return [Path(data.pictures.path(i)) for i in range(len(data.pictures))]


def loaded(data: PairDataset, numbers, workers: int) -> Iterator[Batch]:
    loader = Loader(data, numbers, 4, lambda x: x, workers, prefetch=2)
    try:
        yield from loader
    finally:
        loader.close()


def same(found: Batch, wanted: Batch) -> bool:
    return (
        found.draws == wanted.draws
        and torch.equal(found.hr, wanted.hr)
        and torch.equal(found.lr, wanted.lr)
    )


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("kind", KNOBS)
def test_no_batch_depends_on_how_many_workers_load(folder, kind):
    wanted = [pairs(folder, **KNOBS[kind]).batch(number, 4) for number in range(6)]
    for workers in {"kept": (0, 1, 2, 4), "not kept": (0, 2), "blind": (2,)}[kind]:
        found = list(loaded(pairs(folder, **KNOBS[kind]), range(6), workers))
        assert len(found) == 6 and all(map(same, found, wanted)), workers


def test_after_a_worker_is_killed_one_sentence_then_the_same_batches(folder):
    plain = pairs(folder)
    batches = loaded(pairs(folder), range(10**6), 2)
    assert same(next(batches), plain.batch(0, 4))
    for worker in multiprocessing.active_children():
        worker.kill()
    with pytest.raises(LoaderError, match="killed from outside, most often because memory ran out"):
        for _ in batches:
            pass
    again = loaded(pairs(folder), range(3, 6), 1)
    assert all(same(batch, plain.batch(number, 4)) for number, batch in enumerate(again, 3))


def test_mistakes_that_workers_meet_come_as_they_are(folder, tmp_path, caplog):
    def told(workers: int) -> str:
        data = pairs(folder)
        for path in paths(data):  # their headers stay as they were
            path.write_bytes(kept[path][: len(kept[path]) // 2])
        caplog.clear()
        with pytest.raises(DataError) as error:
            list(loaded(data, range(8), workers))
        for path in paths(data):
            path.write_bytes(kept[path])
        return f"{error.value} {caplog.text}"

    kept = {path: path.read_bytes() for path in paths(pairs(folder))}
    inline, from_worker = told(0), told(1)
    assert "cannot be read" in inline and "Traceback" not in inline
    assert from_worker == inline


def test_workers_share_what_is_kept(folder, monkeypatch):
    data = pairs(folder)
    assert len(list(loaded(data, range(8), 2))) == 8
    monkeypatch.setattr(data.pictures, "read", None)  # a worker has read what is there
    assert len([data.batch(number, 1) for number in range(6)]) == 6
