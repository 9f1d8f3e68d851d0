"""A job that is stopped goes on, one that cannot be done says so, and an LMDB is whole or not there."""

import json
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from ldm_dream.data import lmdb_store
from ldm_dream.errors import UserError
from ldm_dream.preparing import lmdb_writer, sets, work
from ldm_dream.preparing.job import Job
from ldm_dream.preparing.pictures import PictureError, open_picture
from ldm_dream.preparing.plan import evenly_spaced
from ldm_dream.preparing.recipe import Options
from ldm_dream.preparing.recipes import RECIPES
from ldm_dream.preparing.sources import InLmdb
from preparing import archives
from preparing.archives import (
    decoded,
    picture,
    read_lmdb,
    tar_bytes,
    write_folder,
    write_tar,
    write_zip,
)

ROOT = Path(__file__).resolve().parents[2]


def job(tmp_path: Path, recipe: str = "ffhq", as_lmdb: bool = False, **options) -> Job:
    """From tmp_path/downloads to tmp_path/data."""
    if RECIPES[recipe].sizes:
        options = {"sizes": (16,), **options}
    places = [tmp_path / "downloads"]
    return Job.of(RECIPES[recipe], places, tmp_path / "data", Options(**options), as_lmdb)


def written(folder: Path) -> dict[str, tuple[bytes, int]]:
    """What is in a folder: bytes, and when they were written."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name[0] != ".")
    return {
        path.relative_to(folder).as_posix(): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in files
    }


# ------------------------------------------------------------------------------- stopped, and on


def test_a_stopped_run_goes_on_and_does_nothing_twice(tmp_path):
    write_zip(tmp_path / "downloads/ffhq.zip", archives.ffhq(6))
    running = job(tmp_path).run(workers=1)
    for _ in range(3):
        next(running)
    running.close()
    folder, unfinished = tmp_path / "data/ffhq_16", tmp_path / "data/ffhq_16.unfinished"
    before = written(unfinished)
    assert len(before) == 3 and not folder.exists()  # no training takes a part for all
    again = job(tmp_path)
    assert again.todo() == 3
    list(again.run(workers=1))
    after = written(folder)
    assert not unfinished.exists()
    assert len(after) == 6 and before.items() <= after.items()
    whole = job(tmp_path)
    assert whole.todo() == 0 and list(whole.run(workers=1)) == []
    assert written(folder) == after


def test_a_whole_set_to_which_pictures_are_added_is_unfinished_until_all_are(tmp_path):
    place = write_folder(tmp_path / "downloads", archives.ffhq(2))
    list(job(tmp_path).run(workers=1))
    write_folder(place, archives.ffhq(4))
    running = job(tmp_path).run(workers=1)
    next(running)
    running.close()
    folder, unfinished = tmp_path / "data/ffhq_16", tmp_path / "data/ffhq_16.unfinished"
    assert not folder.exists() and len(written(unfinished)) == 3
    list(job(tmp_path).run(workers=1))
    assert not unfinished.exists() and len(written(folder)) == 4


def test_a_lost_file_and_a_line_that_was_cut_are_done_again(tmp_path):
    write_zip(tmp_path / "downloads/ffhq.zip", archives.ffhq(4))
    list(job(tmp_path).run(workers=1))
    folder = tmp_path / "data/ffhq_16"
    before = written(folder)
    (folder / "00001.png").unlink()
    journal = folder / ".prepared.jsonl"
    journal.write_text(journal.read_text()[:-8])
    again = job(tmp_path)
    assert again.todo() == 2
    list(again.run(workers=1))
    assert {name: data for name, (data, _) in written(folder).items()} == {
        name: data for name, (data, _) in before.items()
    }
    assert job(tmp_path).todo() == 0


def test_several_workers_make_the_same(tmp_path):
    write_tar(tmp_path / "downloads/ffhq.tar.gz", archives.ffhq(9))
    list(job(tmp_path).run(workers=1))
    one = {name: data for name, (data, _) in written(tmp_path / "data").items()}
    shutil.rmtree(tmp_path / "data")
    (tmp_path / "downloads/x").mkdir()
    write_folder(tmp_path / "downloads/x", {"images1024x1024/00000/00009.png": b"broken"})
    both = job(tmp_path)
    assert sorted(result.status for result in both.run(workers=2)) == ["done"] * 9 + ["failed"]
    assert {name: data for name, (data, _) in written(tmp_path / "data").items()} == one
    assert both.failures[0].startswith("downloads/x/images1024x1024/00000/00009.png: ")


def test_a_killed_worker_is_one_sentence(tmp_path, monkeypatch):
    write_zip(tmp_path / "downloads/ffhq.zip", archives.ffhq(4))
    monkeypatch.setattr(work, "make", _killed)
    with pytest.raises(UserError, match="a worker was killed.*fewer --workers"):
        list(job(tmp_path).run(workers=2))


def _killed(task):
    signal.raise_signal(signal.SIGKILL)


# ------------------------------------------------------------------------------------------- LMDB


def test_an_lmdb_is_in_the_form_of_basicsr(tmp_path, monkeypatch):
    monkeypatch.setattr(lmdb_writer, "FIRST_SIZE", 2**16)  # it grows as it is filled
    monkeypatch.setattr(sets, "BATCH_BYTES", 2**20)
    archives.div2k(tmp_path / "downloads")
    list(job(tmp_path, "div2k", as_lmdb=True).run(workers=1))
    folder = tmp_path / "data/DIV2K_train_HR_sub.lmdb"
    values = read_lmdb(folder)
    assert sorted(values) == [f"{n:04d}_s{i:03d}" for n in (1, 2) for i in (1, 2, 3, 4)]
    assert np.array_equal(decoded(values["0001_s001"]), decoded(picture(1, 500, 620))[:480, :480])
    meta = (folder / "meta_info.txt").read_text().splitlines()
    assert meta[0] == "0001_s001.png (480,480,3) 0"
    assert len(meta) == 8
    valid = written(tmp_path / "data/DIV2K_valid_HR")  # to evaluate on: files
    assert [*valid] == ["0801.png"]
    assert job(tmp_path, "div2k", as_lmdb=True).todo() == 0


def test_a_killed_writer_leaves_no_lmdb_that_looks_whole(tmp_path):
    """By SIGKILL after three pictures; the next run keeps what was committed."""
    write_zip(tmp_path / "downloads/ffhq.zip", archives.ffhq(6))
    code = f"""
        import os, signal, sys
        from pathlib import Path
        sys.path.insert(0, {str(ROOT)!r})
        from ldm_dream.preparing import job, recipe, recipes, sets
        sets.BATCH_BYTES = 1
        places, out = [Path("downloads")], Path("data")
        options = recipe.Options(sizes=(16,))
        running = job.Job.of(recipes.RECIPES["ffhq"], places, out, options, True).run(workers=1)
        for _ in range(3):
            next(running)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], cwd=tmp_path)
    assert done.returncode == -signal.SIGKILL
    folder, unfinished = (tmp_path / f"data/ffhq_16.lmdb{e}" for e in ("", ".unfinished"))
    assert not folder.exists() and len(read_lmdb(unfinished)) == 3
    again = job(tmp_path, as_lmdb=True)
    assert again.todo() == 3
    list(again.run(workers=1))
    assert not unfinished.exists() and len(read_lmdb(folder)) == 6
    assert len((folder / "meta_info.txt").read_text().splitlines()) == 6


def test_a_disk_that_is_full_is_one_sentence_and_what_was_committed_stays(tmp_path, monkeypatch):
    import lmdb

    write_zip(tmp_path / "downloads/ffhq.zip", archives.ffhq(4))
    monkeypatch.setattr(sets, "BATCH_BYTES", 1)
    running = job(tmp_path, as_lmdb=True).run(workers=1)
    next(running)
    monkeypatch.setattr(sets.LmdbWriter, "put", _full(lmdb.DiskError("No space left on device")))
    with pytest.raises(UserError, match="ffhq_16.lmdb.unfinished: cannot be written: No space"):
        next(running)
    monkeypatch.undo()
    assert job(tmp_path, as_lmdb=True).todo() == 3


def _full(error):
    def put(writer, pictures):
        raise writer._cannot(error)

    return put


def test_an_lmdb_takes_a_picture_that_was_mended(tmp_path):
    files = archives.ffhq(3)
    broken = files | {"images1024x1024/00000/00001.png": b"broken"}
    place = write_folder(tmp_path / "downloads", broken)
    first = job(tmp_path, as_lmdb=True)
    list(first.run(workers=1))
    assert len(first.failures) == 1 and len(read_lmdb(tmp_path / "data/ffhq_16.lmdb")) == 2
    write_folder(place, files)
    list(job(tmp_path, as_lmdb=True).run(workers=1))
    assert len(read_lmdb(tmp_path / "data/ffhq_16.lmdb")) == 3


def test_without_the_package_lmdb_a_sentence_names_the_extra(tmp_path, monkeypatch):
    write_zip(tmp_path / "downloads/ffhq.zip", archives.ffhq(2))
    monkeypatch.setitem(sys.modules, "lmdb", None)
    with pytest.raises(UserError, match=r"pip install 'ldm_dream\[data\]'"):
        list(job(tmp_path, as_lmdb=True).run(workers=1))


# ------------------------------------------------------------------------------ what goes wrong


def test_broken_pictures_are_counted_and_tried_again(tmp_path):
    jpeg, png = picture(1, kind="JPEG"), picture(2)
    files = {
        "CelebA-HQ-img/1.jpg": jpeg,
        "CelebA-HQ-img/2.jpg": jpeg[: len(jpeg) // 2],
        "CelebA-HQ-img/3.png": png[: len(png) // 2],
        "CelebA-HQ-img/4.png": b"",
        "CelebA-HQ-img/5.png": picture(5, 8, 9),
    }
    write_folder(tmp_path / "downloads", files)
    first = job(tmp_path, "celebahq")
    list(first.run(workers=1))
    assert first.counts == {"done": 1, "failed": 3, "left out": 1}
    assert [line.partition(":")[0][-5:] for line in first.failures] == ["2.jpg", "3.png", "4.png"]
    assert job(tmp_path, "celebahq").todo() == 3


@pytest.mark.parametrize(
    ("name", "data", "text"),
    [
        ("ffhq.zip", b"PK\x03\x04 cut", "ffhq.zip: cannot be read whole"),
        ("ffhq.tar", tar_bytes(archives.ffhq(3))[:5000], "ffhq.tar: cannot be read whole"),
        ("ffhq.tar.gz", tar_bytes(archives.ffhq(3), "w:gz")[:2000], "cannot be read whole"),
        ("ffhq.zip", None, "none of 1 pictures is of ffhq: give images1024x1024"),
    ],
)
def test_a_wrong_archive_is_one_sentence(tmp_path, name, data, text):
    path = tmp_path / "downloads" / name
    if data is None:
        write_zip(path, {"DIV2K_train_HR/0001.png": picture(1)})
    else:
        path.parent.mkdir()
        path.write_bytes(data)
    with pytest.raises(UserError, match=text):
        job(tmp_path)
    assert not (tmp_path / "data").exists()


def test_a_database_that_was_cut_is_one_sentence(tmp_path):
    """To read behind its end would kill the process."""
    archives.lsun(tmp_path / "downloads", "tower", packed=False)
    file = tmp_path / "downloads/tower_train_lmdb/data.mdb"
    file.write_bytes(file.read_bytes()[:-4096])
    with pytest.raises(UserError, match="tower_train_lmdb: is no whole LMDB"):
        job(tmp_path, "lsun-tower")


def test_other_archives_that_lie_beside_are_not_opened(tmp_path):
    write_zip(tmp_path / "downloads/ffhq.zip", archives.ffhq(2))
    (tmp_path / "downloads/DIV2K_train_HR.zip").write_bytes(b"half of it")
    (tmp_path / "downloads/._ffhq.zip").write_bytes(b"of another system")
    assert job(tmp_path).todo() == 2


def test_a_path_in_an_archive_leads_nowhere(tmp_path):
    files = {
        "../../ffhq/00001.png": picture(1),
        "/ffhq/00002.png": picture(2),
        "ffhq/..\\..\\00003.png": picture(3),
        "ffhq/00004.png": picture(4),
    }
    write_tar(tmp_path / "downloads/ffhq.tar", files)
    list(job(tmp_path).run(workers=1))
    made = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.png")}
    assert made == {f"data/ffhq_16/0000{n}.png" for n in (1, 2, 4)}


def zipped_database(path: Path, member: str, seeds: range) -> Path:
    """A zip with an LMDB of LSUN at this name, as its publisher's or as somebody packed it."""
    values = {f"{n:040x}": picture(n, 24, 32, "WEBP") for n in seeds}
    folder = archives.write_lmdb(path.with_suffix(".lmdb"), values)
    write_zip(path, {member: (folder / "data.mdb").read_bytes()})
    shutil.rmtree(folder)
    return path


def test_a_database_in_a_zip_is_unpacked_nowhere_else(tmp_path):
    for member in ("bedroom_train_lmdb/../data.mdb", "../../bedroom_val_lmdb/data.mdb"):
        zipped_database(tmp_path / f"downloads/bedroom{len(member)}.zip", member, range(2))
    mine = write_folder(tmp_path / "data", {"data.mdb": b"mine"}) / "data.mdb"
    job(tmp_path, "lsun-bedroom")
    assert mine.read_bytes() == b"mine"
    unpacked = {path.parent.parent for path in tmp_path.rglob("data.mdb") if path != mine}
    assert unpacked == {tmp_path / "data/.unpacked"}


def test_two_zips_with_a_database_at_the_top_stay_apart(tmp_path):
    for split, seeds in (("train", range(3)), ("val", range(3, 6))):  # of one size in bytes
        zipped_database(tmp_path / f"downloads/bedroom_{split}_lmdb.zip", "data.mdb", seeds)
    list(job(tmp_path, "lsun-bedroom").run(workers=1))
    for name, seeds in (("lsun_bedroom_16", range(3)), ("lsun_bedroom_16_val", range(3, 6))):
        made = sorted(path.stem for path in (tmp_path / "data" / name).glob("*.png"))
        assert made == [f"{n:040x}" for n in seeds]


@pytest.mark.parametrize("other", [b"damaged", None], ids=["damaged", "replaced"])
def test_a_database_unpacked_before_is_taken_only_if_it_is_the_same(tmp_path, other):
    place = tmp_path / "downloads/bedroom_train_lmdb.zip"
    zipped_database(place, "bedroom_train_lmdb/data.mdb", range(2))
    job(tmp_path, "lsun-bedroom")  # stopped here
    (unpacked,) = tmp_path.rglob("data.mdb")
    whole, seeds = unpacked.read_bytes(), range(2)
    if other:
        unpacked.write_bytes(whole[: -len(other)] + other)  # of the same size
        lmdb_store._opened.cache_clear()  # another process goes on
    else:
        seeds = range(2, 4)
        zipped_database(place, "bedroom_train_lmdb/data.mdb", seeds)
    again = job(tmp_path, "lsun-bedroom")
    if other:
        assert unpacked.read_bytes() == whole
    list(again.run(workers=1))
    made = sorted(path.stem for path in (tmp_path / "data/lsun_bedroom_16").glob("*.png"))
    assert made == [f"{n:040x}" for n in seeds]


def test_a_key_that_is_gone_is_a_picture_that_failed(tmp_path):
    archives.lsun(tmp_path / "downloads", "tower", packed=False)
    entry = InLmdb("x", tmp_path / "downloads/tower_train_lmdb", b"none")
    result = work.make(work.Task(entry, ()))
    assert result.status == "failed" and "has no key none" in result.reason


def test_a_folder_of_something_else_is_refused(tmp_path):
    write_zip(tmp_path / "downloads/ffhq.zip", archives.ffhq(4))
    write_folder(tmp_path / "data/ffhq_16", {"mine.png": picture(1)})
    with pytest.raises(UserError, match="ffhq_16: holds mine.png, which was not prepared here"):
        job(tmp_path)
    shutil.rmtree(tmp_path / "data")
    list(job(tmp_path, limit=3).run(workers=1))
    with pytest.raises(UserError, match="ffhq_16: holds 00001, not among the pictures"):
        list(job(tmp_path, limit=2).run(workers=1))
    journal = tmp_path / "data/ffhq_16/.prepared.jsonl"
    first = json.dumps({"set": "another recipe"})
    journal.write_text("\n".join([first, *journal.read_text().splitlines()[1:]]))
    with pytest.raises(UserError, match="was prepared as .*another recipe.* and now"):
        job(tmp_path, limit=3)


def test_a_list_of_something_else_is_refused(tmp_path):
    write_folder(tmp_path / "downloads", archives.celebamask(3))
    write_folder(tmp_path / "data", {"celebahq_16-eval2.txt": b"my notes"})
    with pytest.raises(UserError, match="eval2.txt: was not written here"):
        job(tmp_path, "celebahq", eval_count=2)


def test_prepared_sets_are_no_sources(tmp_path):
    write_zip(tmp_path / "downloads/ffhq.zip", archives.ffhq(3))
    list(job(tmp_path).run(workers=1))
    shutil.move(tmp_path / "data", tmp_path / "downloads/data")
    assert job(tmp_path).todo() == 3


def test_a_picture_is_upright_and_of_eight_bits():
    import io

    import PIL.Image

    turned = io.BytesIO()
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    PIL.Image.fromarray(decoded(picture(1, 20, 30))).save(turned, "JPEG", exif=exif)
    assert open_picture(turned.getvalue()).size == (20, 30)
    deep = io.BytesIO()
    PIL.Image.fromarray(np.zeros((4, 4), np.uint16)).save(deep, "PNG")
    with pytest.raises(PictureError, match="not of 8 bits"):
        open_picture(deep.getvalue())


def test_a_jpeg_has_the_pixels_that_pillow_sees():
    data = picture(3, 37, 51, "JPEG")
    assert np.array_equal(np.asarray(open_picture(data)), decoded(data))


def test_evenly_spaced_takes_from_the_whole_range():
    assert evenly_spaced(list(range(30_000)), 100)[:3] == [0, 300, 600]
    assert evenly_spaced([1, 2, 3], 5) == [1, 2, 3]
    assert evenly_spaced(list(range(7)), 3) == [0, 2, 4]
