"""IDM (github.com/Ree1s/IDM): SR3's U-Net with implicit decoders and an EDSR before it."""

from __future__ import annotations

from typing import Any

from ldm_dream.config.networks import IDMConfig
from ldm_dream.config.process import DDPMConfig, Sampling
from ldm_dream.config.run import DiffusionRun
from ldm_dream.interchange.shapes import count, one_or_each, possible_groups, ratio
from ldm_dream.interchange.system import Facts, PublishedSystem, State, schedule_of
from ldm_dream.interchange.systems.sr3 import sr3_levels
from ldm_dream.networks import build_network


def idm_config(state: State) -> IDMConfig:
    """What the shapes of IDM say. Training size, groups, dropout and the largest scale leave no
    trace and keep their defaults.
    """
    model_channels, all_channels = state["denoise_fn.downs.0.weight"].shape[:2]
    cond_channels = state["encoder.head.0.weight"].shape[1]
    widths, attention = sr3_levels(state)
    blocks = one_or_each([len(level) for level in widths])
    if not isinstance(blocks, int):
        raise ValueError(
            f"levels have {blocks} residual blocks, where IDM has the same number in each"
        )
    image_size = IDMConfig.model_fields["image_size"].default
    return IDMConfig(
        in_channels=all_channels - cond_channels,
        out_channels=state["denoise_fn.final_conv.block.3.weight"].shape[0],
        cond_channels=cond_channels,
        model_channels=model_channels,
        channel_mult=tuple(
            ratio(level[0], model_channels, "channels of a level over model_channels")
            for level in widths
        ),
        num_res_blocks=blocks,
        attention_resolutions=tuple(image_size >> level for level in attention),
        encoder_blocks=count(state, "encoder.body") - 1,
        encoder_channels=state["encoder.head.0.weight"].shape[0],
        norm_groups=possible_groups(model_channels),
    )


def idm_untold(config: IDMConfig, facts: Facts) -> dict[str, Any]:
    """The published shapes, those of the defaults, are of 8x with 32 groups."""
    is_known = config == IDMConfig()
    return {
        "network.norm_groups": config.norm_groups if is_known else None,
        "network.max_scale": config.max_scale if is_known else None,
        "scale": int(config.max_scale) if is_known else None,
        **schedule_of(facts, DDPMConfig(), is_known),
    }


def idm_drops(state: State) -> str:
    """The schedule's buffers, and what never reaches the output: 46 tensors with 16,789,215
    parameters in the published network.

    An MLP and layers of the U-Net that nothing calls; EDSR's mean shift; all of a StyleGAN
    convolution but its activation; the last stage of the LR branch; the proportions of level 0,
    which has no decoder.
    """
    last = count(state, "denoise_fn.conv_body_down") - 1
    schedule = r"^(betas|ddim_c1|\w*alphas_cumprod\w*|posterior_\w+)$"
    uncalled = (
        r"^imnet\.|^encoder\.(sub|add)_mean\.|^denoise_fn\.final_(down1|down2|linear|styleconv)\."
    )
    unread = rf"\.style\.(modulated_conv\.|weight$)|\.conv_body_down\.{last}\.|\.condition_(scale1|scale2|shift)\.0\."
    return f"{schedule}|{uncalled}|{unread}"


def idm_run(config: IDMConfig, facts: Facts) -> DiffusionRun:
    return DiffusionRun(
        description=facts.description,
        scale=int(config.max_scale),
        network=config,
        process=facts.schedule or DDPMConfig(),
        prediction="eps",
        sampler=Sampling(kind="ancestral"),
    )


IDM = PublishedSystem(
    name="IDM",
    licence="none given, so all rights are the authors'",
    mark=r"^denoise_fn\.conv_body_first\.",
    renames=(
        ("denoise_fn.", "unet."),
        ("noise_level_mlp.1.", "noise_level_mlp.0."),
        ("noise_level_mlp.3.", "noise_level_mlp.2."),
        (".noise_func.noise_func.0.", ".noise_func."),
        (".block1.block.", ".block1."),
        (".block2.block.", ".block2."),
        (".final_conv.block.", ".final_conv."),
        (".conv.", ".op."),
        ("encoder.head.0.", "encoder.head."),
        ("encoder.tail.0.", "encoder.tail."),
    ),
    drops=idm_drops,
    config=IDMConfig,
    read_config=idm_config,
    build=build_network,
    run=idm_run,
    untold=idm_untold,
)
