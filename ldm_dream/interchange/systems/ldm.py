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
from typing import Any

from torch import Tensor

from ldm_dream.config.autoencoder import VQGANConfig
from ldm_dream.config.networks import LDMConfig
from ldm_dream.config.process import DDPMConfig, Sampling
from ldm_dream.config.run import DiffusionLossConfig, DiffusionRun
from ldm_dream.errors import CheckpointImportError, some
from ldm_dream.interchange.shapes import count, has, ratio
from ldm_dream.interchange.system import Facts, Models, PublishedSystem, State, schedule_of
from ldm_dream.networks import build_network

log = logging.getLogger(__name__)

UNET, EMA, FIRST_STAGE = "model.diffusion_model.", "model_ema.", "first_stage_model."
SCHEDULE = r"^(betas|(log_|sqrt_|posterior_)\w+|alphas_cumprod(_prev)?)$"
# of bsr_sr, in its config.yaml
PROCESS = DDPMConfig(num_timesteps=1000, beta_start=0.0015, beta_end=0.0155, schedule="sqrt_linear")


def split_ldm(state: State, path: str) -> Models:
    """The models of the file, each under its own names; every key has its place. A U-Net alone is
    given as it is. Raises CheckpointImportError, with `path`.
    """
    if not any(key.startswith(UNET) for key in state):
        return Models(state)
    strange = [
        key
        for key in state
        if not key.startswith((UNET, EMA, FIRST_STAGE)) and not re.match(SCHEDULE, key)
    ]
    if strange:
        raise CheckpointImportError(
            f"{path}: looks like LDM-SR, but none of its models has {some(strange, 3)}."
        )
    return Models(
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
            f"{path}: looks like LDM-SR, but {EMA}* has no average of the same shape for {some(lost, 3)}."
        )
    strange = averages.keys() - set(published.values()) - {"decay", "num_updates"}
    if strange:
        named = some(sorted(EMA + name for name in strange), 3)
        raise CheckpointImportError(
            f"{path}: looks like LDM-SR, but {UNET}* has nothing that {named} is the average of."
        )
    return {key: averages[name] for key, name in published.items()}


def _within(state: State, prefix: str) -> dict[str, Tensor]:
    return {
        key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)
    }


# ------------------------------------------------------------------------------------------ configs


def ldm_config(state: State) -> LDMConfig:
    """What the shapes of the U-Net say. Training size, width of a head and dropout leave no trace:
    they keep their defaults.
    """
    image_size = LDMConfig.model_fields["image_size"].default
    model_channels = state["time_embed.0.weight"].shape[1]
    out_channels = state["out.2.weight"].shape[0]
    widths: list[list[int]] = [[]]  # output channels of each residual block, level by level
    attending = []
    for i in range(1, count(state, "input_blocks")):
        if has(state, f"input_blocks.{i}.0.op"):
            widths.append([])
            continue
        widths[-1].append(state[f"input_blocks.{i}.0.in_layers.2.weight"].shape[0])
        if has(state, f"input_blocks.{i}.1"):
            attending.append(image_size >> (len(widths) - 1))
    return LDMConfig(
        in_channels=out_channels,
        out_channels=out_channels,
        cond_channels=state["input_blocks.0.0.weight"].shape[1] - out_channels,
        model_channels=model_channels,
        channel_mult=tuple(
            ratio(level[0], model_channels, "channels of a level over model_channels")
            for level in widths
        ),
        num_res_blocks=len(widths[0]),
        attention_resolutions=tuple(dict.fromkeys(attending)),
    )


def ldm_untold(config: LDMConfig, facts: Facts) -> dict[str, Any]:
    """The published shapes are those of the defaults, with heads of 32 channels."""
    is_known = config == LDMConfig()
    return {
        "network.num_head_channels": config.num_head_channels if is_known else None,
        **schedule_of(facts, PROCESS, is_known),
    }


def ldm_run(config: LDMConfig, facts: Facts) -> DiffusionRun:
    """DDIM with eta 1 and 100 steps, as in LDM-SR's notebook. Raises CheckpointImportError for
    another system of latent-diffusion.
    """
    autoencoder = facts.vqgan(VQGANConfig())
    channels = config.in_channels, autoencoder.embed_dim, config.cond_channels
    if channels != (3, 3, 3):
        raise CheckpointImportError(
            f"{facts.filename}: a U-Net with {channels[0]} latent channels behind a first stage with {channels[1]}, and "
            f"{channels[2]} channels of condition, is not LDM-SR, which has 3 of each."
        )
    return DiffusionRun(
        description=f"LDM-SR, {facts.description}",
        scale=autoencoder.factor,  # the LR picture is as large as the latent
        autoencoder=autoencoder,
        network=config,
        process=facts.schedule or PROCESS,
        prediction="eps",
        condition=("lr",),
        sampler=Sampling(kind="ddim", steps=100, eta=1.0),
        loss=DiffusionLossConfig(kind="l2"),
    )


LDM = PublishedSystem(
    name="LDM-SR U-Net",
    licence="MIT",
    mark=r"^(model\.diffusion_model\.|middle_block\.1\.qkv\.)",
    config=LDMConfig,
    read_config=ldm_config,
    build=build_network,
    run=ldm_run,
    untold=ldm_untold,
    models=split_ldm,
)
