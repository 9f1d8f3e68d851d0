"""What the page does, without a browser and without gradio."""

import io
import shutil
import threading
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import numpy as np
import PIL.Image
import pytest
import torch

from app.fakes import CALLS, Model
from ldm_dream.app import enlarging, sessions, uploads, views
from ldm_dream.app.enlarging import BROKEN, Running, Telling, Wish
from ldm_dream.app.errors import AppError
from ldm_dream.app.sessions import Sessions, left_out
from ldm_dream.app.told import Now
from ldm_dream.app.uploads import held, sweep, sweeping
from ldm_dream.app.views import (
    before_work,
    comparison,
    progress,
    sentences,
    summary,
    write_view,
)
from ldm_dream.data.images import Image, read_image
from ldm_dream.errors import UserError
from ldm_dream.upscaling.engine import Options
from ldm_dream.upscaling.sizes import Size


@pytest.fixture
def session(tmp_path):
    return Sessions(tmp_path / "sessions").of("a tab")


def upload(folder, name="photo.jpg", size=(12, 8), **saved):
    """As gradio leaves it: in a folder of its own."""
    place = folder / f"upload-{len(list(folder.iterdir()))}"
    place.mkdir()
    PIL.Image.new("RGB", size, (200, 90, 40)).save(place / name, **saved)
    return str(place / name)


def until(is_so):
    end = time.monotonic() + 30  # on a machine that is busy
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.001)


def run(session, pictures, wish=None, **models):
    running = Running(session, models or {"one": Model()}, wish or Wish("one"), pictures)
    running.start().join()
    return running


def test_a_result_keeps_format_name_and_metadata(tmp_path, session):
    exif = PIL.Image.Exif()
    exif[0x010F] = "A camera"
    given = upload(tmp_path, exif=exif, dpi=(300, 300))
    assert run(session, session.take([given])).ended == ""
    (result,) = session.results
    with PIL.Image.open(result.files[0]) as made:
        assert (made.format, made.size) == ("JPEG", (48, 32))
        assert made.getexif()[0x010F] == "A camera" and made.info["dpi"] == (300, 300)
    assert result.files[0].name == "photo_large.jpg"
    run(session, session.take([upload(tmp_path, exif=exif)]), Wish("one", keep_metadata=False))
    with PIL.Image.open(session.results[-1].files[0]) as made:
        assert 0x010F not in made.getexif()


@pytest.mark.parametrize(
    ("size", "wanted"),
    [
        (Size(2.5), (30, 20)),
        (Size(width=37), (37, 25)),
        (Size(height=31), (46, 31)),
        (Size(megapixels=0.0096), (120, 80)),
    ],
)
def test_every_way_to_say_a_size_gives_that_size(tmp_path, session, size, wanted):
    run(session, session.take([upload(tmp_path)]), Wish("one", size=size))
    assert session.results[0].size == wanted
    assert read_image(session.results[0].files[0]).pixels.shape[1::-1] == wanted


@pytest.mark.parametrize("wish", [Wish("another"), Wish("one", options=Options(steps=10))])
def test_a_wish_that_is_not_possible_is_refused_in_one_sentence(wish):
    with pytest.raises(UserError, match=r"\.$"):
        wish.check({"one": Model()})


def test_a_result_of_too_many_pixels_is_refused_in_words_of_the_page(tmp_path, session):
    wish = Wish("one", options=Options(max_pixels=100))
    run(session, session.take([upload(tmp_path)]), wish)
    wanted = "the result would be 48 x 32 pixels, of which 100 are allowed; choose a smaller size."
    assert session.failed == [f"photo.jpg: {wanted}"]


def test_bad_pictures_are_named_without_their_folders(tmp_path, session):
    good, bad = upload(tmp_path), upload(tmp_path, "broken.png")
    with open(bad, "r+b") as file:
        file.truncate(60)
    running = run(session, session.take([bad, good]))
    assert running.ended == "" and len(session.results) == 1
    assert session.failed[0].startswith("broken.png: ") and "/" not in session.failed[0]


def test_two_models_make_two_files_to_compare(tmp_path, session):
    models = {"one": Model(), "hf:a/b": Model(invert=True)}
    run(session, session.take([upload(tmp_path)]), Wish("one", other="hf:a/b"), **models)
    (result,) = session.results
    assert [path.name for path in result.files] == [
        "photo_large_one.jpg",
        "photo_large_hf-a-b.jpg",
    ]
    drawn = comparison(result)
    assert [p["name"] for p in drawn["pictures"]] == ["Original", "one", "hf:a/b"]
    one, other = (read_image(view.path).pixels for view in result.views[1:])
    assert not np.array_equal(one, other)


def test_a_stop_ends_the_work_within_a_second(tmp_path, session):
    model = Model(seconds=0.05, tiles=100)
    running = Running(session, {"one": model}, Wish("one"), session.take([upload(tmp_path)]))
    thread = running.start()
    until(lambda: running.now.done)
    session.stop.set()
    start = time.monotonic()
    thread.join()
    assert time.monotonic() - start < 1 and running.ended == "Stopped." and not session.results
    assert not list(running.folder.iterdir())


def test_any_number_of_visitors_take_turns_a_picture_each(tmp_path):
    tabs, order = Sessions(tmp_path / "sessions"), []

    class Noting(Model):
        def __call__(self, image, *args, **options):
            order.append(image.pixels.shape[1])
            return super().__call__(image, *args, **options)

    def running(number):
        session = tabs.of(str(number))
        given = [upload(tmp_path, size=(number + 1, 2)) for _ in range(2)]
        return Running(session, {"one": Noting()}, Wish("one"), session.take(given))

    runs = [running(number) for number in range(40)]
    with enlarging._TURNS.turn(lambda: None):
        threads = []
        for one in runs:
            threads.append(one.start())
            until(lambda: len(enlarging._TURNS._waiting) == len(threads) + 1)
        assert "Waiting for its turn." in progress(runs[0].now)
        assert "photo.jpg" in progress(runs[0].now) and not order
        runs[7].stop.set()
        threads[7].join()  # which the others do not hold up
        assert runs[7].ended == "Stopped."
    for thread in threads:
        thread.join()
    assert len(order) == 2 * 39 and len({*order[:39]}) == 39 == len({*order[39:]})


def test_the_end_of_the_page_waits_for_what_is_being_written(tmp_path, monkeypatch):
    monkeypatch.setattr(sessions, "MOMENT", 20)  # on a machine that does much else
    tabs = Sessions(tmp_path / "sessions")
    session, given = tabs.of("a tab"), upload(tmp_path)
    model = Model(seconds=0.05, tiles=100)
    running = Running(session, {"one": model}, Wish("one"), session.take([given]))
    thread = running.start()
    until(lambda: running.now.done)
    tabs.close()
    assert not thread.is_alive() and running.ended == "Stopped."
    assert not list((tmp_path / "sessions").iterdir())


def test_a_run_that_was_stopped_while_it_writes_leaves_nothing(tmp_path, session, monkeypatch):
    write, written = enlarging.write_image, threading.Event()

    def slowly(path, image):
        written.wait()
        write(path, image)

    monkeypatch.setattr(enlarging, "write_image", slowly)
    old = Running(session, {"one": Model()}, Wish("one"), session.take([upload(tmp_path)]))
    thread = old.start()
    until(lambda: old.now.done >= CALLS)
    session.begin([])  # as for the next run
    session.is_over = True
    written.set()
    thread.join()
    assert old.ended == "Stopped." and not old.results and not session.folder.exists()


def test_a_stop_also_ends_a_preview(tmp_path, session):
    running = Running(session, {}, Wish("one"), [])
    telling = Telling(running)
    telling.cost, telling.seen = 0.0, 0.0

    def look():
        running.stop.set()
        while True:
            torch.zeros(1).add(1)

    with pytest.raises(enlarging.Stopped):
        telling.tell(3, 8, look)


def test_a_fault_of_the_program_shows_no_traceback(tmp_path, session, monkeypatch):
    monkeypatch.setattr(Model, "__call__", lambda *_, **__: 1 / 0)
    assert run(session, session.take([upload(tmp_path)])).ended == BROKEN


def test_previews_take_at_most_a_part_of_the_time(session, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(enlarging.time, "monotonic", lambda: clock[0])
    telling, looks = Telling(Running(session, {}, Wish("one"), [])), 0

    def look():
        nonlocal looks
        looks += 1
        clock[0] += 2.0

    for done in range(100):
        clock[0] += 1.0
        assert telling.tell(done, 100, look)
    assert looks > 5 and looks * 2.0 <= clock[0] / 4


def test_the_picture_itself_is_seen_until_something_is_made(tmp_path, session):
    gated = Model(gate=threading.Semaphore(0))
    running = Running(session, {"one": gated}, Wish("one"), session.take([upload(tmp_path)]))
    thread = running.start()
    until(lambda: gated.seen)
    assert running.now.preview.size == (48, 32)
    gated.gate.release()
    thread.join()
    wide = Image(np.full((9, 4000, 3), 65535, np.uint16))
    seen = before_work(wide, (36, 16000))  # at most as large as previews are
    assert seen.size == (500, 2) and seen.getpixel((9, 1)) == (255, 255, 255)


def test_a_sweep_deletes_what_no_open_tab_owns(tmp_path):
    tabs = Sessions(tmp_path / "sessions")
    open_one, made_up = tabs.of("open"), tabs.of("made up")
    for session in (open_one, made_up):
        session.take([upload(tmp_path)])
    upload(tmp_path)  # which no session took
    (tmp_path / "tmp1").touch()  # one that broke off
    (tabs.root / "written after the end").mkdir()
    with tabs.tab("open"):
        sweep(tmp_path, tabs)
        assert len(list(tabs.root.iterdir())) == 3  # an hour is not over
        sweep(tmp_path, tabs, age=0)
    assert made_up.is_over and not open_one.is_over
    assert [*tmp_path.iterdir()] == [tabs.root] and [*tabs.root.iterdir()] == [open_one.folder]


def test_a_sweep_that_fails_is_not_the_last_one(tmp_path, monkeypatch, caplog):
    seen = []

    def broken(*_):
        seen.append(None)
        raise PermissionError("no")

    monkeypatch.setattr(uploads, "EVERY", 0.001)
    monkeypatch.setattr(uploads, "sweep", broken)
    with sweeping(tmp_path, Sessions(tmp_path / "sessions")):
        until(lambda: len(seen) > 1)
    assert "PermissionError" in caplog.text


def test_what_is_no_picture_is_left_out_deleted_and_said(tmp_path, session):
    photo, text = upload(tmp_path), tmp_path / "b.txt"
    text.touch()
    assert [path.name for path in session.take([photo, str(text)])] == ["photo.jpg"]
    assert not text.exists() and len(list(session.folder.iterdir())) == 1
    assert left_out([photo, str(text), str(text)]) == "Left out: 2 txt."
    assert left_out([photo]) == ""
    with pytest.raises(AppError, match="no picture among 1 txt"):
        left_out([str(text)])
    with pytest.raises(AppError, match="no picture yet"):
        left_out([])


def test_a_run_deletes_the_uploads_that_it_does_not_use(tmp_path, session):
    given = [upload(tmp_path, name) for name in ("a.png", "b.png")]
    used, removed = session.take(given)
    assert held(tmp_path) == used.stat().st_size + removed.stat().st_size
    session.begin([used])
    assert held(tmp_path) == used.stat().st_size and session.take([given[0]]) == [used]
    for gone in (given[1], str(removed)):  # as a browser asks that has not heard of it
        with pytest.raises(AppError, match="add it once more"):
            session.take([gone])


def test_what_is_deleted_while_it_is_counted_counts_nothing(tmp_path, session, monkeypatch):
    session.take([upload(tmp_path)])
    walk = uploads.os.walk

    def slowly(folder):
        for found in walk(folder):
            yield found
            shutil.rmtree(session.folder, ignore_errors=True)

    monkeypatch.setattr(uploads.os, "walk", slowly)
    assert held(tmp_path) == 0


def test_a_session_is_at_work_until_its_run_is_stopped(tmp_path, session):
    gated = Model(gate=threading.Semaphore(0))
    running = Running(session, {"one": gated}, Wish("one"), session.take([upload(tmp_path)]))
    assert not session.is_at_work
    thread = running.start()
    assert session.is_at_work
    session.stop.set()
    assert not session.is_at_work
    gated.gate.release()
    thread.join()


def test_files_of_a_session_go_with_it(tmp_path):
    tabs = Sessions(tmp_path / "sessions")
    session = tabs.of("a tab")
    first, second = upload(tmp_path), upload(tmp_path)
    taken = session.take([first, second])
    assert session.take([str(path) for path in taken]) == taken  # once is enough
    assert session.take([first, second]) == taken  # as a browser asks that has not heard of it
    assert len({*taken}) == 2 and {path.name for path in taken} == {"photo.jpg"}
    run(session, taken)
    tabs.end("a tab")
    assert session.stop.is_set() and not list((tmp_path / "sessions").iterdir())
    assert not list(tmp_path.rglob("*.jpg"))
    with pytest.raises(AppError, match="add it once more"):
        tabs.of("another tab").take([first])


def test_a_large_result_is_shown_smaller(tmp_path, monkeypatch):
    monkeypatch.setattr(views, "MOST", 10_000)
    pixels = np.zeros((130, 97, 3), np.uint8)
    pixels[::2] = 200
    view = read_image(write_view(tmp_path / "view.png", Image(pixels)))
    assert view.pixels.shape == (65, 48, 3) and (view.pixels == 100).all()


def test_a_file_that_is_asked_for_twice_at_once_is_taken_once(tmp_path, session, monkeypatch):
    wait, move = threading.Barrier(2), shutil.move

    def slowly(*places):
        with suppress(threading.BrokenBarrierError):
            wait.wait(0.1)  # until the other one is as far, unless that has to wait
        move(*places)

    monkeypatch.setattr(sessions.shutil, "move", slowly)
    given = upload(tmp_path)
    with ThreadPoolExecutor() as pool:
        taken = [pool.submit(session.take, [given]) for _ in range(2)]
    assert taken[0].result() == taken[1].result()


def test_progress_says_step_tiles_and_time_and_shows_the_preview():
    now = Now(
        "<b>.jpg", 2, 3, "one", 5, 12, CALLS, time.monotonic() - 10, PIL.Image.new("RGB", (4, 4))
    )
    text = progress(now)
    for part in ("2 of 3: &lt;b&gt;.jpg", "42%", "step 6 of 12, 3 tiles", "about 14 s left"):
        assert part in text
    assert "data:image/jpeg;base64," in text and "<progress" in progress(Now("a"))
    assert sentences(["<x>"], True) == '<p class="error" role="alert">&lt;x&gt;</p>'


def test_tiles_that_are_made_twice_are_counted_once(tmp_path, session):
    wish = Wish("one", options=Options(color_fix="adain"))
    running = run(session, session.take([upload(tmp_path)]), wish, one=Model(tiles=4))
    assert "step 16 of 16, 2 tiles" in progress(running.now)


def test_a_result_is_told_in_one_line(tmp_path, session):
    run(session, session.take([upload(tmp_path, "a.gif")]))
    told = summary(session.results[0])
    assert told == "a.gif: 12 x 8 became 48 x 32 pixels (as PNG: gif is not written)."


def test_all_results_become_one_zip(tmp_path, session):
    with pytest.raises(AppError, match="no result"):
        session.pack()
    names = ["photo.jpg", "photo.jpg", "PHOTO.jpg"]
    run(session, session.take([upload(tmp_path, name) for name in names]))
    assert not list(session.folder.glob("run-*/*.zip"))  # made when it is asked for
    with zipfile.ZipFile(session.pack()) as archive:
        wanted = ["photo_large.jpg", "photo_large-2.jpg", "PHOTO_large-3.jpg"]
        assert archive.namelist() == wanted
        assert PIL.Image.open(io.BytesIO(archive.read("photo_large-2.jpg"))).size == (48, 32)
