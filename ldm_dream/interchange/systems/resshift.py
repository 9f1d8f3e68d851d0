"""ResShift's Swin U-Net (github.com/zsyOAOA/ResShift) and the runs of its super-resolution models."""

from __future__ import annotations

import re
from typing import Any

from ldm_dream.config.autoencoder import VQGANConfig
from ldm_dream.config.networks import ResShiftNetConfig
from ldm_dream.config.process import ResidualShiftConfig
from ldm_dream.config.run import DiffusionRun
from ldm_dream.errors import CheckpointImportError
from ldm_dream.interchange.shapes import count, has, one_or_each, ratio
from ldm_dream.interchange.system import Facts, PublishedSystem, State
from ldm_dream.networks import build_network

# steps -> published schedule
PROCESSES = {
    15: ResidualShiftConfig(),
    4: ResidualShiftConfig(num_timesteps=4, min_noise_level=0.2),
}
# latent channels -> the autoencoder that the published networks were trained behind
AUTOENCODERS = {
    3: VQGANConfig(),
    8: VQGANConfig(
        ch=64,
        ch_mult=(1, 2, 4, 8),
        num_res_blocks=(1, 2, 3, 4),
        resolution=512,
        z_channels=8,
        embed_dim=8,
        n_embed=4096,
    ),
}

PUBLISHED_X2 = ResShiftNetConfig(cond_factor=2, legacy_mask=True)  # 15 steps, one file


def resshift_config(state: State) -> ResShiftNetConfig:
    """What the shapes of ResShift's U-Net say. Dropout leaves no trace; without an extractor, z_t
    is as wide as the output.
    """
    model_channels = state["time_embed.0.weight"].shape[1]
    out_channels = state["out.2.weight"].shape[0]
    widths: list[list[int]] = [[]]  # output channels of each residual block, level by level
    swin_levels = {}
    for i in range(1, count(state, "input_blocks")):
        if has(state, f"input_blocks.{i}.0.op"):
            widths.append([])
            continue
        widths[-1].append(state[f"input_blocks.{i}.0.in_layers.2.weight"].shape[0])
        if has(state, f"input_blocks.{i}.1"):
            swin_levels[len(widths) - 1] = f"input_blocks.{i}.1"
    levels = len(widths)
    layers = {**swin_levels, levels - 1: swin_levels.get(levels - 1, "middle_block.1")}
    windows = {
        level: _window(state, layer)
        for level, layer in {**layers, levels: "middle_block.1"}.items()
    }
    image_size = _image_size(state, layers, windows, levels)

    embed = state["middle_block.1.patch_embed.proj.weight"].shape[0]
    heads = state["middle_block.1.blocks.0.attn.relative_position_bias_table"].shape[1]
    extractor = [
        int(key.split(".")[1])
        for key in state
        if re.match(r"feature_extractor\.\d+\.op\.weight", key)
    ]
    in_channels = out_channels
    cond_channels = state["input_blocks.0.0.weight"].shape[1] - in_channels
    if extractor:
        cond_channels = state["feature_extractor.0.weight"].shape[1]
        in_channels = (
            state["input_blocks.0.0.weight"].shape[1]
            - state[f"feature_extractor.{max(extractor)}.op.weight"].shape[0]
        )
    return ResShiftNetConfig(
        image_size=image_size,
        in_channels=in_channels,
        out_channels=out_channels,
        cond_channels=cond_channels,
        cond_factor=2 ** len(extractor),
        model_channels=model_channels,
        channel_mult=tuple(
            ratio(level[0], model_channels, "channels of a level over model_channels")
            for level in widths
        ),
        num_res_blocks=one_or_each([len(level) for level in widths]),
        attention_resolutions=tuple(image_size >> level for level in swin_levels),
        swin_depth=count(state, "middle_block.1.blocks"),
        swin_embed_dim=embed,
        num_head_channels=ratio(embed, heads, "swin_embed_dim over heads"),
        window_size=max(windows.values()),
        mlp_ratio=state["middle_block.1.blocks.0.mlp.fc1.weight"].shape[0] / embed,
        legacy_mask=True,
    )


def _window(state: State, layer: str) -> int:
    rows = state[f"{layer}.blocks.0.attn.relative_position_bias_table"].shape[0]
    return (round(rows**0.5) + 1) // 2  # rows = (2 * window - 1) ** 2


def _image_size(state: State, layers: dict[int, str], windows: dict[int, int], levels: int) -> int:
    """Training size of z_t. A shifted block keeps its mask [windows,N,N]; without any, one window
    covers the deepest level.
    """
    for level, layer in layers.items():
        if f"{layer}.blocks.1.attn_mask" in state:
            return (
                round(state[f"{layer}.blocks.1.attn_mask"].shape[0] ** 0.5) * windows[level]
                << level
            )
    return windows[levels] << (levels - 1)


def _steps(filename: str) -> int | None:
    """The steps, which no tensor tells, are in a published file's name (`.._s4.pth`)."""
    named = re.search(r"_s(\d+)", filename)
    return int(named[1]) if named else None


def resshift_untold(config: ResShiftNetConfig, facts: Facts) -> dict[str, Any]:
    """By a published name: its schedule. The published x2 network is known by its shape, too."""
    steps = _steps(facts.filename) or (15 if config == PUBLISHED_X2 else None)
    known = PROCESSES.get(steps or 0)
    return {
        "process.num_timesteps": steps,
        "process.min_noise_level": known.min_noise_level if known else None,
        "process.kappa": _kappa(facts.filename) if known else None,
    }


def _kappa(filename: str) -> float:
    return 1.0 if "bicsrx4_opencv" in filename else 2.0


def resshift_run(config: ResShiftNetConfig, facts: Facts) -> DiffusionRun:
    """Without a published name, the schedule of 15 steps. Raises CheckpointImportError for a network
    of another task.
    """
    if config.cond_channels != 3 or config.in_channels not in AUTOENCODERS:
        raise CheckpointImportError(
            f"{facts.filename}: a network with {config.in_channels} latent and {config.cond_channels} "
            "condition channels is none of ResShift's super-resolution models, "
            f"which have {' or '.join(map(str, AUTOENCODERS))} and 3."
        )
    vqgan = AUTOENCODERS[config.in_channels]
    process = PROCESSES.get(_steps(facts.filename) or 15, PROCESSES[15])
    kappa = _kappa(facts.filename)
    return DiffusionRun(
        description=facts.description,
        scale=vqgan.factor // config.cond_factor,
        autoencoder=facts.vqgan(vqgan),
        network=config,
        process=process.model_copy(update={"kappa": kappa}),
    )


RESSHIFT = PublishedSystem(
    name="ResShift U-Net",
    licence="S-Lab License 1.0 (non-commercial)",
    mark=r"^middle_block\.1\.blocks\.\d+\.",
    renames=((".patch_embed.proj.", ".patch_embed."), (".patch_unembed.proj.", ".patch_unembed.")),
    # follow from the sizes; the official code does not read them either
    drops=r"\.(attn_mask|relative_position_index)$",
    config=ResShiftNetConfig,
    read_config=resshift_config,
    build=build_network,
    run=resshift_run,
    untold=resshift_untold,
)
