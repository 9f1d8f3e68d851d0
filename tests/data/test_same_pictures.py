"""Laws of names that lead to one picture, of lists and patterns of one folder, and of copies."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from ldm_dream.config.data import DataConfig
from ldm_dream.data import listing, scan
from ldm_dream.data.listing import DataError, list_place
from ldm_dream.data.overlap import overlap
from ldm_dream.data.sources import Part, Pictures
from ldm_dream.data.validation import validation_pairs

SIZE = 24, 20  # height, width


def save(path: Path, seed: int, factor: int = 1) -> Path:
    """A picture of its own; factor: of its size."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = SIZE[0] * factor, SIZE[1] * factor, 3
    array = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    PIL.Image.fromarray(array).save(path)
    return path


def fill(folder: Path, *names: str, factor: int = 1) -> Path:
    for seed, name in enumerate(names):
        save(folder / name, seed, factor)
    return folder


def pictures(*entries, **options) -> Pictures:
    return Pictures(tuple(map(str, entries)), options.pop("exclude", ()), "data.train", **options)


def lmdb_of(folder: Path, values: dict[bytes, bytes]) -> Path:
    lmdb = pytest.importorskip("lmdb")
    with lmdb.open(str(folder), map_size=2**24) as opened, opened.begin(write=True) as transaction:
        for key, value in values.items():
            transaction.put(key, value)
    return folder


# ---------------------------------------------------------------------------------------------- lists


def test_a_list_pairs_pictures_outside_its_folder_by_their_whole_path(tmp_path):
    for folder, factor in (("cam1", 2), ("cam2", 2), ("lr1", 1), ("lr2", 1)):
        fill(tmp_path / folder, "001.png", factor=factor)
    lists = tmp_path / "lists"
    lists.mkdir()
    (lists / "hr.txt").write_text("../cam1/001.png\n../cam2/001.png\n")
    (lists / "lr.txt").write_text("../lr1/001.png\n../lr2/001.png\n")
    found = pictures(lists / "hr.txt/../cam{}", given=(f"{lists}/lr.txt/../lr{{}}",))
    assert found.names == ["../cam1/001.png", "../cam2/001.png"]
    assert found.lr and found.lr.names == ["../lr1/001.png", "../lr2/001.png"]
    (lists / "lr.txt").write_text("../lr1/001.png\n")
    with pytest.raises(DataError, match=r"2 of 2 pictures of .*hr\.txt have no LR picture"):
        pictures(lists / "hr.txt", given=(f"{lists}/lr.txt",))


def test_pictures_of_one_file_name_in_a_list_have_each_their_header(tmp_path, monkeypatch):
    monkeypatch.setattr(scan, "KEPT_FROM", 1)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    save(tmp_path / "a/x.png", 0)
    save(tmp_path / "b/x.png", 1)
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists/all.txt").write_text("../a/x.png\n../b/x.png\n")
    pictures(tmp_path / "lists/all.txt").sizes(1)
    kept = scan._kept(scan.cache_file(tmp_path / "lists/all.txt"))
    assert sorted(kept.index) == ["../a/x.png", "../b/x.png"]


@pytest.mark.parametrize("odd", ["\u2028", "\x85", "\x0c", "\x1c", "\u3000"])
def test_a_line_of_a_list_ends_where_a_text_file_ends_it(tmp_path, odd):
    names = [f"a{odd}b.png", "c.png"]
    fill(tmp_path, *names)
    for end in ("\n", "\r\n"):
        text = "".join(f" {name}\t{end}" for name in names)
        (tmp_path / "all.txt").write_bytes(text.encode())
        assert sorted(list_place(tmp_path / "all.txt").names) == sorted(names)


# ------------------------------------------------------------------------------------------- patterns


def test_several_patterns_of_one_folder_each_find_their_pictures(tmp_path, monkeypatch):
    fill(tmp_path / "c", "1_HR.png", "2_GT.png", "3_LR.png", "sub/4_HR.png", "sub/5_LR.png")
    two = pictures(tmp_path / "c/{}_HR", tmp_path / "c/{}_GT")
    assert two.names == ["1_HR.png", "2_GT.png", "sub/4_HR.png"]
    # a pattern of an inner folder takes nothing from the outer one
    both = pictures(tmp_path / "c/sub/{}_HR", tmp_path / "c")
    assert len(both) == 5 and both.counts(list(range(5)))[f"{tmp_path}/c/sub/{{}}_HR"] == 1


def test_both_patterns_of_a_pair_keep_their_headers(tmp_path, monkeypatch):
    monkeypatch.setattr(scan, "KEPT_FROM", 1)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    opened, open_ = [], scan.header_of
    monkeypatch.setattr(scan, "header_of", lambda *a: opened.append(a[0].name) or open_(*a))
    fill(tmp_path / "4", "1_HR.png", "2_HR.png", factor=2)
    fill(tmp_path / "4", "1_LR.png", "2_LR.png")
    for _ in range(3):
        found = pictures(tmp_path / "4/{}_HR", given=(f"{tmp_path}/4/{{}}_LR",))
        found.sizes(2)
    assert sorted(opened) == ["1_HR.png", "1_LR.png", "2_HR.png", "2_LR.png"]


# ---------------------------------------------------------------------------- names of one picture


def test_a_picture_of_two_names_is_on_one_side_of_a_split(tmp_path, caplog):
    names = [f"{i}.png" for i in range(12)]
    hr = fill(tmp_path / "hr", *names)
    (tmp_path / "all.txt").write_text("\n".join(f"{hr}/{name}" for name in names))
    (tmp_path / "other").mkdir()
    for name in names:
        (tmp_path / "other" / f"link-{name}").symlink_to(hr / name)
        (hr / f"again-{name}").hardlink_to(hr / name)
    places = (hr, tmp_path / "other", tmp_path / "all.txt")
    train, val = (pictures(*places, part=Part(0.4, is_val)) for is_val in (False, True))
    assert len(train) + len(val) == 12
    assert not set(train.identities()) & set(val.identities())
    assert set(train.entry) == set(val.entry) == {0}, "by the name in the first place"
    assert "data.train: 24 names lead to pictures that have another name here" in caplog.text


def test_pairs_of_one_hr_picture_are_on_one_side_of_a_split(tmp_path):
    for i in range(6):
        save(tmp_path / f"hr/{i}-a.png", i, 2)
        (tmp_path / f"hr/{i}-b.png").symlink_to(tmp_path / f"hr/{i}-a.png")
        fill(tmp_path / "lr", f"{i}-a.png", f"{i}-b.png")
    lr = (f"{tmp_path}/lr",)
    train, val = (
        pictures(tmp_path / "hr", given=lr, part=Part(0.4, side)) for side in (False, True)
    )
    assert len(train) + len(val) == 12
    assert not set(train.identities()) & set(val.identities())


def test_an_lr_picture_of_two_hr_pictures_is_refused(tmp_path):
    fill(tmp_path / "hr", "a.png", "a.jpg", factor=2)
    fill(tmp_path / "lr", "a.png")
    with pytest.raises(
        DataError, match=r"hr/a\.(jp|pn)g and .*hr/a\..* have one LR picture, .*lr/a"
    ):
        pictures(tmp_path / "hr", given=(f"{tmp_path}/lr",))
    fill(tmp_path / "other", "a.png", "b.png", factor=2)
    entries = tmp_path / "other", tmp_path / "hr/a.png"
    save(tmp_path / "lr/b.png", 1)
    with pytest.raises(DataError, match="have one LR picture"):
        pictures(*entries, given=(f"{tmp_path}/lr", f"{tmp_path}/lr"))


def test_a_picture_is_not_its_own_lr_picture_by_another_path(tmp_path):
    hr = fill(tmp_path / "hr", "a.png")
    (tmp_path / "lr").mkdir()
    (tmp_path / "lr/a.png").symlink_to(hr / "a.png")
    for place in (tmp_path / "lr", f"{hr}/../hr"):
        with pytest.raises(DataError, match="hr/a.png would be its own LR picture"):
            pictures(hr, given=(str(place),))


# ------------------------------------------------------------------------------- what is no picture


def test_what_this_project_wrote_into_a_folder_is_no_picture(tmp_path, caplog):
    hr = fill(tmp_path / "hr", "a.png")
    (hr / ".prepared.jsonl").touch()
    assert len(pictures(hr)) == 1 and not caplog.text
    runs = fill(tmp_path / "runs/one", "samples/step-1.png")
    (runs / "history.jsonl").touch()
    (hr / "runs").symlink_to(tmp_path / "runs")
    assert pictures(hr).names == ["a.png"]
    assert "also holds 1 run folder; not used." in caplog.text


def test_of_each_file_a_listing_keeps_four_numbers(tmp_path, monkeypatch):
    hr = fill(tmp_path / "hr", *(f"{i}.png" for i in range(9)))
    os.utime(hr / "3.png", ns=(-(10**18), -(10**18)))  # before 1970
    alive, kind = [], listing.kind_left_out

    def counted(name: str) -> str | None:
        alive.append(sum(type(x) is os.stat_result for x in gc.get_objects()))
        return kind(name)

    monkeypatch.setattr(listing, "kind_left_out", counted)
    found = list_place(hr)
    assert max(alive) - min(alive) <= 1
    old = found.stats[found.names.index("3.png")].tolist()
    status = os.stat(hr / "3.png")
    assert old == [status.st_size, -(10**18), status.st_dev, status.st_ino]


# ------------------------------------------------------------------------ training and validation


def test_validation_says_which_pictures_of_its_share_it_leaves_out(tmp_path, caplog):
    hr = fill(tmp_path / "hr", *(f"{i}.png" for i in range(12)))
    cfg = DataConfig(train=(str(hr),), patch=16, val_fraction=0.5)
    first, second, *others = pictures(hr, part=Part(0.5, True)).names
    (hr / first).write_text("no picture")
    PIL.Image.new("RGB", (9, 9)).save(hr / second)
    found = validation_pairs(cfg, 2, limit=99, crop=None)
    assert len(found) == len(others)
    assert f"hr/{first}: not a picture" in caplog.text and "left out of validation" in caplog.text
    assert (
        f"1 of the {len(others) + 2} pictures that it keeps for validation have no 16 pixels"
        in (caplog.text)
    )


def test_equal_names_and_bytes_are_no_proof_of_a_copy(tmp_path):
    train = fill(tmp_path / "train", "0.bmp", "1.bmp", "2.png")
    save(tmp_path / "val/0.bmp", 7)  # another picture of as many bytes
    (tmp_path / "val/1.bmp").write_bytes((train / "1.bmp").read_bytes())
    assert overlap(pictures(train), pictures(tmp_path / "val")) == 1


def test_a_copy_is_known_in_a_database_and_in_another_kind_of_file(tmp_path):
    train = fill(tmp_path / "train", "0.png", "sub/1.bmp", "2.png")
    other = save(tmp_path / "x.png", 9)
    values = {b"0": (train / "0.png").read_bytes(), b"2": other.read_bytes()}
    assert overlap(pictures(train), pictures(lmdb_of(tmp_path / "val", values))) == 1
    PIL.Image.open(train / "sub/1.bmp").save(tmp_path / "1.png")
    assert overlap(pictures(train), pictures(tmp_path / "1.png")) == 1
    (tmp_path / "1.png").write_text("no picture")
    assert overlap(pictures(train), pictures(tmp_path / "1.png")) == 0


def test_only_the_first_process_looks_for_an_overlap(tmp_path, monkeypatch, caplog):
    hr = fill(tmp_path / "hr", "0.png")
    monkeypatch.setenv("RANK", "1")
    cfg = DataConfig(train=(str(hr),), val=(str(hr),), patch=16)
    validation_pairs(cfg, 2, limit=1, crop=None)
    assert "data.val" not in caplog.text
