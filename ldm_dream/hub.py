"""Model folders on the Hugging Face hub, through huggingface_hub.

Where a local folder may be named too, a model of the hub is written `hf:owner/name`: a folder that
is missing must not become a question to strangers.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from ldm_dream.errors import UserError


class HubError(UserError, RuntimeError):
    """A model that cannot be fetched or sent; its text is complete for the user."""


class Search(NamedTuple):
    """Where a model is looked for by its name.

    folders: also among the folders of this machine. Of the hub alone: revision: a branch, tag or
    commit; None = the newest. local_files_only: what was fetched before, without the network.
    token: of an account; None = the one that is logged in.
    """

    folders: bool = True
    revision: str | None = None
    local_files_only: bool = False
    token: str | None = None


ANYWHERE = Search()
PREFIX = "hf:"
_FILES = ["config.yaml", "*.safetensors", "README.md", "SHA256SUMS"]


def repo_id_of(name: str) -> str | None:
    """`hf:owner/name` -> `owner/name`; None for a name without `hf:`. Raises HubError."""
    if not name.startswith(PREFIX):
        return None
    if not is_repo_id(repo_id := name.removeprefix(PREFIX)):
        raise HubError(f"{name}: a model of the hub is written hf:owner/name.")
    return repo_id


def is_repo_id(name: str) -> bool:
    """Whether it has the form `owner/name`, as many a folder has too."""
    return re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name) is not None


def download(repo_id: str, search: Search = ANYWHERE) -> Path:
    """owner/name -> folder with the files of the model, from the cache if the hub is out of reach.
    Raises HubError.
    """
    asked = search._asdict()
    del asked["folders"]
    with _sentences(f"{PREFIX}{repo_id}: cannot be fetched from the hub"):
        return Path(_hub().snapshot_download(repo_id, allow_patterns=_FILES, **asked))


def upload(folder: Path, repo_id: str, private: bool = False, token: str | None = None) -> str:
    """Send a model folder to owner/name (or hf:owner/name), making the repository if it is not
    there; -> its address. Raises HubError.
    """
    repo_id = repo_id.removeprefix(PREFIX)
    with _sentences(f"{repo_id}: could not be sent to the hub"):
        hub = _hub()
        hub.create_repo(repo_id, private=private, exist_ok=True, token=token)
        return str(hub.upload_folder(repo_id=repo_id, folder_path=folder, token=token))


def _hub():
    import huggingface_hub  # on use: it takes a while

    return huggingface_hub


# ----------------------------------------------------------------------------------------- errors

_LOG_IN = "log in with `hf auth login`, or give a token"
_LATER = "try again later"
_NOT_HERE = "LocalEntryNotFoundError"  # its cause says why the hub did not help
# by the name of an error or a class above it, the nearest first: the names are the same in all
# versions of huggingface_hub and in the HTTP libraries under it (requests, httpx, httpx2)
_BY_NAME = {
    "OfflineModeIsEnabled": "HF_HUB_OFFLINE is set; unset it, or name a model that is here",
    "GatedRepoError": "its owner must let you in; ask on its page, then " + _LOG_IN,
    "RepositoryNotFoundError": "there is no such model; check the name; for a private one "
    + _LOG_IN,
    "RevisionNotFoundError": "it has no such revision; name a branch, tag or commit of it",
    _NOT_HERE: "it was not fetched before; do it once without local_files_only",
    "LocalTokenNotFoundError": "no account is known; " + _LOG_IN,
    "RevisionResolutionError": "the hub cannot be reached; check the network",
    "Timeout": "the hub does not answer; " + _LATER,
    "TimeoutException": "the hub does not answer; " + _LATER,
    "TimeoutError": "the hub does not answer; " + _LATER,
    "ConnectionError": "the hub cannot be reached; check the network",
    "TransportError": "the hub cannot be reached; check the network",
    "HFValidationError": "this is no name for a model of the hub; write owner/name",
}
_BY_STATUS = {401: _LOG_IN, 403: "this account may not do that; take a token that may"}


@contextmanager
def _sentences(what: str) -> Iterator[None]:
    """What a request of the body fails by becomes a HubError. What is a mistake of the program
    stays: the built-in errors that neither the system nor a library raises for what it was given.
    """
    try:
        yield
    except Exception as error:
        given = isinstance(error, OSError | ValueError | RuntimeError)
        if type(error).__module__ == "builtins" and not given:
            raise
        raise HubError(f"{what}: {_reason(error)}.") from error


def _reason(error: Exception) -> str:
    """Why, and what to do."""
    if getattr(error, "errno", None) == errno.ENOSPC:
        return "the disk is full; make room, or let HF_HOME name a folder on another disk"
    names = [kind.__name__ for kind in type(error).__mro__]
    if _NOT_HERE in names and isinstance(error.__cause__, Exception):
        return f"it was not fetched before, and now: {_reason(error.__cause__)}"
    if known := next((_BY_NAME[name] for name in names if name in _BY_NAME), None):
        return known
    said = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
    status = getattr(getattr(error, "response", None), "status_code", 0)
    advice = _LATER if status >= 429 else _BY_STATUS.get(status)
    return f"{said}; {advice}" if advice else said
