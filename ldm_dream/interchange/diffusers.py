"""A model folder -> a folder of parts, each in the form of diffusers where it has such a class;
diffusers itself is not needed.

unet/ or network/      config.json, diffusion_pytorch_model.safetensors: UNet2DModel, or our network under our names
vqvae/ or autoencoder/ the same: VQModel, or our autoencoder under our names; nothing for pixels
scheduler/             scheduler_config.json: DDIMScheduler, or DDPMScheduler for ancestral sampling; only of a DDPM
run.yaml               the resolved run: process, prediction, condition, sampler
model_index.json       only where the parts are LDMSuperResolutionPipeline's, which then loads the folder
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from ldm_dream import __version__
from ldm_dream.config.files import dump_config
from ldm_dream.config.process import DDPMConfig
from ldm_dream.config.run import DiffusionRun
from ldm_dream.interchange.diffusers_names import (
    DiffusersError,
    unet_arguments,
    unet_state,
    vqgan_arguments,
    vqgan_state,
)
from ldm_dream.model_folder import LoadedModel, write_tensors
from ldm_dream.sampler import DIFFUSERS
from ldm_dream.schedules import betas_of
from ldm_dream.writing import whole_folder

VERSION = "0.32.0"  # the first diffusers that these files are tested to suit
# ours -> theirs
BETA_SCHEDULES = {"linear": "linear", "sqrt_linear": "scaled_linear", "cosine": "squaredcos_cap_v2"}
PREDICTIONS = {"eps": "epsilon", "z0": "sample", "v": "v_prediction"}
PIPELINE = {"unet": "UNet2DModel", "vqvae": "VQModel", "scheduler": "DDIMScheduler"}


class Part(NamedTuple):
    folder: str
    kind: str  # class of diffusers, or of this project
    arguments: dict
    state: dict[str, Tensor] | None  # None: a scheduler
    why: str = ""  # it is of this project, in one sentence; empty: diffusers loads it


def export_diffusers(model: LoadedModel, folder: Path) -> list[Part]:
    """Write the folder and say what is in it. Raises WriteError if it cannot be written."""
    parts = [part for part in (_network(model), _autoencoder(model), _scheduler(model)) if part]
    with whole_folder(folder) as draft:
        for part in parts:
            (draft / part.folder).mkdir()
            maker = (
                {"_ldm_dream_version": __version__} if part.why else {"_diffusers_version": VERSION}
            )
            config = {"_class_name": part.kind, **maker, **part.arguments}
            _write_json(
                draft / part.folder / ("config.json" if part.state else "scheduler_config.json"),
                config,
            )
            if part.state:
                write_tensors(
                    draft / part.folder / "diffusion_pytorch_model.safetensors", part.state
                )
        if is_pipeline(parts, model.run):
            index = {name: ["diffusers", kind] for name, kind in PIPELINE.items()}
            _write_json(
                draft / "model_index.json",
                {
                    "_class_name": "LDMSuperResolutionPipeline",
                    "_diffusers_version": VERSION,
                    **index,
                },
            )
        (draft / "run.yaml").write_text(dump_config(model.run), encoding="utf-8")
    return parts


def is_pipeline(parts: list[Part], run: DiffusionRun) -> bool:
    """Whether LDMSuperResolutionPipeline loads the folder and does what the run's sampler does."""
    return {part.folder: part.kind for part in parts} == PIPELINE and run.condition == ("lr",)


def _network(model: LoadedModel) -> Part:
    cfg, state = model.run.network, model.network.state_dict()
    try:
        if cfg.kind != "ldm":
            raise DiffusersError(f"diffusers has no network of kind {cfg.kind}.")
        return Part("unet", "UNet2DModel", unet_arguments(cfg), unet_state(cfg, state))
    except DiffusersError as error:
        return Part(
            "network", type(model.network).__name__, cfg.model_dump(mode="json"), state, str(error)
        )


def _autoencoder(model: LoadedModel) -> Part | None:
    cfg, state = model.run.autoencoder, model.autoencoder.state_dict()
    try:
        if cfg.kind == "pixel":
            return None
        if cfg.kind != "vqgan":
            raise DiffusersError(
                f"no words of diffusers are known here for an autoencoder of kind {cfg.kind}."
            )
        return Part("vqvae", "VQModel", vqgan_arguments(cfg), vqgan_state(cfg, state))
    except DiffusersError as error:
        return Part(
            "autoencoder",
            type(model.autoencoder).__name__,
            cfg.model_dump(mode="json"),
            state,
            str(error),
        )


def _scheduler(model: LoadedModel) -> Part | None:
    """Steps are spaced as the run's sampler says in words of diffusers; else as in the published
    pipeline for DDIM, and as this project does for ancestral sampling.
    """
    process, bound = model.run.process, model.autoencoder.bound
    if process.kind != "ddpm" or process.respace is not None:
        return None
    arguments = {
        "num_train_timesteps": process.num_timesteps,
        **_betas(process),
        "prediction_type": PREDICTIONS[model.run.prediction],
        "clip_sample": bound is not None,
        "clip_sample_range": bound or 1.0,
        "steps_offset": 0,
    }
    sampler = model.run.sampler
    if sampler.spacing in DIFFUSERS:
        arguments |= {"timestep_spacing": sampler.spacing, "steps_offset": sampler.steps_offset}
    if sampler.kind == "ancestral":
        own = {"variance_type": "fixed_small", "timestep_spacing": "linspace"}
        return Part("scheduler", "DDPMScheduler", own | arguments, None)
    own = {"set_alpha_to_one": sampler.end == "clean", "timestep_spacing": "leading"}
    return Part("scheduler", "DDIMScheduler", own | arguments, None)


def _betas(cfg: DDPMConfig) -> dict[str, Any]:
    """By their name, or one by one where diffusers has none."""
    first, last = cfg.beta_start, cfg.beta_end
    if cfg.schedule not in BETA_SCHEDULES:
        return {"trained_betas": betas_of(cfg.num_timesteps, first, last, cfg.schedule).tolist()}
    name = BETA_SCHEDULES[cfg.schedule]
    return {"beta_start": first, "beta_end": last, "beta_schedule": name}


def _write_json(path: Path, values: dict) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
