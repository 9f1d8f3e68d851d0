"""The base class of a user's mistakes; its text is a whole sentence: what was given, what is
allowed, what to do.

Every tool turns a `UserError` into that sentence and exit status 2 (`ldm_dream.cli.user_errors`);
any other exception is a mistake of the program and keeps its traceback. Imports nothing of
ours, so that every other file may import it.
"""

import unicodedata


class UserError(Exception):
    """A mistake that the user can fix: a wrong config, picture, folder or model, or a missing
    extra.
    """


class CheckpointImportError(UserError, ValueError):
    """A published file that is no checkpoint of a known layout; its text is one sentence."""


def shown(text: object) -> str:
    """Text as it may be printed or reported: what controls a terminal, breaks the line, or is no
    character (a byte of a file name that is not UTF-8) stands there as an escape, `\\x1b`.
    """
    return "".join(map(_escaped, str(text)))


def _escaped(character: str) -> str:
    if unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Zl", "Zp"):
        return character
    if 0xDC80 <= ord(character) <= 0xDCFF:  # Python's stand-in for a byte
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")
