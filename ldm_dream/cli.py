"""What all commands share: their parser, and a user's mistake, which is one sentence on stderr and exit
status 2, without a traceback.

Imports no torch, so `--help` and `--dry-run` answer at once.
"""

import argparse
import io
import logging
import os
import select
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

from ldm_dream.errors import UserError, did_you_mean, shown

EXIT_USER_ERROR = 2  # argparse uses the same status for a wrong command line
EXIT_CLOSED = 128 + signal.SIGPIPE  # as a shell has it


class CommandLine(argparse.ArgumentParser):
    """A mistake is one sentence, with the nearest option. An option may be written with _ for -, and
    stand before, between and behind the words that belong to none.
    """

    def parse_args(self, args: Sequence[str] | None = None, namespace=None):
        given = list(sys.argv[1:] if args is None else args)
        end = given.index("--") if "--" in given else len(given)
        words = [self._known(word) for word in given[:end]]
        for word in words:
            self._refuse_unknown(word)
        # behind -- are no options, which argparse forgets where words stand between options
        parse = self.parse_known_args if end < len(given) else self.parse_known_intermixed_args
        found, rest = parse([*words, *given[end:]], namespace)
        if rest:
            self.error(f"nothing here takes {' '.join(rest)}")
        return found

    def error(self, message: str) -> NoReturn:
        end = "" if message.endswith("?") else f"; see {self.prog} --help."
        self.exit(EXIT_USER_ERROR, f"error: {shown(message)}{end}\n")

    def _known(self, word: str) -> str:
        """--tile_pad=3 -> --tile-pad=3, --model-name -> --model_name, where only that is an option."""
        name, sign, value = word.partition("=")
        if not name.startswith("--") or name in self._options():
            return word
        dashed = name.replace("_", "-")
        known = {option.replace("_", "-"): option for option in self._options()}
        return known.get(dashed, dashed) + sign + value

    def _refuse_unknown(self, word: str) -> None:
        """Before argparse asks for what is missing: it may be there, and only be misspelt."""
        name = word.partition("=")[0]
        known = [option for option in self._options() if option.startswith("--")]
        if name[:2] == "--" and " " not in name and not any(o.startswith(name) for o in known):
            hint = did_you_mean(name, self._shown_options(), "")
            self.error(f"there is no option {name}{hint and f'; {hint}'}")

    def _options(self) -> list[str]:
        return [option for action in self._actions for option in action.option_strings]

    def _shown_options(self) -> list[str]:
        shown = (action for action in self._actions if action.help != argparse.SUPPRESS)
        return [option for action in shown for option in action.option_strings]


def command_line(name: str, doc: str | None, is_tool: bool = False) -> argparse.ArgumentParser:
    """Parser of the command `name` of ldm-dream, or of a script in tools/. Its help begins with the
    first line of the docstring `doc`, and ends with the rest: examples, exit status.
    """
    first, _, rest = (doc or "").partition("\n")
    return CommandLine(
        prog=name if is_tool else f"ldm-dream {name}",
        description=first,
        epilog=rest.strip("\n"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def positive(text: str) -> int:
    """A whole number from 1, of an option."""
    return _whole(text, 1)


def natural(text: str) -> int:
    """A whole number from 0, of an option."""
    return _whole(text, 0)


def _whole(text: str, least: int) -> int:
    if text.isascii() and text.isdecimal() and len(text) < 10 and int(text) >= least:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not possible; give a whole number from {least}")


def given(args: argparse.Namespace, names: Iterable[str]) -> dict[str, Any]:
    """Those of the options `names` that are not None."""
    values = {name: getattr(args, name) for name in names}
    return {name: value for name, value in values.items() if value is not None}


def refuse_given(args: argparse.Namespace, names: Iterable[str], there: str) -> None:
    """Raises UserError for any of the options `names` that was given. there: where they do nothing."""
    if found := given(args, names):
        flags = " and ".join(f"--{name.replace('_', '-')}" for name in found)
        raise UserError(f"{flags}: has no effect {there}; leave it out.")


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
        try:
            yield
        finally:
            if sys.stdout:
                sys.stdout.flush()
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


@contextmanager
def warnings_shown(are_shown: bool) -> Iterator[None]:
    """During the body, warnings are said or only mistakes."""
    log = logging.getLogger("ldm_dream")
    before = log.level
    log.setLevel(before if are_shown else logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)


def _stdout_is_closed() -> bool:
    """Whether the reader of what is printed has gone, as in `| head -1`."""
    poll = select.poll()
    with suppress(io.UnsupportedOperation):  # no stream of the system
        poll.register(sys.stdout, 0)
    return bool(poll.poll(0))
