"""Short forms of `python -m tests.faults pictures` and `folder`.

What they found has its test by name in ../data/test_kinds.py and ../data/test_jpeg.py.
"""

import numpy as np

from faults import folder, pictures


def test_damaged_pictures_are_refused_or_read_right(tmp_path):
    """In this process: a fork would lack the threads of libvips."""
    ends = {pictures.check(tmp_path, 0, number) for number in range(150)}
    assert {"refused", "same", "agreed"} <= ends <= {*pictures.ENDS}


def test_every_seed_is_read_right(tmp_path):
    for name, data in pictures.corpus().items():
        end = pictures.judge(tmp_path / name, data, data, is_all_there=True)
        assert end in ("same", "said"), name


def test_one_wrong_row_is_not_the_same_and_not_close():
    whole = np.full((24, 40, 3), 99.0)
    row, rounded = whole.copy(), whole + 1
    row[7] += 12
    assert pictures.is_close(whole, rounded) and not pictures.is_close(whole, row)


def test_a_picture_with_one_wrong_row_is_not_the_same(tmp_path):
    """Of a BMP, where nothing guards the pixels: read as it stands, and so does Pillow."""
    whole = pictures.corpus()["rgb.bmp"]
    data = bytearray(whole)
    data[-40 * 3 :] = bytes(value ^ 12 for value in data[-40 * 3 :])
    assert pictures.judge(tmp_path / "rgb.bmp", bytes(data), whole, True) == "agreed"


def test_a_folder_that_is_killed_and_continued_is_whole(tmp_path):
    tally = folder.kill_and_continue(tmp_path, 20, seed=0, kills=1)
    assert not tally.faults, tally.faults
    assert tally.verdicts == {"whole": 19, "named": 1, "kills": 1}


def test_a_child_that_ends_before_its_kill_is_none(tmp_path, monkeypatch):
    def works(source, out, results, seconds):
        folder.work(source, out, out.with_name("report.json"))
        return 0

    monkeypatch.setattr(folder, "work_in_child", works)
    tally = folder.kill_and_continue(tmp_path, 20, seed=0, kills=2)
    assert not tally.faults and tally.verdicts["kills"] == 0
