"""What all tools share: the first line of their help, and a user's mistake, which is one sentence on
stderr and exit status 2, without a traceback.

Imports no torch, so `--help` and `--dry-run` answer at once.
"""

import argparse
import io
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from ldm_dream.errors import UserError, shown

EXIT_USER_ERROR = 2  # argparse uses the same status for a wrong command line
EXIT_INTERRUPTED = 128 + signal.SIGINT  # as a shell has it
EXIT_CLOSED = 128 + signal.SIGPIPE
EXIT_TERMINATED = 128 + signal.SIGTERM


class Terminated(KeyboardInterrupt):
    """SIGTERM came; whatever cleans up after Ctrl-C does so here too."""


def command_line(name: str, doc: str | None, is_tool: bool = False) -> argparse.ArgumentParser:
    """Parser of the command `name` of ldm-dream, or of a script in tools/. Its help begins with the
    first line of the docstring `doc`, and ends with the rest: examples, exit status.
    """
    first, _, rest = (doc or "").partition("\n")
    return argparse.ArgumentParser(
        prog=name if is_tool else f"ldm-dream {name}",
        description=first,
        epilog=rest.strip("\n"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


@contextmanager
def user_errors() -> Iterator[None]:
    """Body of a tool's `main`: `UserError` -> its text on one line of stderr, exit 2. Everything
    else passes through.

    dream_kernels knows nothing of ldm_dream: its error for users says so by an attribute. What the
    output cannot show (Chinese names, where it is ASCII) is escaped.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        yield
    except BrokenPipeError:
        if not _stdout_is_closed():
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(EXIT_CLOSED) from None
    except Exception as error:
        if not isinstance(error, UserError) and not getattr(error, "is_for_users", False):
            raise
        sys.stderr.write(f"error: {shown(' '.join(str(error).split()))}\n")
        raise SystemExit(EXIT_USER_ERROR) from None


def _stdout_is_closed() -> bool:
    """Whether the reader of what is printed has gone, as in `| head -1`: what it has not read is
    refused again.
    """
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        return True
    return False


@contextmanager
def stoppable(what_stays: str) -> Iterator[None]:
    """Body of a tool's `main`: Ctrl-C and SIGTERM -> one line of stderr with what stays of the work,
    exit status 130 or 143.
    """

    def terminate(number: int, frame: object) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    except KeyboardInterrupt as stop:
        sys.stderr.write(f"stopped; {what_stays}.\n")
        terminated = isinstance(stop, Terminated)
        raise SystemExit(EXIT_TERMINATED if terminated else EXIT_INTERRUPTED) from None
    finally:
        signal.signal(signal.SIGTERM, before)
