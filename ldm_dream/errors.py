"""The base class of a user's mistakes; its text is a whole sentence: what was given, what is
allowed, what to do.

Every tool turns a `UserError` into that sentence and exit status 2 (`ldm_dream.cli.user_errors`);
any other exception is a mistake of the program and keeps its traceback. Imports nothing of ours, so
that every other file may import it.
"""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake that the user can fix: a wrong config, picture, folder or model, or a missing
    extra.
    """


class CheckpointImportError(UserError, ValueError):
    """A published file that is no checkpoint of a known layout; its text is one sentence."""


class ConfigError(UserError, ValueError):
    """A user's mistake in a config or an override; its text is complete for the user."""


def shown(text: object) -> str:
    """`text` as it may be printed: as escapes (\\x1b) what a terminal obeys or cannot show, which are
    control characters, marks that turn the writing direction, and halves of a character.
    """
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(text))


def some(names: list[str], most: int) -> str:
    """The first `most` names of a list, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def did_you_mean(given: str, known: Iterable[str], otherwise: str) -> str:
    """The question for the nearest of the known names; `otherwise` where none is near."""
    near = difflib.get_close_matches(given, list(known), 1)
    return f"did you mean {near[0]}?" if near else otherwise
