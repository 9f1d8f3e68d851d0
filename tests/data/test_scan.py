"""Laws of the scan of headers: it goes on where it was stopped, and waits for another one in bounds."""

from __future__ import annotations

import fcntl
import io
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from ldm_dream.data import scan
from ldm_dream.data.header import header_of
from ldm_dream.data.listing import list_place


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def encoded(height: int, width: int, kind: str, **options) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def fill(folder: Path, count: int = 6) -> Path:
    folder.mkdir()
    for i in range(count):
        (folder / f"{i}.png").write_bytes(encoded(24, 20, "PNG"))
    return folder


def headers(place: Path) -> list[list[int]]:
    listing = list_place(place)
    return scan.read_headers(listing, list(range(len(listing.names)))).table.tolist()


def test_a_scan_that_is_stopped_goes_on_where_it_was(tmp_path, monkeypatch):
    hr, opened = fill(tmp_path / "hr"), []

    def until_the_fourth(path, *content):
        if len(opened) == 3:
            raise KeyboardInterrupt
        opened.append(path.name)
        return header_of(path, *content)

    monkeypatch.setattr(scan, "KEEP_EVERY", -1)
    monkeypatch.setattr(scan, "header_of", until_the_fourth)
    with pytest.raises(KeyboardInterrupt):
        headers(hr)
    again = []
    monkeypatch.setattr(scan, "header_of", lambda *a: again.append(a[0].name) or header_of(*a))
    assert headers(hr) == [[24, 20, 1]] * 6
    assert len(again) == 3 and not set(again) & set(opened)


def test_a_scan_waits_for_another_one_no_longer_than_that_is_worth(tmp_path, monkeypatch, caplog):
    hr = fill(tmp_path / "hr")
    for name, seconds in (("SLOW", 0.05), ("PATIENCE", 0.2), ("POLL", 0.02)):
        monkeypatch.setattr(scan, name, seconds)
    path = scan.cache_file(hr).with_suffix(".lock")
    path.parent.mkdir(parents=True)
    with path.open("a") as lock:  # as of a process that hangs
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert headers(hr) == [[24, 20, 1]] * 6
    assert caplog.text.count(f"{hr}: another process reads its headers; waiting for it.") == 1
    assert "they are read here as well" in caplog.text


def test_of_a_jpeg_in_a_database_no_more_than_its_start_is_read(tmp_path, monkeypatch):
    lmdb = pytest.importorskip("lmdb")
    turned = PIL.Image.Exif()
    turned[0x0112] = 6
    values = {
        b"0": encoded(300, 400, "JPEG", quality=95, exif=turned),
        b"1": encoded(
            300, 400, "JPEG", quality=95, icc_profile=bytes(2**17)
        ),  # in front of its size
        b"2": encoded(300, 400, "PNG"),
        b"3": encoded(24, 20, "JPEG"),
    }
    place = str(tmp_path / "x")
    with lmdb.open(place, map_size=2**24) as opened, opened.begin(write=True) as transaction:
        for key, value in values.items():
            transaction.put(key, value)
    read = []
    monkeypatch.setattr(scan, "header_of", lambda *a: read.append((*a,)) or header_of(*a))
    assert headers(Path(place)) == [[400, 300, 1], [300, 400, 1], [300, 400, 1], [24, 20, 1]]
    lengths = {
        key: [len(content) for path, content in read if path.name == key.decode()] for key in values
    }
    assert lengths == {
        b"0": [scan.PREFIX],
        b"1": [scan.PREFIX, len(values[b"1"])],
        b"2": [len(values[b"2"])],
        b"3": [len(values[b"3"])],
    }
