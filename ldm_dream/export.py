"""A model folder -> a folder that `diffusers.LDMSuperResolutionPipeline.from_pretrained` loads. diffusers itself is not needed.

model_index.json  scheduler/scheduler_config.json  unet/, vqvae/: config.json, diffusion_pytorch_model.safetensors
"""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from .checkpoint import LoadedModel, whole_folder
from .config import DiffusionRun
from .diffusers_names import DiffusersError, unet_arguments, unet_state, vqgan_arguments, vqgan_state

VERSION = "0.32.0"  # the first diffusers that these files are tested to suit
BETA_SCHEDULES = {"linear": "linear", "sqrt_linear": "scaled_linear"}  # ours -> theirs
PREDICTIONS = {"eps": "epsilon", "z0": "sample", "v": "v_prediction"}


def export_diffusers(model: LoadedModel, folder: Path) -> None:
    """Write the pipeline. Raises DiffusersError for what diffusers has no part for, ModelError if it cannot be written."""
    run = model.run
    scheduler = scheduler_arguments(run)
    parts = {
        "unet": ("UNet2DModel", unet_arguments(run.network), unet_state(run.network, model.network.state_dict())),
        "vqvae": ("VQModel", vqgan_arguments(run.autoencoder), vqgan_state(run.autoencoder, model.autoencoder.state_dict())),
    }
    index = {"scheduler": ["diffusers", "DDIMScheduler"]} | {name: ["diffusers", kind] for name, (kind, *_) in parts.items()}
    with whole_folder(folder) as draft:
        _write_json(draft / "model_index.json", "LDMSuperResolutionPipeline", index)
        (draft / "scheduler").mkdir()
        _write_json(draft / "scheduler" / "scheduler_config.json", "DDIMScheduler", scheduler)
        for name, (kind, arguments, state) in parts.items():
            (draft / name).mkdir()
            _write_json(draft / name / "config.json", kind, arguments)
            save_file(_contiguous(state), draft / name / "diffusion_pytorch_model.safetensors")


def scheduler_arguments(run: DiffusionRun) -> dict:
    """Arguments of `diffusers.DDIMScheduler`. Raises DiffusersError for a run that the pipeline cannot be."""
    network, process, autoencoder = run.network.kind, run.process, run.autoencoder.kind
    if (network, process.kind, autoencoder) != ("ldm", "ddpm", "vqgan"):
        raise DiffusersError(
            f"diffusers has a pipeline for network ldm, process ddpm and autoencoder vqgan, not for {network}, {process.kind} "
            f"and {autoencoder}; this model's folder is safetensors and YAML already, share it as it is."
        )
    if process.respace is not None or run.condition != ("lr",):
        raise DiffusersError("diffusers' pipeline has no respaced schedule and only the LR picture as condition.")
    return {
        "num_train_timesteps": process.num_timesteps,
        "beta_start": process.beta_start,
        "beta_end": process.beta_end,
        "beta_schedule": BETA_SCHEDULES[process.schedule],
        "prediction_type": PREDICTIONS[run.prediction],
        "clip_sample": False,
        "set_alpha_to_one": True,
        "steps_offset": 0,
        "timestep_spacing": "leading",
    }


def _write_json(path: Path, kind: str, values: dict) -> None:
    path.write_text(json.dumps({"_class_name": kind, "_diffusers_version": VERSION, **values}, indent=2) + "\n", encoding="utf-8")


def _contiguous(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in state.items()}
