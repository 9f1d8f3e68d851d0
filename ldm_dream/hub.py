"""Model folders on the Hugging Face hub, through huggingface_hub (extra `hub`): an id is
`owner/name`.
"""

from __future__ import annotations

import re
from pathlib import Path

from ldm_dream.errors import UserError


class HubError(UserError, RuntimeError):
    """A model that cannot be fetched or sent; its text is complete for the user."""


def is_hub_id(name: str) -> bool:
    return re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name) is not None


def download(repo_id: str) -> Path:
    """Folder with the files of a model, from the cache if the hub is out of reach. Raises HubError."""
    hub = _hub()
    wanted = ["config.yaml", "*.safetensors", "README.md"]
    try:
        return Path(hub.snapshot_download(repo_id, allow_patterns=wanted))
    except (
        OSError,
        ValueError,
    ) as error:  # hub errors are OSErrors; a malformed id is a ValueError
        raise HubError(
            f"{repo_id}: no such folder here, and not to be had from the hub ({_reason(error)})."
        ) from None


def upload(folder: Path, repo_id: str, private: bool = False) -> str:
    """Send a model folder, making the repository if it is not there; -> its address. Raises
    HubError.
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
    try:
        import huggingface_hub
    except ImportError:
        raise HubError(
            "Models of the hub need huggingface_hub; install it with: pip install 'ldm_dream[hub]'."
        ) from None
    return huggingface_hub


def _reason(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
