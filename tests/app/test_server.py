"""The server of the page, and the page in a browser that has no network.

One server and one browser serve all tests of this file, since each takes seconds to start.
"""

import asyncio
import io
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
import zipfile
from pathlib import Path

import PIL.Image
import pytest

from app import browser
from app.fakes import Model
from ldm_dream.app import enlarging, page, server
from ldm_dream.app.errors import AppError
from ldm_dream.app.place import Place
from ldm_dream.app.server import load_models, serving
from ldm_dream.app.sessions import Session, Sessions
from ldm_dream.app.uploads import Uploads, sweep
from ldm_dream.commands.app import main as app_command
from ldm_dream.data.formats import SUFFIXES
from ldm_dream.data.images import read_image
from ldm_dream.processes import this_process
from ldm_dream.writing import WriteError

pytest.importorskip("gradio", reason="gradio is not installed (the extra app)")

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 30  # seconds, for a machine that is busy


PLAIN = "plain-model-of-a-long-name"
MODELS = {
    PLAIN: Model(),
    "negative": Model(invert=True),
    "slow": Model(seconds=0.1, tiles=100),
    "gated": Model(gate=threading.Semaphore(0)),
}


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """Where servers put the files of visitors."""
    folder = tmp_path_factory.mktemp("served")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(folder))
        yield folder


@pytest.fixture(scope="module")
def url(served):
    closed, told = [], []
    handler = logging.Handler()
    handler.emit = told.append

    class Noting(Sessions):
        def close(self):
            closed.append(len(list(served.iterdir())))
            super().close()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server, "Sessions", Noting)
        with serving(MODELS, Place(port=0, upload=1, held=2)) as url:
            yield url
            logging.getLogger("uvicorn.error").addHandler(handler)
    assert logging.getLogger("uvicorn.error").level < logging.CRITICAL
    assert not told  # no traceback of a connection that was cut
    assert closed == [1]  # before the folder is deleted
    assert not list(served.iterdir())  # all is deleted


# ---------------------------------------------------------------------------------------- the server


def answer(address, **headers) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(urllib.request.Request(address, headers=headers)) as found:
            return found.status, found.read()
    except urllib.error.HTTPError as error:
        return error.code, b""


def test_the_page_names_no_other_site(url):
    status, body = answer(url)
    assert status == 200
    text = body.decode()
    addresses = [
        text[i : i + 60] for i in range(len(text)) if text.startswith(("http:", "https:"), i)
    ]
    assert not [a for a in addresses if not a.startswith(url.rstrip("/"))]
    assert '"analytics_enabled":false' in text


@pytest.mark.parametrize(
    "path",
    [
        "gradio_api/file=/etc/hostname",
        f"gradio_api/file={ROOT}/pyproject.toml",
        "gradio_api/file=pyproject.toml",
        "gradio_api/file=https://example.com/",
        "gradio_api/proxy=https://example.com/",
        "monitoring",
        "gradio_api/deep_link?session_hash=x",
    ],
)
def test_nothing_but_pictures_of_visitors_is_served(url, path):
    assert answer(url + path)[0] == 403


def test_another_site_cannot_have_its_name_lead_to_the_page(url):
    assert answer(url, Host="elsewhere.example")[0] == 400


def posted(address, body, **headers) -> int:
    """-> the status."""
    asked = urllib.request.Request(address, data=body, headers=headers, method="POST")
    try:
        with urllib.request.urlopen(asked) as found:
            return found.status
    except urllib.error.HTTPError as error:
        return error.code


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_pages_of_other_sites_can_send_nothing(url, headers):
    assert posted(url + "gradio_api/upload", b"", **headers) == 403


def test_the_page_itself_may_send(url):
    own = {"Origin": url.rstrip("/"), "Sec-Fetch-Site": "same-origin"}
    assert posted(url + "gradio_api/upload", b"", **own) != 403
    assert posted(url + "gradio_api/upload", b"") != 403  # no browser


@pytest.mark.parametrize(
    "path", ["gradio_api/process_recording", "gradio_api/call/x", "gradio_api/api/x", "upload"]
)
def test_only_what_the_page_sends_is_taken(url, path):
    assert posted(url + path, b"") == 403


def test_nothing_is_offered_to_programs(url):
    assert json.loads(answer(url + "gradio_api/info")[1])["named_endpoints"] == {}
    assert [answer(url + way)[0] for way in ("openapi.json", "gradio_api/openapi.json")] == [
        404
    ] * 2


@pytest.mark.parametrize("number", (0, 1, 3))  # functions that take values
def test_a_request_that_makes_no_sense_prints_no_traceback(url, capfd, number):
    body = json.dumps({"data": [], "fn_index": number, "session_hash": "x"}).encode()
    posted(url + "gradio_api/queue/join", body, **{"Content-Type": "application/json"})
    body = json.dumps({"data": [], "fn_index": number, "session_hash": "x"}).encode()
    posted(url + "gradio_api/run/predict", body, **{"Content-Type": "application/json"})
    time.sleep(0.3)
    assert "Traceback" not in capfd.readouterr().err


def said_by(capsys, words) -> str:
    """What the command says as it ends with a mistake of the user."""
    with pytest.raises(SystemExit) as end:
        app_command(words)
    out, err = capsys.readouterr()
    assert end.value.code == 2 and err.count("\n") == 1
    assert out.startswith("starting the page ...\n")  # the first line, before anything is loaded
    return err


def test_a_port_that_is_taken_is_said_in_one_sentence(url, capsys, monkeypatch):
    monkeypatch.setattr(server, "load_models", lambda *_: pytest.fail("models are loaded"))
    port = int(url.rstrip("/").rpartition(":")[2])
    message = said_by(capsys, ["--port", str(port)])
    assert message.startswith(f"error: 127.0.0.1:{port} cannot be used")


def test_places_and_models_that_are_not_possible_are_refused(capsys, monkeypatch):
    assert "--port -1" in said_by(capsys, ["--port", "-1"])
    assert "--max-upload 0" in said_by(capsys, ["--max-upload", "0"])
    assert "--max-held 3" in said_by(capsys, ["--max-held", "3"])
    assert "no-model: neither" in said_by(capsys, ["-n", "no-model"])
    assert "vq-f4-tiny" not in said_by(capsys, ["-n", "vq-f4-tin"])  # an autoencoder
    assert Place(upload=9000).most == 9000 * 2**20 and Place().most == 8000 * 2**20
    with pytest.raises(AppError, match="two models are named"):
        load_models(["dream-latent-x4-tiny"] * 2, "cpu", "auto")
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert "pip install 'ldm_dream[app]'" in said_by(capsys, [])
    assert Place().is_private and Place("::1").is_private and not Place("0.0.0.0").is_private


def test_what_a_killed_server_left_is_removed_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    gone = subprocess.Popen(["true"])
    gone.wait()
    here = this_process().partition("-")[0]
    owners = [f"{here}-{gone.pid}", this_process(), f"00000000-{gone.pid}", "nobody", None]
    for number, owner in enumerate(owners):
        (tmp_path / f"ldm-dream-{number}" / "served").mkdir(parents=True)
        if owner:
            (tmp_path / f"ldm-dream-{number}" / "owner").write_text(owner)
    for number in (5, 6):
        (tmp_path / f"ldm-dream-{number}").mkdir()
    (tmp_path / "ldm-dream-5" / "owner").write_bytes(b"\xff\xfe")
    os.mkfifo(tmp_path / "ldm-dream-6" / "owner")
    server._remove_stale()
    assert {path.name for path in tmp_path.iterdir()} == {f"ldm-dream-{n}" for n in range(1, 7)}


def sent(url, content, name="a.png"):
    """An upload as a program sends it; -> the status, and what is answered."""
    head = f'--x\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'
    body = head.encode() + content + b"\r\n--x--\r\n"
    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    try:
        asked = urllib.request.Request(url + "gradio_api/upload", body, kind)
        with urllib.request.urlopen(asked) as found:
            return found.status, found.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_an_upload_is_told_nothing_of_the_process_of_the_server(url):
    status, said = sent(url, b"some bytes")
    (path,) = json.loads(said)
    assert status == 200 and this_process().split("-")[0] not in path
    assert re.fullmatch(r".*/ldm-dream-\w{8}/served/[0-9a-f]{64}/a\.png", path)
    owner = Path(path).parents[2] / "owner"
    assert owner.is_file() and answer(f"{url}gradio_api/file={owner}")[0] == 403


def test_all_uploads_together_have_one_limit(url, served):
    (room,) = served.glob("ldm-dream-*/served")
    given = [sent(url, bytes([n]) * (2**20 - 9))[0] for n in range(3)]
    assert given == [200, 413, 413]  # their heads are counted too
    sweep(room, Sessions(room / "sessions"), age=0)
    assert sent(url, bytes(100))[0] == 200 and not list(room.glob("tmp*"))


def test_an_upload_without_a_length_is_refused(tmp_path):
    said = []

    async def send(message):
        said.append(message)

    uploads = Uploads(send, tmp_path, Sessions(tmp_path / "sessions"), 100)
    asyncio.run(uploads({"path": "/gradio_api/upload", "headers": []}, send, send))
    assert said[0]["status"] == 411 and uploads.coming == 0


def test_what_is_wrong_in_the_command_is_said_before_torch_is_loaded():
    words = ["-n", "no-model", "--port", "0"]
    code = (
        "import sys; from ldm_dream.commands.app import main\n"
        f"try: main({words})\n"
        "except SystemExit: print({'torch', 'gradio', 'numpy'} & {*sys.modules})"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.stdout.endswith("set()\n") and "no-model: neither" in ended.stderr


# --------------------------------------------------------------------------------------- the browser


@pytest.fixture(scope="module")
def downloads(tmp_path_factory):
    return tmp_path_factory.mktemp("downloads")


@pytest.fixture(scope="module")
def chromium(downloads):
    driver = browser.start(downloads)
    yield driver
    driver.quit()


class Visit:
    """The page, opened anew."""

    def __init__(self, driver, downloads, url):
        self.driver, self.downloads = driver, downloads
        driver.get(url)
        self.one("#start")
        self.one("#pictures input[type=file]")

    def all(self, selector):
        return self.driver.find_elements("css selector", selector)

    def one(self, selector):
        return self.wait(lambda: self.all(selector), selector)[0]

    def wait(self, found, what=""):
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            if value := found():
                return value
            time.sleep(0.05)
        raise AssertionError(f"never came: {what}; the page says {self.said()!r}")

    def said(self):
        return " ".join(part.text for part in self.all("#status"))

    def drawn(self, name):
        """Where an element is drawn: a dict of left, top, width, height."""
        return self.driver.execute_script(
            "const b = document.querySelector(arguments[0]).getBoundingClientRect();"
            "return {left: b.left, top: b.top, width: b.width, height: b.height}",
            name,
        )

    def give(self, *paths, into="#pictures input[type=file]"):
        self.one(into).send_keys("\n".join(map(str, paths)))
        names = {Path(path).stem for path in paths if Path(path).is_file()}
        self.wait(lambda: all(name[:4] in self.one("#pictures").text for name in names), names)

    def choose(self, field, name):
        """An entry of a list of gradio, which may be drawn anew at any moment."""
        from selenium.common.exceptions import WebDriverException

        def is_chosen():
            try:
                box = self.one(f"{field} input")
                if name in (box.get_attribute("value") or ""):
                    return True
                if not self.all("ul[role=listbox] li"):
                    box.click()
                next(li for li in self.all("ul[role=listbox] li") if name in li.text).click()
            except (WebDriverException, StopIteration):
                return False
            return name in (box.get_attribute("value") or "")

        self.wait(is_chosen, name)

    def start(self):
        self.one("#start").click()

    def stop(self):
        """-> seconds until the page says that it did, by the browser's clock."""
        return self.driver.execute_async_script(
            "const done = arguments[0], start = performance.now();"
            "const status = document.querySelector('#status');"
            "const look = () => { if (!status.textContent.includes('Stopped.')) return;"
            "  watcher.disconnect(); done((performance.now() - start) / 1000); };"
            "const watcher = new MutationObserver(look);"
            "watcher.observe(status, {subtree: true, childList: true, characterData: true});"
            "document.querySelector('#stop').click();"
        )

    def is_done(self, text="became"):
        self.wait(lambda: text in self.said(), text)
        self.wait(lambda: self.all("#start") and self.one("#start").is_displayed(), "the button")

    def download(self, button):
        """Clicks; -> the file that comes."""
        folder = self.downloads
        before = set(folder.iterdir())
        self.one(button).click()

        def whole():
            new = [p for p in set(folder.iterdir()) - before if p.suffix != ".crdownload"]
            return [p for p in new if not p.name.startswith(".")]

        return self.wait(whole, "a file")[0]


@pytest.fixture
def visit(chromium, downloads, url):
    return Visit(chromium, downloads, url)


@pytest.fixture
def photo(tmp_path):
    exif = PIL.Image.Exif()
    exif[0x010F] = "A camera"
    PIL.Image.linear_gradient("L").resize((60, 40)).convert("RGB").save(
        tmp_path / "photo.jpg", exif=exif, dpi=(300, 300)
    )
    return tmp_path / "photo.jpg"


def test_from_upload_to_the_downloaded_picture_without_network(visit, photo, chromium):
    chromium.get_log("performance")
    visit.give(photo)
    visit.start()
    visit.is_done("photo.jpg: 60 x 40 became 120 x 80 pixels.")
    scale, options = MODELS[PLAIN].seen[-1]
    assert (scale, options["steps"], options["seed"]) == (2, None, None)
    with PIL.Image.open(visit.download("#download")) as made:
        assert (made.format, made.size, made.info["dpi"]) == ("JPEG", (120, 80), (300, 300))
        assert made.getexif()[0x010F] == "A camera"
    events = [json.loads(line["message"])["message"] for line in chromium.get_log("performance")]
    asked = [
        e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"
    ]
    assert asked
    assert not [a for a in asked if not a.startswith(("http://127.0.0.1:", "data:", "blob:"))]
    errors = [line for line in chromium.get_log("browser") if line["level"] == "SEVERE"]
    assert not errors


def test_a_stop_ends_the_work_within_a_second_and_leaves_the_page_ready(visit, photo):
    visit.give(photo)
    visit.choose("#model", "slow")
    visit.start()
    says = re.compile(r"step \d+ of 400, 100 tiles, about \d+ s left")
    visit.wait(lambda: says.search(visit.said()) and visit.all("#status img"), "a preview")
    took = visit.stop()
    for _ in range(3):  # a machine that does much else is slow at times
        if took < 1:
            break
        visit.start()
        visit.wait(lambda: says.search(visit.said()), "progress")
        took = visit.stop()
    visit.choose("#model", "plain")
    visit.start()
    visit.is_done()
    assert took < 1


def test_a_visitor_who_waits_can_stop_and_start_again(visit, photo, monkeypatch):
    visit.give(photo)
    with enlarging._TURNS.turn(lambda: None):  # of somebody else
        visit.start()
        visit.wait(lambda: "photo.jpg" in visit.said(), "the picture's name")
        assert "Waiting for its turn." in visit.said()
        visit.stop()
        visit.is_done("Stopped.")
    with monkeypatch.context() as broken:
        broken.setattr(page, "_done", lambda *_: 1 / 0)
        visit.start()
        visit.is_done(enlarging.BROKEN)
    visit.start()
    visit.is_done()


def test_mistakes_are_sentences_and_results_stay(visit, photo, tmp_path):
    visit.start()
    visit.is_done("There is no picture yet; drop one on the field, or click it.")
    (tmp_path / "half.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    visit.give(tmp_path / "half.png")
    visit.wait(lambda: not visit.said(), "no more of the mistake")
    visit.start()
    visit.is_done("half.png: ")
    visit.give(photo)
    visit.start()
    visit.is_done()
    from selenium.webdriver.common.keys import Keys

    number = visit.one("#value input")
    number.send_keys(Keys.CONTROL + "a" + Keys.NULL + "0")
    visit.start()
    visit.is_done("scale=0 is not possible; give a number above 0")
    assert visit.one("#status .error").get_attribute("role") == "alert"
    assert visit.one("#download").is_displayed()  # of the run before
    assert visit.download("#download").stat().st_size
    for word in ("Traceback", "Error", "/tmp", "sessions"):
        assert word not in visit.said()


def test_the_pictures_are_compared_by_keyboard(visit, photo):
    visit.give(photo)
    visit.start()
    visit.is_done()
    from selenium.webdriver.common.keys import Keys

    split = visit.one(".split")
    visit.wait(lambda: visit.drawn(".frame .over")["width"] > 0, "the pictures")
    before = visit.drawn(".line")["left"]
    split.send_keys(Keys.ARROW_RIGHT * 10)
    assert split.get_attribute("value") == "60"
    assert split.get_attribute("aria-valuetext") == "60 % from the left"
    assert visit.drawn(".line")["left"] > before
    frame, fitted = visit.one(".frame"), visit.drawn(".frame .over")
    frame.send_keys("1")
    assert visit.drawn(".frame .over")["width"] == 120 and visit.one(".percent").text == "100 %"
    frame.send_keys("0", "+", "+")
    zoomed = visit.drawn(".frame .over")
    assert zoomed["width"] == pytest.approx(fitted["width"] * 1.5**2, rel=0.01)
    frame.send_keys(Keys.ARROW_RIGHT)
    assert visit.drawn(".frame .over")["left"] == pytest.approx(zoomed["left"] - 60)
    frame.send_keys("0")
    assert visit.drawn(".frame .over") == fitted


def test_two_models_are_compared(visit, photo):
    visit.give(photo)
    visit.choose("#other", "negative")
    visit.start()
    visit.is_done()
    names = [option.text for option in visit.all(".compare .left option")]
    assert names == ["Original", PLAIN, "negative"]
    before = visit.one(".frame .over").get_attribute("src")
    visit.one(".compare .left").send_keys("negative")
    visit.wait(lambda: visit.one(".frame .over").get_attribute("src") != before, "the other model")
    made = [read_image(visit.download(b)).pixels.mean() for b in ("#download", "#download-other")]
    assert made[0] + made[1] == pytest.approx(255, abs=3)


def drop(visit, path):
    """As from a file manager, on the field of pictures."""
    field = visit.drawn("#pictures")
    at = {"x": field["left"] + 100, "y": field["top"] + 100}
    data = {"items": [], "files": [str(path)], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "drop"):
        event = {"type": kind, "data": data, **at}
        visit.driver.execute_cdp_cmd("Input.dispatchDragEvent", event)


def no_space(session):
    raise WriteError(f"{session.folder}/run-9/larger.zip: no space is left.")


def test_a_picture_that_was_chosen_stays_when_another_is_finished(visit, photo, tmp_path):
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        (tmp_path / name).write_bytes(photo.read_bytes())
    gate = MODELS["gated"].gate
    visit.give(*(tmp_path / name for name in ("a.jpg", "b.jpg", "c.jpg")))
    visit.choose("#model", "gated")
    visit.start()
    gate.release(2)
    visit.wait(lambda: "Download b" in visit.one("body").text, "the newest picture")
    visit.choose("#chooser", "a.jpg")
    visit.wait(lambda: "a_large.jpg" in visit.one("#download").text, "the chosen picture")
    gate.release()
    visit.is_done("c.jpg: ")
    assert "a_large.jpg" in visit.one("#download").text
    assert visit.one("#chooser input").get_attribute("value") == "a.jpg"


@pytest.mark.parametrize("way", ["chosen", "dropped"])
def test_a_folder_becomes_a_zip(visit, photo, tmp_path, way, monkeypatch, served):
    folder = tmp_path / "holiday"
    folder.mkdir()
    (folder / "notes.txt").write_text("no picture")
    for name in ("a.jpg", "b.jpg"):
        (folder / name).write_bytes(photo.read_bytes())
    if way == "chosen":
        visit.give(folder, into="input[webkitdirectory]")
    else:
        drop(visit, folder)
    visit.wait(lambda: "Left out: 1 txt." in visit.said(), "what is no picture")
    visit.start()
    visit.is_done()
    assert not list(served.rglob("*.zip"))  # made at the click
    with monkeypatch.context() as full:
        full.setattr(Session, "pack", no_space)
        visit.one("#everything").click()
        visit.wait(lambda: "larger.zip: no space is left." in visit.said(), "a word")
        assert str(served) not in visit.one("body").text
    with zipfile.ZipFile(visit.download("#everything")) as archive:
        assert archive.namelist() == ["a_large.jpg", "b_large.jpg"]
        assert PIL.Image.open(io.BytesIO(archive.read("a_large.jpg"))).size == (120, 80)
    visit.choose("#chooser", "a.jpg")
    visit.wait(lambda: "a_large.jpg" in visit.one("#download").text, "the other picture")


def test_a_file_that_is_too_large_is_refused(visit, tmp_path):
    (tmp_path / "large.png").write_bytes(bytes(2**20 + 1))
    visit.one("#pictures input[type=file]").send_keys(str(tmp_path / "large.png"))
    visit.wait(
        lambda: "exceed the maximum allowed size" in visit.one("body").text, "a word on the size"
    )


def test_a_file_that_is_one_too_many_is_refused(visit, photo, served):
    (room,) = served.glob("ldm-dream-*/served")
    (room / "somebody").mkdir()
    (room / "somebody" / "large.png").write_bytes(bytes(2 * 2**20))
    try:
        visit.one("#pictures input[type=file]").send_keys(str(photo))
        visit.wait(lambda: "together may have 2 MB" in visit.one("body").text, "the sentence")
    finally:
        shutil.rmtree(room / "somebody")


def test_the_browser_offers_pictures_alone(visit):
    kinds = visit.one("#pictures input[type=file]").get_attribute("accept").split(",")
    assert {kind.strip() for kind in kinds} == {*SUFFIXES}


def test_what_a_visitor_gave_is_deleted_when_the_tab_is_closed(visit, photo, chromium, served):
    def sessions():
        return set(served.glob("ldm-dream-*/served/sessions/*"))

    visit.wait(lambda: not sessions(), "the end of earlier visits")
    visit.give(photo)
    visit.wait(lambda: len(sessions()) == 1, "a folder")
    chromium.get("about:blank")
    visit.wait(lambda: not sessions(), "no folder")


def test_narrow_and_dark_screens_show_the_whole_page(visit, photo, chromium):
    visit.give(photo)
    visit.start()
    visit.is_done()
    visit.wait(lambda: visit.drawn(".frame .over")["width"] > 0, "the pictures")
    chromium.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": 380, "height": 800, "deviceScaleFactor": 1, "mobile": True},
    )
    dark = [{"name": "prefers-color-scheme", "value": "dark"}]
    chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": dark})
    try:
        wide = chromium.execute_script("return document.documentElement.scrollWidth")
        visit.wait(lambda: visit.drawn(".frame .over")["width"] <= 380, "smaller pictures")
        colour = chromium.execute_script("return getComputedStyle(document.body).backgroundColor")
        assert wide <= 380 and max(int(x) for x in re.findall(r"\d+", colour)[:3]) < 64
    finally:
        chromium.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
