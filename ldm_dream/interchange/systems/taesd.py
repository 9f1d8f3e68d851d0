"""TAESD and its family (github.com/madebyollin/taesd). It is published as two files, NAME_encoder
and NAME_decoder, whose keys are bare numbers: either stands for both.
"""

from __future__ import annotations

from pathlib import Path

from ldm_dream.config.autoencoder import TAESDConfig
from ldm_dream.config.run import AutoencoderRun
from ldm_dream.errors import CheckpointImportError
from ldm_dream.interchange.checkpoint_file import read_checkpoint
from ldm_dream.interchange.shapes import has
from ldm_dream.interchange.system import Facts, Models, PublishedSystem, State
from ldm_dream.networks.autoencoders import build_autoencoder


def taesd_config(state: State) -> TAESDConfig:
    """What the shapes of a TAESD say."""
    return TAESDConfig(
        latent_channels=state["encoder.14.weight"].shape[0],
        group_norm_branch=has(state, "encoder.11.pool"),
    )


def both_halves(state: State, path: str) -> Models:
    """One half, and the other from the file beside `path`. Raises CheckpointImportError."""
    if has(state, "encoder") or has(state, "decoder"):  # they are together already
        return Models(state)
    file = Path(path)
    ours = next((name for name in ("encoder", "decoder") if name in file.name), None)
    if ours is None:
        raise CheckpointImportError(
            f"{path}: one half of a TAESD, but its name holds neither 'encoder' nor 'decoder'; name it so."
        )
    other = "decoder" if ours == "encoder" else "encoder"
    beside = read_checkpoint(file.with_name(file.name.replace(ours, other)))
    return Models(
        {
            f"{name}.{key}": value
            for name, half in ((ours, state), (other, beside))
            for key, value in half.items()
        }
    )


def taesd_run(config: TAESDConfig, facts: Facts) -> AutoencoderRun:
    return AutoencoderRun(description=facts.description, autoencoder=config)


TAESD = PublishedSystem(
    name="TAESD (TAEF1, TAEF2, ...)",
    licence="MIT",
    mark=r"^((encoder|decoder)\.)?\d+\.conv\.0\.",
    config=TAESDConfig,
    read_config=taesd_config,
    build=build_autoencoder,
    run=taesd_run,
    models=both_halves,
)
