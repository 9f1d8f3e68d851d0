"""Laws of where training pictures come from: folders, links, lists, LMDB, and their kept headers."""

from __future__ import annotations

import io
import logging
import os
import pickle
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from ldm_dream.config.data import DataConfig
from ldm_dream.config.places import Place, place_of
from ldm_dream.data import lmdb_store, scan
from ldm_dream.data.images import Image, ImageError, read_image, write_image
from ldm_dream.data.listing import DataError
from ldm_dream.data.pairs import PairDataset
from ldm_dream.data.sources import Part, Pictures
from ldm_dream.data.validation import validation_pairs


def pixels(seed: int, height: int = 24, width: int = 20) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encoded(array: np.ndarray, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    PIL.Image.fromarray(array).save(file, kind, lossless=True)
    return file.getvalue()


def fill(folder: Path, count: int = 4, first: int = 0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(first, first + count):
        (folder / f"{i}.png").write_bytes(encoded(pixels(i)))
    return folder


def pictures(*entries, exclude=(), **options) -> Pictures:
    return Pictures(tuple(map(str, entries)), exclude, "data.train", **options)


def lmdb_of(folder: Path, values: dict[bytes, bytes], meta: str | None = None) -> Path:
    lmdb = pytest.importorskip("lmdb")
    with (
        lmdb.open(str(folder), map_size=2**24) as environment,
        environment.begin(write=True) as transaction,
    ):
        for key, value in values.items():
            transaction.put(key, value)
    if meta is not None:
        (folder / "meta_info.txt").write_text(meta)
    return folder


def dataset(*entries, **knobs) -> PairDataset:
    cfg = DataConfig(train=tuple(map(str, entries)), **{"patch": 16, **knobs})
    return PairDataset(cfg, scale=4, seed=0)


# -------------------------------------------------------------------------------------------- folders


def test_linked_folders_are_followed_and_loops_are_cut(tmp_path, caplog):
    home, disk = fill(tmp_path / "home", 2), fill(tmp_path / "disk", 3, first=10)
    (home / "a-link").symlink_to(disk)
    (home / "same").symlink_to(disk)
    (disk / "up").symlink_to(home)
    (disk / "self").symlink_to(disk)
    found = pictures(home)
    assert found.names == ["0.png", "1.png", "a-link/10.png", "a-link/11.png", "a-link/12.png"]
    assert "also holds 3 link to a folder that is listed already; not used." in caplog.text


def test_a_folder_goes_by_its_own_name_and_not_by_a_link_to_it(tmp_path):
    fill(tmp_path / "z")
    (tmp_path / "a").symlink_to(tmp_path / "z")
    assert [name.split("/")[0] for name in pictures(tmp_path).names] == ["z"] * 4


def test_hidden_folders_are_not_looked_into_and_all_else_is_counted(tmp_path, caplog):
    fill(tmp_path)
    fill(tmp_path / ".thumbs")
    for name in (".hidden.png", "a.txt", "b.TXT", "c.svg", "noext"):
        (tmp_path / name).touch()
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere")
    assert len(pictures(tmp_path)) == 4
    assert (
        f"data.train: {tmp_path} also holds 1 hidden, 1 hidden folder, 1 no file, 1 svg, 2 txt, "
        "1 without a suffix; not used." in caplog.text
    )


def test_home_is_written_as_a_tilde(tmp_path, monkeypatch):
    fill(tmp_path / "photos")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert pictures("~/photos").counts([0, 1, 2, 3]) == {"~/photos": 4}
    assert place_of("~/a/{}_HR") == Place(tmp_path / "a", "{}_HR")


def test_overlapping_places_give_each_picture_once(tmp_path):
    fill(tmp_path / "sub")
    one, sub, whole = tmp_path / "sub/0.png", tmp_path / "sub", tmp_path
    found = pictures(one, sub, whole)
    assert found.counts(list(range(4))) == {str(one): 1, str(sub): 3, str(whole): 0}


def test_a_file_is_asked_once_for_what_the_fingerprint_says(tmp_path, monkeypatch):
    fill(tmp_path)
    asked, stat = [], os.stat
    monkeypatch.setattr(
        os, "stat", lambda path, *a, **k: asked.append(str(path)) or stat(path, *a, **k)
    )
    found = pictures(tmp_path)
    before = found.fingerprint([0, 1, 2, 3])
    assert asked.count(str(tmp_path / "1.png")) == 1
    monkeypatch.undo()
    (tmp_path / "1.png").write_bytes(encoded(pixels(1, 25)))
    assert pictures(tmp_path).fingerprint([0, 1, 2, 3]) != before
    assert pictures(tmp_path).fingerprint([0])["count"] == 1


# ---------------------------------------------------------------------------------------------- lists


@pytest.mark.parametrize("suffix", [".txt", ".lst"])
def test_a_list_names_pictures_relative_to_its_own_folder(tmp_path, suffix, monkeypatch, caplog):
    fill(tmp_path / "sub")
    far = fill(tmp_path / "far", 1, first=9)
    listed = tmp_path / f"some{suffix}"
    listed.write_text(f"# chosen\n\nsub/3.png\n  ./sub/1.png \n{far}/9.png\nsub/3.png\n")
    monkeypatch.chdir("/")
    found = pictures(listed)
    assert sorted(found.names) == ["far/9.png", "sub/1.png", "sub/3.png"]
    assert "1 line that stands there twice" in caplog.text
    assert torch.equal(found.read(1).permute(1, 2, 0), torch.from_numpy(pixels(1)))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("0.png\n# x\n7.png\n", r"all\.txt, line 3: .*/7\.png: no such file"),
        ("0.png\n.\n", r"all\.txt, line 2: .*: no file; a list names pictures"),
        ("# nothing\n", r"all\.txt: the list names no picture"),
    ],
)
def test_a_wrong_list_is_one_sentence_with_the_line(tmp_path, text, says):
    fill(tmp_path)
    (tmp_path / "all.txt").write_text(text)
    with pytest.raises(DataError, match=says):
        pictures(tmp_path / "all.txt")


# ----------------------------------------------------------------------------------------------- LMDB


def test_an_lmdb_gives_the_pictures_that_the_same_files_give(tmp_path):
    files = fill(tmp_path / "files", 6)
    values = {path.stem.encode(): path.read_bytes() for path in files.iterdir()}
    meta = "".join(f"{i}.png (24,20,3) 1\n" for i in range(6))
    ours = dataset(lmdb_of(tmp_path / "x.lmdb", values, meta))
    theirs = dataset(files)
    a, b = ours.batch(2, 4), theirs.batch(2, 4)
    assert a.draws == b.draws and torch.equal(a.hr, b.hr) and torch.equal(a.lr, b.lr)
    assert ours.counts() == {str(tmp_path / "x.lmdb"): 6}
    assert not (tmp_path / "files/lock.mdb").exists()


def test_sizes_stand_in_the_meta_file_of_basicsr(tmp_path, monkeypatch):
    place = lmdb_of(
        tmp_path / "x", {b"a.b": b"?", b"c": b"?"}, "a.b.png (40,30,3) 1\nc.png (9,8,1) 1\n"
    )
    monkeypatch.setattr(scan, "header_of", None)  # nothing is opened
    sizes, unreadable = pictures(place).sizes(4)
    assert sizes.tolist() == [[40, 30], [9, 8]] and not unreadable


def test_lsun_has_keys_without_meaning_and_webp(tmp_path):
    values = {bytes([7, 200, i]): encoded(pixels(i), "WEBP") for i in range(3)}
    found = pictures(lmdb_of(tmp_path / "bedroom_lmdb", values))
    assert found.sizes(4)[0].tolist() == [[24, 20]] * 3
    assert torch.equal(found.read(2).permute(1, 2, 0), torch.from_numpy(pixels(2)))


def test_an_open_lmdb_does_not_travel_with_the_pictures(tmp_path):
    found = pictures(lmdb_of(tmp_path / "x", {b"a": encoded(pixels(0)), b"b": encoded(pixels(1))}))
    ours = found.read(1)
    data = pickle.dumps(found)
    lmdb_store._opened.cache_clear()  # as in another process
    copy = pickle.loads(data)
    assert torch.equal(copy.read(1), ours) and copy.names == found.names and len(data) < 5000


def test_an_lmdb_without_its_package_says_what_to_install(tmp_path, monkeypatch):
    place = lmdb_of(tmp_path / "x", {b"a": encoded(pixels(0))})
    monkeypatch.setitem(sys.modules, "lmdb", None)
    with pytest.raises(
        DataError, match=r"LMDBs need the package lmdb, .*pip install 'ldm_dream\[data\]'"
    ):
        pictures(place)


def test_damaged_lmdbs_are_one_sentence(tmp_path):
    place = lmdb_of(tmp_path / "cut", {b"%d" % i: encoded(pixels(i)) for i in range(9)})
    with (place / "data.mdb").open("r+b") as file:
        file.truncate(3 * 4096)
    with pytest.raises(DataError, match="data.train: .*cut: is no whole LMDB .*; make or get"):
        pictures(place)
    (tmp_path / "other").mkdir()
    (tmp_path / "other/data.mdb").write_bytes(b"no database" * 1000)
    with pytest.raises(DataError, match="other: is no whole LMDB"):
        pictures(tmp_path / "other")
    with pytest.raises(DataError, match=r"meta_info\.txt, line 2: 'c.png 9 8' is not"):
        pictures(lmdb_of(tmp_path / "meta", {b"c": b"?"}, "\nc.png 9 8\n"))
    with pytest.raises(DataError, match="the LMDB holds no picture"):
        pictures(lmdb_of(tmp_path / "empty", {}))


def test_a_broken_value_is_a_bad_picture_and_no_more(tmp_path):
    values = {b"%02d" % i: encoded(pixels(i)) for i in range(12)}
    whole, values[b"03"] = values[b"03"], b""
    data = dataset(lmdb_of(tmp_path / "x", values))
    assert len(data) == 11 and data.bad == {3}
    values[b"03"] = whole[: len(whole) // 2]
    found = pictures(lmdb_of(tmp_path / "y", values))
    with pytest.raises(ImageError, match=f"{tmp_path}/y/03: broken or truncated"):
        found.read(3)


@pytest.mark.parametrize("kind", ["png", "jpg", "webp", "tif", "gif", "bmp", "avif", "jp2"])
def test_a_picture_in_memory_is_read_as_its_file(tmp_path, kind):
    path = tmp_path / f"x.{kind}"
    try:
        PIL.Image.fromarray(pixels(0)).save(path)
        wanted = read_image(path)
    except (ImageError, OSError, KeyError):
        pytest.skip(f"nothing here writes and reads {kind}")
    found = read_image("only a name", content=path.read_bytes())
    assert np.array_equal(found.pixels, wanted.pixels)
    with pytest.raises(ImageError, match="only a name: holds no bytes"):
        read_image("only a name", content=b"")


# ------------------------------------------------------------------------------------ kept headers


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """Headers are kept from the first on, in a folder of the test; -> what was opened."""
    opened, open_ = [], scan.header_of
    monkeypatch.setattr(scan, "KEPT_FROM", 1)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(
        scan, "header_of", lambda path, *a: opened.append(path.name) or open_(path, *a)
    )
    return opened


def test_headers_are_read_once(tmp_path, kept):
    hr = fill(tmp_path / "hr")
    first = pictures(hr).sizes(4)[0]
    assert sorted(kept) == ["0.png", "1.png", "2.png", "3.png"]
    assert np.array_equal(pictures(hr).sizes(4)[0], first) and len(kept) == 4
    monkey = tmp_path / "again"
    monkey.symlink_to(hr)
    assert np.array_equal(pictures(monkey).sizes(4)[0], first) and len(kept) == 4


def test_a_changed_picture_is_read_again_and_a_gone_one_is_forgotten(tmp_path, kept):
    hr = fill(tmp_path / "hr")
    pictures(hr).sizes(4)
    os.utime(hr / "1.png", ns=(1, 1))
    (hr / "2.png").write_bytes(encoded(pixels(2, 33)))
    (hr / "3.png").unlink()
    fill(hr, 1, first=4)
    kept.clear()
    sizes = pictures(hr).sizes(4)[0]
    assert sorted(kept) == ["1.png", "2.png", "4.png"] and sizes[2].tolist() == [33, 20]
    assert sorted(scan._kept(scan.cache_file(hr)).index) == ["0.png", "1.png", "2.png", "4.png"]


def test_both_parts_of_a_split_are_kept(tmp_path, kept):
    hr = fill(tmp_path / "hr", 12)
    for _ in range(2):
        pictures(hr, part=Part(0.5, False)).sizes(4)
        pictures(hr, part=Part(0.5, True)).sizes(4)
    assert len(kept) == 12


@pytest.mark.parametrize("damage", [b"", b"no archive", None])
def test_a_damaged_cache_is_made_anew(tmp_path, kept, damage):
    hr = fill(tmp_path / "hr")
    first = pictures(hr).sizes(4)[0]
    path = scan.cache_file(hr)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if damage is None else damage)
    assert np.array_equal(pictures(hr).sizes(4)[0], first) and len(kept) == 8
    assert path.read_bytes() == whole


def test_a_cache_that_cannot_be_written_costs_time_alone(tmp_path, kept):
    hr = fill(tmp_path / "hr")
    (tmp_path / "cache").write_text("a file where the folder should be")
    for _ in range(2):
        assert pictures(hr).sizes(4)[0].tolist() == [[24, 20]] * 4
    assert len(kept) == 8


def test_headers_of_an_lmdb_are_kept_too(tmp_path, kept):
    place = lmdb_of(tmp_path / "x", {b"a\xff": encoded(pixels(0)), b"b": encoded(pixels(1))})
    for _ in range(2):
        assert pictures(place).sizes(4)[0].tolist() == [[24, 20]] * 2
    assert len(kept) == 2


def test_unreadable_headers_are_named_at_each_start(tmp_path, kept):
    hr = fill(tmp_path / "hr")
    (hr / "1.png").write_text("no picture")
    for _ in range(2):
        sizes, unreadable = pictures(hr).sizes(4)
        assert list(unreadable) == [1] and not sizes[1].any()


def test_of_two_that_begin_at_once_one_reads(tmp_path, kept, monkeypatch):
    hr, slow = fill(tmp_path / "hr", 8), scan.header_of
    monkeypatch.setattr(scan, "header_of", lambda *a: time.sleep(0.02) or slow(*a))
    start = threading.Barrier(3)

    def begin() -> list:
        start.wait()
        return pictures(hr).sizes(4)[0].tolist()

    with ThreadPoolExecutor(3) as pool:
        found = [future.result() for future in [pool.submit(begin) for _ in range(3)]]
    assert found == [[[24, 20]] * 8] * 3 and len(kept) == 8


def test_a_slow_scan_says_how_long_it_took(tmp_path, kept, monkeypatch, caplog):
    monkeypatch.setattr(scan, "SLOW", -1)
    pictures(fill(tmp_path / "hr")).sizes(4)
    kept_in = scan.cache_file(tmp_path / "hr")
    assert f"the headers of 4 pictures were read in 0 s; {kept_in} keeps them." in caplog.text


# ----------------------------------------------------------------------------------- kinds of pixels


def test_deep_pictures_are_counted_in_one_line_and_grey_has_three_channels(tmp_path, caplog):
    deep = pixels(0).astype(np.uint16) * 257
    write_image(tmp_path / "deep.png", Image(deep))
    PIL.Image.fromarray(pixels(1)[..., 0]).save(tmp_path / "grey.png")
    with caplog.at_level(logging.WARNING):
        data = dataset(tmp_path)
    assert caplog.text.count("1 of 2 pictures have more than 8 bits a channel") == 1
    assert torch.equal(data.pictures.read(0).permute(1, 2, 0), torch.from_numpy(pixels(0)))
    grey = data.pictures.read(1)
    assert grey.shape == (3, 24, 20) and torch.equal(grey[0], grey[2])


# ---------------------------------------------------------------------------- training and validation


def test_a_split_goes_by_names_so_that_more_pictures_move_none(tmp_path):
    hr = fill(tmp_path / "hr", 20)
    train, val = (pictures(hr, part=Part(0.3, is_val)) for is_val in (False, True))
    assert not set(train.names) & set(val.names) and len(train) + len(val) == 20
    assert 2 <= len(val) <= 10
    fill(hr, 10, first=20)
    hr = hr.rename(tmp_path / "moved")
    more = [pictures(hr, part=Part(0.3, is_val)) for is_val in (False, True)]
    assert set(train.names) < set(more[0].names) and set(val.names) < set(more[1].names)


def test_a_split_has_at_least_one_picture_for_validation(tmp_path):
    assert len(pictures(fill(tmp_path / "hr"), part=Part(1e-9, True))) == 1
    with pytest.raises(DataError, match="all its pictures are kept for validation"):
        pictures(fill(tmp_path / "one", 1), part=Part(0.5, False))


def test_validation_sees_the_pictures_that_training_does_not(tmp_path):
    hr = fill(tmp_path / "hr", 12)
    for i in range(3):
        (hr / f"small{i}.png").write_bytes(encoded(pixels(i, 12, 12)))
    data = dataset(hr, val_fraction=0.4)
    trained = {data.pictures.name(i) for i in data.used}
    validated = {name for name, _, _ in validation_pairs(data.cfg, 2, limit=99, crop=None)}
    assert trained | validated == {str(i) for i in range(12)} and not trained & validated
    assert data.counts() == {str(hr): len(trained)} and data.fingerprint()["count"] == len(trained)


def test_a_split_without_a_picture_that_is_large_enough_is_refused(tmp_path):
    data = dataset(fill(tmp_path / "hr"), val_fraction=0.4)
    with pytest.raises(DataError, match=r"data.val_fraction=0.4: of the \d .* none has 64 pixels"):
        validation_pairs(data.cfg, 8, limit=9, crop=None)


def test_an_overlap_of_training_and_validation_is_said(tmp_path, caplog):
    hr, val = fill(tmp_path / "hr", 6), fill(tmp_path / "val", 3, first=20)
    (val / "linked.png").symlink_to(hr / "0.png")  # the same file by another name
    (val / "1.png").write_bytes((hr / "1.png").read_bytes())  # a copy
    cfg = DataConfig(train=(str(hr),), val=(str(val),), patch=16)
    validation_pairs(cfg, 2, limit=1, crop=None)
    assert "data.val: 2 of its 5 pictures are in data.train too" in caplog.text
