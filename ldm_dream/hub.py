"""Model folders on the Hugging Face hub, through huggingface_hub.

Where a local folder may be named too, a model of the hub is written `hf:owner/name`: a folder that
is missing must not become a question to strangers.
"""

from __future__ import annotations

import re
from pathlib import Path

from ldm_dream.errors import UserError


class HubError(UserError, RuntimeError):
    """A model that cannot be fetched or sent; its text is complete for the user."""


PREFIX = "hf:"


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


def download(repo_id: str) -> Path:
    """owner/name -> folder with the files of the model, from the cache if the hub is out of reach.
    Raises HubError.
    """
    hub = _hub()
    wanted = ["config.yaml", "*.safetensors", "README.md", "SHA256SUMS"]
    try:
        return Path(hub.snapshot_download(repo_id, allow_patterns=wanted))
    # hub errors are OSErrors; a malformed id is a ValueError
    except (OSError, ValueError) as error:
        raise HubError(
            f"{PREFIX}{repo_id}: not to be had from the hub ({_reason(error)})."
        ) from None


def upload(folder: Path, repo_id: str, private: bool = False) -> str:
    """Send a model folder to owner/name, making the repository if it is not there; -> its address.
    Raises HubError.
    """
    hub = _hub()
    try:
        hub.create_repo(repo_id, private=private, exist_ok=True)
        return str(hub.upload_folder(repo_id=repo_id, folder_path=folder))
    except (OSError, ValueError) as error:
        raise HubError(
            f"{repo_id}: could not be sent to the hub ({_reason(error)}); nothing here was changed."
        ) from None


def _hub():
    import huggingface_hub  # on use: it takes a while

    return huggingface_hub


def _reason(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
