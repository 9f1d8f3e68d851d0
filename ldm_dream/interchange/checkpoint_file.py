"""Reads the tensors of a checkpoint file without running anything in it: pickles are opened with
`weights_only=True`, so that one that wants to run code is refused.
"""

from __future__ import annotations

import pickle
import re
import zipfile
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from ldm_dream.errors import CheckpointImportError


class _Inert:
    """Stands in for a class that old checkpoints only name, as a key of Lightning's callback state."""


INERT = ("pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",)


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Tensors of a .safetensors file or a torch pickle (flat, or under `state_dict`), mapped rather
    than read where possible, without what DDP (`module.`) and torch.compile (`_orig_mod.`) put
    before keys. Raises CheckpointImportError.
    """
    if not path.is_file():
        raise CheckpointImportError(f"{path}: no such file.")
    try:
        if path.suffix == ".safetensors":
            values = load_file(path)
        else:
            with torch.serialization.safe_globals([(_Inert, name) for name in INERT]):
                values = torch.load(
                    path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
                )
    except Exception as error:  # torch raises anything from KeyError to OSError on a broken file
        wanted = re.search(r"Unsupported.*?GLOBAL (\S+)|Unsupported (\w+)", str(error))
        if isinstance(error, pickle.UnpicklingError) and wanted:
            raise CheckpointImportError(
                f"{path}: refused, because reading it would run code ({wanted[1] or wanted[2]}); "
                "give a file that holds tensors only, best as safetensors."
            ) from None
        raise CheckpointImportError(
            f"{path}: truncated, or no checkpoint at all ({type(error).__name__}); download it again."
        ) from None
    values = values.get("state_dict", values) if isinstance(values, dict) else values
    if (
        not isinstance(values, dict)
        or not values
        or not all(isinstance(value, Tensor) for value in values.values())
    ):
        raise CheckpointImportError(
            f"{path}: holds no state dict; expected keys with tensors, flat or under 'state_dict'."
        )
    return {re.sub(r"^(module\.|_orig_mod\.)+", "", key): value for key, value in values.items()}
