"""What all tools share: one printable line for a mistake, and a clean end by a signal."""

import io
import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack

import pytest

from ldm_dream import stopping
from ldm_dream.cli import command_line, user_errors
from ldm_dream.commands.main import COMMANDS, command, main, script, usage
from ldm_dream.errors import UserError, shown
from ldm_dream.stopping import stoppable


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("caf\xe9 \u4e2d\u6587 \U0001f600.png", "caf\xe9 \u4e2d\u6587 \U0001f600.png"),
        ("a\nb\x1b[31m\x00", r"a\nb\x1b[31m\x00"),
        ("\x9b31m\u2028\u202egnp.exe", r"\x9b31m\u2028\u202egnp.exe"),
        (os.fsdecode(b"caf\xe9"), r"caf\udce9"),
        ("\ud800", r"\ud800"),
    ],
)
def test_what_is_shown_controls_no_terminal(text, escaped):
    assert shown(text) == escaped
    shown(text).encode("utf-8")


def test_a_mistake_is_one_line_without_control_characters(capsys):
    with pytest.raises(SystemExit) as stop, user_errors():
        raise UserError("evil\x1b[2J name:\n  not possible.")
    assert stop.value.code == 2
    assert capsys.readouterr().err == "error: evil\\x1b[2J name: not possible.\n"


def test_an_output_in_ascii_takes_every_name(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    with user_errors():
        sys.stdout.write("\u4e2d.png\n")
        sys.stdout.flush()
    assert stream.buffer.getvalue() == b"\\u4e2d.png\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_with_one_line_and_its_status(capsys, number):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as stop, stoppable("all is whole"):
        os.kill(os.getpid(), number)
        signal.pause()
    assert stop.value.code == 128 + number
    assert capsys.readouterr().err == "stopped; all is whole.\n"
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_reader_that_has_gone_ends_a_tool_without_a_traceback(monkeypatch):
    """As in `| head -1`."""
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as stream, monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", stream)
        with pytest.raises(SystemExit) as stop, user_errors():
            sys.stdout.write("a line\n")
            sys.stdout.flush()
    assert stop.value.code == 128 + signal.SIGPIPE


def test_a_pipe_that_breaks_elsewhere_is_not_taken_for_stdout():
    with pytest.raises(BrokenPipeError, match="of a worker"), user_errors():
        raise BrokenPipeError("of a worker")


# --------------------------------------------------------------------------------- command lines


def refused(capsys, call, *args) -> str:
    """The one line that a mistake ends with."""
    with pytest.raises(SystemExit) as stop:
        call(*args)
    err = capsys.readouterr().err
    assert stop.value.code == 2 and err.startswith("error: ") and len(err.splitlines()) == 1
    return err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("upscal -i x", "there is no command upscal; did you mean upscale?"),
        ("prepare div2", "there is no recipe 'div2'; did you mean div2k?"),
        ("enlarge", "use one of upscale, train"),
        ("upscale x -o y --tile_padd 3", "no option --tile-padd; did you mean --tile-pad?"),
        ("upscale x --outptu y", "did you mean --output?"),
        ("upscale x -o y --scael=3", "did you mean --scale?"),
        ("upscale x -o y -z", "nothing here takes -z"),
        ("upscale x -o y --seed one", "invalid int value: 'one'"),
        ("train --dry-rum configs/quickstart.yaml", "did you mean --dry-run?"),
        ("evaluate --hr x --sr y --jason z", "did you mean --json?"),
        ("train", "CONFIG.yaml"),
        ("upscale x -o y --\x1b[31m", "no option --\\x1b[31m"),
        ("upscale x -o y --tile one", "'one' is not possible; give a whole number from 0"),
        ("upscale x -o y --tile -1", "give a whole number from 0"),
        ("prepare ffhq --sizes 16,big", "'big' is not possible; give a whole number from 1"),
        ("prepare ffhq --workers 0", "'0' is not possible; give a whole number from 1"),
        ("upscale x -o y --face-enhance", "--face_enhance: there is no model for faces here"),
        ("upscale x -o y --face_enhanced", "no option --face-enhanced; see ldm-dream upscale"),
    ],
)
def test_a_mistake_in_a_command_line_is_one_line_with_the_nearest_name(capsys, words, says):
    assert says in refused(capsys, main, words.split(" "))


def test_words_stand_anywhere_and_options_are_written_with_either_dash():
    parser = command_line("x", "First.")
    parser.add_argument("words", nargs="*")
    parser.add_argument("--two-parts", type=int)
    parser.add_argument("--odd_name")
    for words in ("a --two_parts 3 b", "--two-parts=3 a b", "a b --two_par 3"):
        found = parser.parse_args(words.split())
        assert parser.parse_args(["--odd-name=v"]).odd_name == "v"
        assert (found.words, found.two_parts) == (["a", "b"], 3)
    found = parser.parse_args(["--odd_name", "--two_parts=1", "--", "--no_option"][1:])
    assert found.words == ["--no_option"] and parser.parse_args(["--odd_name", "v"]).odd_name == "v"


# ------------------------------------------------------------------------- ends within a second

SLEEP = """
import hashlib, pathlib, sys, threading, time
from ldm_dream.stopping import stoppable
from ldm_dream.writing import whole_file
with stoppable("all is whole") as last:
    last.callback(lambda: print("last", flush=True))
    with whole_file(pathlib.Path(sys.argv[1])) as draft:
        while True:
            try:
                print(draft.exists(), flush=True)
                if sys.argv[2] == "long call":  # which no signal interrupts
                    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)
                if sys.argv[2] == "waits":
                    try:
                        time.sleep(60)
                    finally:
                        threading.Event().wait()
                time.sleep(60)
            except KeyboardInterrupt:
                print("passed over", flush=True)
"""


@pytest.mark.parametrize(
    ("way", "number"),
    [("long call", signal.SIGTERM), ("waits", signal.SIGINT), ("twice", signal.SIGINT)],
)
def test_a_signal_ends_what_does_not_listen_and_leaves_no_draft(tmp_path, way, number):
    """A library in a long call, a body that waits for a thread when it has heard, and one that passes
    over the first Ctrl-C.
    """
    took = []
    while len(took) < 3 and min(took, default=1) >= 1:  # seconds; others may keep the machine busy
        took.append(_seconds_to_end(tmp_path, way, number))
    assert min(took) < 1, took


def _seconds_to_end(folder, way, number) -> float:
    command = [sys.executable, "-c", SLEEP, str(folder / "out.png"), way]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stdout and child.stdout.readline() == "True\n"
    begin = time.monotonic()
    child.send_signal(number)
    if way == "twice":
        assert child.stdout.readline() == "passed over\n"
        child.send_signal(number)
    out, err = child.communicate(timeout=60)
    took = time.monotonic() - begin
    assert child.returncode == 128 + number and err.strip() == "stopped; all is whole."
    assert out.splitlines().count("last") == 1 and not [*folder.iterdir()]
    return took


def test_the_process_ends_whatever_goes_wrong_at_the_end(monkeypatch):
    done = []
    monkeypatch.setattr(stopping, "remove_drafts", lambda: done.append("drafts") or 1 / 0)
    monkeypatch.setattr(os, "_exit", done.append)
    last = ExitStack()
    last.callback(lambda: done.append("last") or [][0])
    with pytest.raises(ZeroDivisionError):
        stopping._end_at_once("stopped.", last, 130)
    assert done == ["last", "drafts", 130]


def test_what_is_last_is_done_once(capsys):
    for ends in (KeyboardInterrupt, SystemExit):
        done = []
        with pytest.raises(SystemExit), stoppable("all is whole") as last:
            last.callback(done.append, 1)
            raise ends
        assert done == [1]


def test_a_signal_of_a_forked_worker_ends_the_worker_alone(capsys):
    reading, writing = os.pipe()
    with stoppable("all is whole"):
        child = os.fork()
        if child == 0:
            try:
                os.write(writing, b"x")
                time.sleep(60)
            finally:
                os._exit(7)
        os.read(reading, 1)
        os.kill(child, signal.SIGTERM)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        time.sleep(1)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("words", "calls"),
    [
        ("evaluate --hr x --sr y", "ldm_dream.scoring.evaluation.files_read"),
        ("import x -o y", "ldm_dream.interchange.checkpoint_file.read_checkpoint"),
        ("export x -o y", "ldm_dream.model_folder.load_model"),
        ("release x -o y", "ldm_dream.training.release.release"),
        ("plot x", "ldm_dream.training.curves.read_runs"),
    ],
)
def test_ctrl_c_ends_every_command_with_one_line(monkeypatch, tmp_path, capsys, words, calls):
    def stop(*args):
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(calls, stop)
    with pytest.raises(SystemExit) as end:
        main(words.split())
    assert end.value.code == 130
    assert capsys.readouterr().err == "stopped; what was to be written is whole or not there.\n"


@pytest.mark.parametrize("run", [lambda: script("plot"), main])
def test_a_script_ends_at_once_after_a_stop_as_the_command_does(monkeypatch, run):
    def stop(*args):
        os.kill(os.getpid(), signal.SIGINT)

    ended = []
    monkeypatch.setattr(os, "_exit", ended.append)
    monkeypatch.setattr("ldm_dream.training.curves.read_runs", stop)
    monkeypatch.setattr(
        sys, "argv", ["ldm-dream", "plot", "x"] if run is main else ["plot.py", "x"]
    )
    run()
    assert ended[0] == 130


def test_a_stopped_process_ends_without_a_teardown(monkeypatch):
    ended = []
    monkeypatch.setattr(os, "_exit", ended.append)
    for status in (130, 143):
        with stopping.ends_when_stopped():
            raise SystemExit(status)
    with pytest.raises(SystemExit), stopping.ends_when_stopped():
        raise SystemExit(2)
    assert ended == [130, 143]


@pytest.mark.parametrize("words", ["-V", "upscale --list-models", "--list-models"])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_what_is_printed_ends_quietly_where_nobody_reads(words, unbuffered):
    child = subprocess.Popen(
        [sys.executable, "-m", "ldm_dream", *words.split()],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
    )
    assert child.stdout and child.stderr
    child.stdout.close()
    assert child.stderr.read() == b"" and child.wait() == 128 + signal.SIGPIPE


def test_usage_says_of_each_command_what_its_file_does():
    for name, (_, does) in COMMANDS.items():
        assert f"\n  {name}" in usage() and does in usage()
        assert (sys.modules[command(name).__module__].__doc__ or "").startswith(f"{does}\n")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_help_has_examples_and_exit_statuses_in_100_columns(capsys, monkeypatch, name):
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as stop:
        main([name, "--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0 and f"\nexamples:\n  ldm-dream {name}" in text
    assert "\nexit status:\n  0 " in text and max(map(len, text.splitlines())) <= 100
