"""Checkpoints: what a run resumes from. Safetensors and JSON only, never a pickle.

A checkpoint is a folder with `state.safetensors`, `meta.json` and their digests, whole or not there
(`writing.py`). It is known by what it holds: its step is the one in `meta.json`, whatever the name
of its folder.
"""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ldm_dream.digests import SUMS, damaged
from ldm_dream.model_folder import ModelError, read_tensors, write_tensors
from ldm_dream.writing import whole_folder

log = logging.getLogger(__name__)

STATE = "state.safetensors"


class Checkpoint(NamedTuple):
    step: int
    tensors: dict[str, Tensor]
    meta: dict


class Found(NamedTuple):
    """A folder that says it is a checkpoint; its tensors were not looked at."""

    step: int
    folder: Path
    meta: dict


def save_checkpoint(
    run_dir: Path,
    step: int,
    tensors: dict[str, Tensor],
    meta: dict,
    keep: int,
    keep_every: int | None = None,
) -> Path:
    """Write `run_dir/checkpoints/step-N` as a whole, then remove older ones written by this function
    but for the newest `keep`, and those at multiples of `keep_every`. Raises WriteError.

    Later ones stay: the run did not resume from them, so they are damaged or were put there. So do
    copies by other names and folders that are not whole.
    """
    folder = run_dir / "checkpoints" / _name(step)
    with whole_folder(folder) as draft:
        write_tensors(draft / STATE, tensors)
        meta = {"step": step, "bytes": (draft / STATE).stat().st_size, **meta}
        (draft / "meta.json").write_text(json.dumps(meta, indent=1), encoding="utf-8")
    ours = [
        found
        for found in checkpoints(run_dir)
        if found.step <= step and found.folder.name == _name(found.step) and _seems_whole(found)
    ]
    for old in ours[keep:]:
        if keep_every is None or old.step % keep_every:
            shutil.rmtree(old.folder)
    return folder


def checkpoints(run_dir: Path) -> list[Found]:
    """All folders below `run_dir/checkpoints` that hold a step, the newest step first."""
    found = [one for path in _folders(run_dir) if (one := _read_meta(path))]
    return sorted(found, key=lambda one: (one.step, one.folder), reverse=True)


def _folders(run_dir: Path) -> list[Path]:
    folder = run_dir / "checkpoints"
    # a name with a dot is a draft
    return [p for p in folder.iterdir() if p.name[0] != "."] if folder.is_dir() else []


def _read_meta(folder: Path) -> Found | None:
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        return Found(int(meta["step"]), folder, meta)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _name(step: int) -> str:
    return f"step-{step:08d}"


def _seems_whole(found: Found) -> bool:
    """Whether its files are all there at their full size; digests are for when it is read."""
    state = found.folder / STATE
    if not (state.is_file() and (found.folder / SUMS).is_file()):
        return False
    return state.stat().st_size == found.meta.get("bytes")


def latest_checkpoint(run_dir: Path) -> Checkpoint | None:
    """The newest whole checkpoint; what is damaged is named and passed over. None if there is
    nothing. Raises ModelError if there is something and none of it is whole.
    """
    found = checkpoints(run_dir)
    for path in sorted(set(_folders(run_dir)) - {one.folder for one in found}):
        log.warning("%s is no whole checkpoint and is passed over.", path)
    for one in found:
        try:
            return read_checkpoint(one.folder)
        except ModelError as error:
            log.warning("checkpoint %s is passed over: %s", one.folder, error)
    if _folders(run_dir):
        raise ModelError(
            f"{run_dir / 'checkpoints'}: holds no whole checkpoint; "
            "put one back, or start anew in another --run-dir."
        )
    return None


def read_checkpoint(folder: Path) -> Checkpoint:
    """One checkpoint, its digests checked. Raises ModelError."""
    found = _read_meta(folder)
    if found is None or damaged(folder / "meta.json"):
        raise ModelError(f"{folder}: its meta.json is missing or damaged.")
    if not (folder / SUMS).is_file():
        log.warning("%s cannot be checked: it has no digests.", folder)
    return Checkpoint(found.step, read_tensors(folder / STATE), found.meta)


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
