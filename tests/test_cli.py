"""What all tools share: one printable line for a mistake, and a clean end by a signal."""

import io
import os
import signal
import sys

import pytest

from ldm_dream.cli import stoppable, user_errors
from ldm_dream.errors import UserError, shown


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
