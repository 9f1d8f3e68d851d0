"""LDM-SR's checkpoint (latent-diffusion, `models/ldm/bsr_sr/model.ckpt`): several models in one
state dict.

model.diffusion_model.*   the U-Net, under the names of `networks/ldm.py`
model_ema.*               its running average, which its authors sample with: `diffusion_model` + the same name without dots
first_stage_model.*       the VQGAN
betas, alphas_cumprod, .. tables of the noise schedule
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from ldm_dream.config.model import DDPMConfig, Sampling, VQGANConfig
from ldm_dream.config.networks import LDMConfig
from ldm_dream.config.run import DiffusionLossConfig, DiffusionRun
from ldm_dream.errors import CheckpointImportError

log = logging.getLogger(__name__)

UNET, EMA, FIRST_STAGE = "model.diffusion_model.", "model_ema.", "first_stage_model."
SCHEDULE = r"^(betas|(log_|sqrt_|posterior_)\w+|alphas_cumprod(_prev)?)$"
PROCESS = DDPMConfig(
    num_timesteps=1000, beta_start=0.0015, beta_end=0.0155, schedule="sqrt_linear"
)  # of bsr_sr, in its config.yaml


class LDMParts(NamedTuple):
    unet: dict[str, Tensor]  # the running average, where there is one
    first_stage: dict[str, Tensor]  # empty where the file has none


def is_ldm(state: Mapping[str, Tensor]) -> bool:
    return any(key.startswith(UNET) for key in state)


def split_ldm(state: Mapping[str, Tensor], path: str) -> LDMParts:
    """The models of the file, each under its own names; every key has its place. Raises
    CheckpointImportError, with `path`.
    """
    strange = [
        key
        for key in state
        if not key.startswith((UNET, EMA, FIRST_STAGE)) and not re.match(SCHEDULE, key)
    ]
    if strange:
        raise CheckpointImportError(
            f"{path}: looks like LDM-SR, but none of its models has {_some(strange)}."
        )
    return LDMParts(
        _averages(_within(state, UNET), _within(state, EMA), path), _within(state, FIRST_STAGE)
    )


def _averages(unet: dict[str, Tensor], averages: dict[str, Tensor], path: str) -> dict[str, Tensor]:
    """The running average under the U-Net's names. A file without one gives the weights themselves,
    and a warning.
    """
    if not averages:
        log.warning("%s has no running average (%s*): the weights as trained are taken.", path, EMA)
        return unet
    published = {key: "diffusion_model" + key.replace(".", "") for key in unet}
    lost = [
        UNET + key
        for key, name in published.items()
        if name not in averages or averages[name].shape != unet[key].shape
    ]
    if lost:
        raise CheckpointImportError(
            f"{path}: looks like LDM-SR, but {EMA}* has no average of the same shape for {_some(lost)}."
        )
    strange = averages.keys() - set(published.values()) - {"decay", "num_updates"}
    if strange:
        named = _some(sorted(EMA + name for name in strange))
        raise CheckpointImportError(
            f"{path}: looks like LDM-SR, but {UNET}* has nothing that {named} is the average of."
        )
    return {key: averages[name] for key, name in published.items()}


def _within(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)
    }


def _some(keys: list[str]) -> str:
    return ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")


# ------------------------------------------------------------------------------------------ configs


def ldm_config(state: Mapping[str, Tensor]) -> LDMConfig:
    """What the shapes of the U-Net say. Training size, width of a head and dropout leave no trace:
    they keep their defaults.
    """
    image_size = LDMConfig.model_fields["image_size"].default
    model_channels = state["time_embed.0.weight"].shape[1]
    out_channels = state["out.2.weight"].shape[0]
    widths: list[list[int]] = [[]]  # output channels of each residual block, level by level
    attending = []
    stages = max(
        int(match[1]) for key in state if (match := re.match(r"input_blocks\.(\d+)\.", key))
    )
    for i in range(1, stages + 1):
        if any(key.startswith(f"input_blocks.{i}.0.op.") for key in state):
            widths.append([])
            continue
        widths[-1].append(state[f"input_blocks.{i}.0.in_layers.2.weight"].shape[0])
        if any(key.startswith(f"input_blocks.{i}.1.") for key in state):
            attending.append(image_size >> (len(widths) - 1))
    return LDMConfig(
        in_channels=out_channels,
        out_channels=out_channels,
        cond_channels=state["input_blocks.0.0.weight"].shape[1] - out_channels,
        model_channels=model_channels,
        channel_mult=tuple(level[0] // model_channels for level in widths),
        num_res_blocks=len(widths[0]),
        attention_resolutions=tuple(dict.fromkeys(attending)),
    )


def ldm_run(
    config: LDMConfig, filename: str, autoencoder: VQGANConfig, process: DDPMConfig
) -> DiffusionRun:
    """The run LDM-SR belongs to: DDIM with eta 1 and 100 steps, as in its notebook."""
    channels = config.in_channels, autoencoder.embed_dim, config.cond_channels
    if channels != (3, 3, 3):
        raise CheckpointImportError(
            f"{filename}: a U-Net with {channels[0]} latent channels behind a first stage with {channels[1]}, and {channels[2]} "
            "channels of condition, is not LDM-SR, which has 3 of each."
        )
    return DiffusionRun(
        description=f"LDM-SR, imported from {filename}",
        scale=autoencoder.factor,  # the LR picture is as large as the latent
        autoencoder=autoencoder,
        network=config,
        process=process,
        prediction="eps",
        condition=("lr",),
        sampler=Sampling(kind="ddim", steps=100, eta=1.0),
        loss=DiffusionLossConfig(kind="l2"),
    )
