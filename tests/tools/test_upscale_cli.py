import io
import json
import logging
import os
import pty
import re
import resource
import signal
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from ldm_dream.commands.upscale import build_parser, main
from ldm_dream.data.images import Image, read_image, write_image
from ldm_dream.errors import UserError
from ldm_dream.upscaling import forecast, progress
from ldm_dream.upscaling.engine import Options
from ldm_dream.upscaling.upscaler import DEFAULT_MODEL, Upscaler
from runs import pixel_model

TOOL = Path(__file__).resolve().parents[2] / "tools/upscale.py"


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return pixel_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def photos(tmp_path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    write_image(
        folder / "gray.tif",
        Image(rng.integers(0, 65536, (5, 6, 1), dtype=np.uint16).repeat(3, 2), was_gray=True),
    )
    write_image(folder / "rgb.png", Image(rng.integers(0, 256, (7, 4, 3), dtype=np.uint8)))
    return folder


@pytest.fixture
def upscale(monkeypatch, capsys):
    """The tool in this process, for speed: words of the command line -> (exit status, stdout,
    stderr).
    """
    monkeypatch.setattr(progress, "BETWEEN_LINES", 3600.0)  # also on a slow machine
    monkeypatch.setattr(progress, "LONG", 3600.0)

    def run(*args) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            main([*map(str, args)])
        return stop.value.code, *capsys.readouterr()

    return run


def test_a_folder_with_a_bad_file_is_done_to_the_end_and_exits_1(model, photos, tmp_path, upscale):
    (photos / "notes.png").write_text("not a picture")
    report = tmp_path / "report.json"
    options = ("-i", photos, "-o", tmp_path / "out", "-n", model, "--suffix", "_x3", "-s", 3)
    code, out, err = upscale(*options, "--json-report", report)
    assert code == 1
    lines = out.splitlines()
    assert (
        len(lines) == 4
        and "6x5 -> 18x15" in lines[0]
        and "failed" in lines[1]
        and "4x7 -> 12x21" in lines[2]
        and lines[3] == "2 done, 1 failed"
    )
    assert err.startswith("failed: ") and "notes.png" in err and len(err.splitlines()) == 1
    gray = read_image(tmp_path / "out/gray_x3.tif")
    assert gray.was_gray and gray.pixels.dtype == np.uint16 and gray.pixels.shape == (15, 18, 3)
    entries = json.loads(report.read_text())
    assert entries["settings"]["input"] == [str(photos)]
    assert [p["status"] for p in entries["pictures"]] == ["done", "failed", "done"]
    used = ("scale", "seed", "steps", "sampler", "color_fix")
    assert [entries["settings"][name] for name in used] == [3, 0, 2, "ancestral", "wavelet"]
    assert entries["settings"]["device"] != "auto" and entries["settings"]["dtype"] != "auto"

    _, out, _ = upscale(*options, "--skip-existing")
    assert out.splitlines()[-1] == "2 skipped, 1 failed"


def test_the_report_tells_the_models_own_scale_unless_a_size_is_asked_for(
    model, photos, tmp_path, upscale
):
    report = tmp_path / "report.json"
    for words, scale in (((), 2), (("--width", 9), None)):
        options = (photos / "rgb.png", "-o", tmp_path / "out", "-n", model, *words)
        assert upscale(*options, "--json-report", report)[0] == 0
        assert json.loads(report.read_text())["settings"]["scale"] == scale


def test_no_file_of_a_model_below_the_home_folder_is_written_over(
    model, photos, tmp_path, upscale, monkeypatch
):
    monkeypatch.setenv("HOME", str(model.parent))
    report = model / "config.yaml"
    options = ("-n", f"~/{model.name}", "--json-report", report)
    code, _, err = upscale(photos, "-o", tmp_path / "out", *options)
    assert code == 2 and "is an input" in err and "scale" in report.read_text()


def test_one_picture_to_a_file_name_exits_0(model, photos, tmp_path, upscale):
    code, _, _ = upscale(
        "-i",
        photos / "rgb.png",
        "-o",
        tmp_path / "large.webp",
        "-n",
        model,
        "-t",
        8,
        "--tile-pad",
        2,
    )
    assert code == 0
    assert read_image(tmp_path / "large.webp").pixels.shape == (14, 8, 3)


@pytest.mark.parametrize(
    "asked, size",
    [
        ({"--width": 9}, (16, 9)),
        ({"--width": 9, "--height": 9}, (9, 5)),
        ({"--megapixels": 1e-4}, (13, 8)),
    ],
)
def test_a_result_has_the_size_that_was_asked_for(model, photos, tmp_path, upscale, asked, size):
    words = (word for pair in asked.items() for word in pair)
    code, *_ = upscale("-i", photos / "rgb.png", "-o", tmp_path / "x.png", "-n", model, *words)
    assert code == 0 and read_image(tmp_path / "x.png").pixels.shape[:2] == size


@pytest.mark.parametrize(
    "changed, says",
    [
        ({"-i": "none.png"}, "no such file or folder"),
        ({"-i": "photos/notes.png"}, "not a picture"),
        ({"-n": "no-such-model"}, "no-such-model"),
        ({"-o": "photos"}, "would be overwritten"),
        ({"--steps": "99"}, "steps=99"),
        ({"--sampler": "euler"}, "euler"),
        ({"--scale": "-1"}, "scale=-1"),
        ({"--scale": "2", "--width": "9"}, "scale=2.0 and width=9"),
        ({"--height": "0"}, "height=0"),
        ({"--device": "tpu"}, "device='tpu'"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_2(model, photos, upscale, monkeypatch, changed, says):
    (photos / "notes.png").write_text("not a picture")
    monkeypatch.chdir(photos.parent)
    options = {"-i": "photos/rgb.png", "-o": "out", "-n": model, **changed}
    code, _, err = upscale(*(word for pair in options.items() for word in pair))
    assert code == 2
    assert says in err and len(err.splitlines()) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_with_one_line_and_the_report_of_what_is_done(
    model, photos, tmp_path, upscale, monkeypatch, number
):
    """As if it came while the second picture is upscaled."""

    whole, calls = Upscaler.__call__, []

    def call(*args, **options):
        calls.append(args)
        if len(calls) == 2:
            os.kill(os.getpid(), number)
        return whole(*args, **options)

    monkeypatch.setattr(Upscaler, "__call__", call)
    code, out, err = upscale(
        "-i", photos, "-o", tmp_path / "out", "-n", model, "--json-report", tmp_path / "report.json"
    )
    assert code == 128 + number
    assert len(out.splitlines()) == len(err.splitlines()) == 1 and err.startswith("stopped")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["gray.tif"]
    report = json.loads((tmp_path / "report.json").read_text())
    assert [p["status"] for p in report["pictures"]] == ["done"]
    assert report["summary"] == "1 done, 1 not reached"


def test_no_model_is_loaded_for_the_one_picture_that_is_none(
    photos, tmp_path, upscale, monkeypatch
):
    monkeypatch.setattr(Upscaler, "from_pretrained", lambda *_: pytest.fail("loaded"))
    (photos / "notes.png").write_text("not a picture")
    code, _, err = upscale("-i", photos / "notes.png", "-o", tmp_path / "out")
    assert code == 2 and "not a picture" in err and len(err.splitlines()) == 1


def test_a_quality_that_no_output_has_is_said_before_a_model_is_loaded(
    photos, tmp_path, upscale, monkeypatch
):
    monkeypatch.setattr(Upscaler, "from_pretrained", lambda *_: pytest.fail("loaded"))
    code, _, err = upscale("-i", photos, "-o", tmp_path / "out", "--quality", 80)
    assert code == 2 and "quality=80 changes nothing in TIFF and PNG" in err


def test_no_output_takes_an_inputs_place_and_nothing_is_loaded_first(
    photos, tmp_path, upscale, monkeypatch
):
    monkeypatch.setattr(Upscaler, "from_pretrained", lambda *_: pytest.fail("loaded"))
    picture, link = photos / "rgb.png", tmp_path / "link.json"
    link.hardlink_to(picture)
    before = picture.read_bytes()
    for report in (picture, link):
        options = ("-i", photos, "-o", tmp_path / "out", "--json-report", report)
        code, _, err = upscale(*options)
        assert code == 2 and "is an input" in err and len(err.splitlines()) == 1
    assert picture.read_bytes() == before


def test_one_picture_that_fails_is_one_line_of_error(model, photos, tmp_path, upscale):
    options = ("-o", tmp_path / "x.png", "-n", model, "--max-pixels", 50)
    code, out, err = upscale(photos / "rgb.png", *options)
    assert (code, out) == (2, "") and err.startswith("error: ") and len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("place", "says"),
    [("/proc/x.png", "/proc: cannot be written to"), ("/dev/null", "no name of a picture")],
)
def test_a_place_that_takes_no_result_is_said_first(photos, upscale, asked, place, says):
    code, _, err = upscale(photos / "rgb.png", "-o", place)
    assert code == 2 and says in err and not asked


def test_files_and_folders_are_given_together_before_and_behind_i(model, photos, tmp_path, upscale):
    write_image(tmp_path / "one.png", Image(np.zeros((3, 3, 3), np.uint8)))
    (tmp_path / "two.png").write_text("no picture")
    options = ("-o", tmp_path / "out", "--model_name", model, "--outscale", 3, "-t", 0)
    code, out, err = upscale(tmp_path / "two.png", *options, "-i", photos, tmp_path / "one.png")
    assert code == 1 and out.splitlines()[-1] == "3 done, 1 failed" and "two.png" in err
    assert read_image(tmp_path / "out/one.png").pixels.shape == (9, 9, 3)


@pytest.fixture
def asked(monkeypatch):
    """The names that a model is asked for by, before it is loaded."""
    found = {}

    def from_pretrained(*names):
        found.update(zip(("model", "device", "dtype"), names))
        raise UserError("asked")

    monkeypatch.setattr(Upscaler, "from_pretrained", from_pretrained)
    return found


@pytest.mark.parametrize(
    ("words", "changed"),
    [
        ("--fp32 -g 1", {"device": "cuda:1", "dtype": "fp32"}),
        ("--gpu-id -1", {"device": "cpu"}),
        ("--gpu_id=0 --model_path hf:o/x", {"device": "cuda:0", "model": "hf:o/x"}),
        ("--tile 0 --tile_pad 10 --suffix out --ext png", {}),
        ("-f png", {}),
    ],
)
def test_the_names_of_real_esrgan_do_what_ours_do(photos, tmp_path, upscale, asked, words, changed):
    code, _, err = upscale("-i", photos / "rgb.png", "-o", tmp_path / "out", *words.split())
    assert (code, err) == (2, "error: asked\n")
    usual = {"model": DEFAULT_MODEL, "device": "auto", "dtype": "auto"}
    assert asked == usual | changed


@pytest.mark.parametrize("words", ["--face_enhance", "-dn 0.5", "--pre_pad 10", "-j 1:2:2", "-x"])
def test_what_means_nothing_here_is_one_sentence(photos, tmp_path, upscale, words):
    code, _, err = upscale("-i", photos, "-o", tmp_path / "out", *words.split())
    assert code == 2 and len(err.splitlines()) == 1
    assert err.startswith(f"error: {words.split()[0]}: ") and "so leave it out" in err


def test_models_are_listed_and_a_near_name_is_offered(photos, tmp_path, upscale, monkeypatch):
    code, out, _ = upscale("--list-models")
    assert code == 0 and out.startswith("dream-latent-x4-tiny  x4  ")
    code, _, err = upscale(photos, "-o", tmp_path / "out", "-n", "dream-latent-x4")
    assert code == 2 and "did you mean dream-latent-x4-tiny?" in err
    code, _, err = upscale("-o", tmp_path / "out")
    assert code == 2 and "no picture is given" in err


def test_space_is_said_before_a_long_folder_and_time_after_its_first_steps(
    model, photos, tmp_path, upscale, monkeypatch, capsys
):
    options = (photos, "-o", tmp_path / "out", "-n", model)
    assert upscale(*options)[2] == ""
    monkeypatch.setattr(forecast, "LONG_WORK", 100)
    monkeypatch.setattr(progress, "LONG", 0.0)
    whole, said = Upscaler.__call__, []

    def call(*args, **options):
        said.extend(capsys.readouterr().err.splitlines())
        return whole(*args, **options)

    monkeypatch.setattr(Upscaler, "__call__", call)
    assert upscale(*options)[0] == 0
    space, left = said  # before the first picture and before the second
    assert "2 pictures of 0.0 megapixels become 0.0 megapixels, about " in space
    assert space.endswith(
        "are free there; computed in fp32 on cpu; the time is told after the first steps."
    )
    assert re.fullmatch(r" *\d+%  picture 1 of 2, step 2 of 4, about \d+ s left", left)


def test_quiet_prints_mistakes_only(model, photos, tmp_path, upscale, monkeypatch):
    monkeypatch.setattr(forecast, "LONG_WORK", 0)
    (photos / "bad.png").write_text("no picture")
    log, whole = logging.getLogger("ldm_dream.data.writer"), Upscaler.__call__

    def call(*args, **options):
        log.warning("a profile is lost")
        return whole(*args, **options)

    monkeypatch.setattr(Upscaler, "__call__", call)
    told = logging.StreamHandler(io.StringIO())
    monkeypatch.setattr(logging.getLogger(), "handlers", [told])
    options = (photos, "-o", tmp_path / "out", "-n", model)
    code, out, err = upscale(*options, "--quiet")
    assert code == 1 and out == "" and len(err.splitlines()) == 1 and "bad.png" in err
    assert told.stream.getvalue() == "" and log.isEnabledFor(logging.WARNING)


def test_a_terminal_hears_of_the_work_before_anything_is_loaded(
    photos, tmp_path, upscale, asked, monkeypatch
):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    _, _, err = upscale(photos, "-o", tmp_path / "out")
    first = f"{photos} -> {tmp_path / 'out'}: loading {DEFAULT_MODEL}"
    assert err.splitlines() == [first, "error: asked"]


def test_the_first_line_comes_within_three_seconds(photos, tmp_path):
    """Of CPU, which a busy machine does not stretch."""
    reading, writing = pty.openpty()
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, str(TOOL), str(photos), "-o", str(tmp_path / "out")]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=writing)
    first = os.read(reading, 10_000)
    child.kill()
    child.wait()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    took = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert f"loading {DEFAULT_MODEL}".encode() in first and took < 3, took
    os.close(reading), os.close(writing)


def test_what_is_not_asked_for_is_what_the_library_takes():
    args = build_parser().parse_args(["x", "-o", "y"])
    for field in fields(Options):
        assert getattr(args, field.name) == field.default, field.name
    assert args.model == DEFAULT_MODEL


def test_help_does_not_import_torch():
    code = f"import runpy, sys; sys.argv = ['upscale.py', '-h']\ntry: runpy.run_path({str(TOOL)!r}, run_name='__main__')\n"
    code += "except SystemExit: print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False" and "--color-fix" in done.stdout
