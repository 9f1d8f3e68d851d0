"""Which model a name means, and the engine that runs it."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from ldm_dream.config.run import AutoencoderRun
from ldm_dream.hub import ANYWHERE, Search, repo_id_of
from ldm_dream.model_config import find_model, read_run, refuse_revision, upscaler_names
from ldm_dream.model_folder import LoadedModel, load_model
from ldm_dream.upscaling.devices import Dtype, dtype_named
from ldm_dream.upscaling.diffusion import Diffusion
from ldm_dream.upscaling.engine import Engine, Options
from ldm_dream.upscaling.one_pass import OnePass, auto_dtype
from ldm_dream.upscaling.peers import PeerModel, is_peer, read_peer
from ldm_dream.upscaling.sizes import Size

Model = LoadedModel | PeerModel


def load(name_or_path: str | Path, search: Search = ANYWHERE) -> Model:
    """A bundled model by name, a model folder, one of the Hugging Face hub (`hf:owner/name`), or a
    file of another project. search: for a model of the hub. Raises ModelError, HubError, CheckpointImportError.
    """
    name = os.path.expanduser(name_or_path)
    if not is_peer(name):
        return load_model(name_or_path, search)
    refuse_revision(name, search)
    return read_peer(Path(name))


def known_size(name: str, how: Options, scale: float | None) -> Size | None:
    """How large results are to be, as far as that is known before the model is loaded: None for the
    own scale of a model of the hub or of another project. Raises ModelError, ConfigError,
    UpscaleError.
    """
    if how.asks_for_size(scale):
        return how.size(1, scale)
    name = os.path.expanduser(name)
    if is_peer(name) or repo_id_of(name):
        return None
    run = read_run(find_model(name, fitting=upscaler_names))
    return None if isinstance(run, AutoencoderRun) else how.size(run.scale)


def engine_of(model: Model, device: torch.device, dtype: Dtype, compile: bool) -> Engine:
    """dtype: as users name it. Raises UpscaleError for one that the model does not support."""
    if isinstance(model, LoadedModel):
        return Diffusion(model, device, dtype_named(dtype, device), compile)
    chosen = auto_dtype(model, device) if dtype == "auto" else dtype_named(dtype, device)
    return OnePass(model, device, chosen, compile)
