"""Checkpoints: what a run resumes from. Safetensors and JSON only, never a pickle.

A checkpoint is `state.safetensors` and `meta.json`, written to a temporary folder, synced, then
renamed: it is whole or not there.
"""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor

from ldm_dream.model_folder import ModelError, packed, read_tensors, whole_folder

log = logging.getLogger(__name__)


class Checkpoint(NamedTuple):
    step: int
    tensors: dict[str, Tensor]
    meta: dict


def save_checkpoint(
    run_dir: Path, step: int, tensors: dict[str, Tensor], meta: dict, keep: int
) -> Path:
    """Write `run_dir/checkpoints/step-N` as a whole, then remove all but the newest `keep`."""
    folder = run_dir / "checkpoints" / f"step-{step:08d}"
    with whole_folder(folder) as draft:
        save_file(packed(tensors), draft / "state.safetensors")
        (draft / "meta.json").write_text(
            json.dumps({"step": step, **meta}, indent=1), encoding="utf-8"
        )
    for old in sorted(folder.parent.glob("step-*"))[:-keep]:
        shutil.rmtree(old)
    return folder


def latest_checkpoint(run_dir: Path) -> Checkpoint | None:
    """The newest whole checkpoint; a damaged one is named and passed over. None if there is none."""
    for folder in sorted((run_dir / "checkpoints").glob("step-*"), reverse=True):
        try:
            meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
            return Checkpoint(meta["step"], read_tensors(folder / "state.safetensors"), meta)
        except (ModelError, OSError, ValueError, KeyError) as error:
            log.warning("checkpoint %s is not whole and is passed over: %s", folder, error)
    return None


def flatten_optimizer(name: str, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Optimizer state -> tensors named `optimizer.<name>.<parameter number>.<key>`."""
    state = optimizer.state_dict()["state"]
    return {
        f"optimizer.{name}.{i}.{key}": value
        for i, entry in state.items()
        for key, value in entry.items()
    }


def restore_optimizer(
    name: str, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]
) -> None:
    """Moments get the memory layout of their parameter: files are contiguous, and the fused step
    walks both by storage.
    """
    prefix = f"optimizer.{name}."
    state: dict[int, dict[str, Tensor]] = {}
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for key, value in tensors.items():
        if key.startswith(prefix):
            number, field = key[len(prefix) :].split(".")
            like = parameters[int(number)]
            state.setdefault(int(number), {})[field] = (
                torch.empty_like(like).copy_(value) if value.ndim else value
            )
    optimizer.load_state_dict(
        {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
    )
