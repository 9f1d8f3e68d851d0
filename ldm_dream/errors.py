"""The base class of a user's mistakes; its text is a whole sentence: what was given, what is
allowed, what to do.

Every tool turns a `UserError` into that sentence and exit status 2 (`ldm_dream.cli.user_errors`);
any other exception is a mistake of the program and keeps its traceback. Imports nothing of ours, so
that every other file may import it.
"""

import re

# what a terminal obeys or cannot show: control characters, marks that turn the writing direction,
# and halves of a character (file names that are no UTF-8)
_HIDDEN = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


class UserError(Exception):
    """A mistake that the user can fix: a wrong config, picture, folder or model, or a missing
    extra.
    """


class CheckpointImportError(UserError, ValueError):
    """A published file that is no checkpoint of a known layout; its text is one sentence."""


class ConfigError(UserError, ValueError):
    """A user's mistake in a config or an override; its text is complete for the user."""


def shown(text: object) -> str:
    """`text` as it may be printed: control characters and lone surrogates as escapes (\\x1b)."""
    return _HIDDEN.sub(lambda found: ascii(found[0])[1:-1], str(text))
