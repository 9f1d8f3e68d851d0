"""SR3's U-Net (github.com/Janspiry/Image-Super-Resolution-via-Iterative-Refinement, and DREAM's,
which is the same).
"""

from __future__ import annotations

from typing import Any

from ldm_dream.config.networks import SR3Config
from ldm_dream.config.process import DDPMConfig, Sampling
from ldm_dream.config.run import DiffusionRun
from ldm_dream.errors import CheckpointImportError
from ldm_dream.interchange.shapes import count, has, possible_groups, ratio
from ldm_dream.interchange.system import Facts, PublishedSystem, State, schedule_of
from ldm_dream.networks import build_network

SCALE = 8  # of the published models, 16 -> 128 and 64 -> 512


def sr3_config(state: State) -> SR3Config:
    """What the shapes of SR3's U-Net say. Not in them: dropout; norm_groups (`sr3_untold`);
    `image_size`, which only places attention: all have it at size 16, if any.
    """
    inner = state["denoise_fn.downs.0.weight"].shape[0]
    levels, attn = sr3_levels(state)
    image_size = 16 << attn[0] if attn else 128
    out_channels = state["denoise_fn.final_conv.block.3.weight"].shape[0]
    config = SR3Config(
        image_size=image_size,
        in_channels=out_channels,
        out_channels=out_channels,
        cond_channels=state["denoise_fn.downs.0.weight"].shape[1] - out_channels,
        model_channels=inner,
        channel_mult=tuple(
            ratio(level[0], inner, "channels of a level over model_channels") for level in levels
        ),
        num_res_blocks=len(levels[0]),
        attention_resolutions=tuple(image_size >> level for level in attn),
        norm_groups=possible_groups(inner),
    )
    known = _published(config)
    return config.model_copy(update={"norm_groups": known}) if known else config


# the published networks: 16 -> 128 and 64 -> 512
PUBLISHED = (
    SR3Config(),
    SR3Config(
        channel_mult=(1, 2, 4, 8, 16), num_res_blocks=1, attention_resolutions=(), norm_groups=16
    ),
)


def _published(config: SR3Config) -> int | None:
    """Groups of the published network of these shapes."""
    return next(
        (
            known.norm_groups
            for known in PUBLISHED
            if known == config.model_copy(update={"norm_groups": known.norm_groups})
        ),
        None,
    )


def sr3_untold(config: SR3Config, facts: Facts) -> dict[str, Any]:
    groups = _published(config)
    return {
        "network.norm_groups": groups,
        "scale": SCALE if groups else None,
        **schedule_of(facts, DDPMConfig(), groups is not None),
    }


def sr3_levels(state: State) -> tuple[list[list[int]], list[int]]:
    """Of the way down in SR3's U-Net, which IDM shares: output channels of each block, level by
    level; levels with attention.
    """
    widths: list[list[int]] = [[]]
    attention = set()
    for i in range(1, count(state, "denoise_fn.downs")):
        layer = f"denoise_fn.downs.{i}"
        if has(state, f"{layer}.conv"):
            widths.append([])
            continue
        widths[-1].append(state[f"{layer}.res_block.block2.block.3.weight"].shape[0])
        if has(state, f"{layer}.attn"):
            attention.add(len(widths) - 1)
    return widths, sorted(attention)


def sr3_run(config: SR3Config, facts: Facts) -> DiffusionRun:
    """Raises CheckpointImportError for a network without a condition."""
    if config.cond_channels != config.in_channels:
        raise CheckpointImportError(
            f"{facts.filename}: this SR3 network takes no low-resolution picture; import one that does."
        )
    return DiffusionRun(
        description=facts.description,
        scale=SCALE,
        network=config,
        process=(facts.schedule or DDPMConfig()).model_copy(update={"continuous": True}),
        prediction="eps",
        condition=("z_lr",),
        sampler=Sampling(kind="ancestral"),
    )


SR3 = PublishedSystem(
    name="SR3 U-Net (SR3, DREAM)",
    licence="SR3: Apache-2.0; DREAM: MIT",
    mark=r"^denoise_fn\.noise_level_mlp\.",  # the authors' other network, "ddpm", has a time_mlp
    renames=(
        (".res_block.noise_func.noise_func.0.", ".noise."),
        (".res_block.block1.block.0.", ".norm1."),
        (".res_block.block1.block.3.", ".conv1."),
        (".res_block.block2.block.0.", ".norm2."),
        (".res_block.block2.block.3.", ".conv2."),
        (".res_block.res_conv.", ".res_conv."),
        ("final_conv.block.0.", "norm_out."),
        ("final_conv.block.3.", "conv_out."),
        ("noise_level_mlp.1.", "noise_level_mlp.0."),
        ("noise_level_mlp.3.", "noise_level_mlp.2."),
    ),
    drops=r"^[^.]+$",  # the schedule's buffers, whose length depends on it
    config=SR3Config,
    read_config=sr3_config,
    build=build_network,
    run=sr3_run,
    untold=sr3_untold,
    prefix="denoise_fn.",
)
