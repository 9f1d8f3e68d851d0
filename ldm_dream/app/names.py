"""Names of models, as the command line gives them and as a visitor sees them; known without torch."""

from __future__ import annotations

import os
from pathlib import Path

from ldm_dream.app.errors import AppError
from ldm_dream.hub import repo_id_of
from ldm_dream.model_config import find_model, upscaler_names


def shown_names(names: list[str]) -> list[str]:
    """Of models, as a visitor sees them, who is told no folder of this machine. Raises ModelError and
    HubError for a name that leads nowhere, AppError for two that look alike. Fetches nothing.
    """
    for name in names:
        if repo_id_of(name) is None and not os.path.isfile(os.path.expanduser(name)):
            find_model(name, fitting=upscaler_names)
    shown = [Path(name).name if Path(name).expanduser().exists() else name for name in names]
    if twice := [name for name in shown if shown.count(name) > 1]:
        raise AppError(f"two models are named {twice[0]}; rename the folder of one of them.")
    return shown
