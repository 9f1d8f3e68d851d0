"""VQGANs in the layout of LDM's vq-f4: of LDM, ResShift and taming-transformers."""

from __future__ import annotations

from ldm_dream.config.autoencoder import VQGANConfig
from ldm_dream.config.run import AutoencoderRun
from ldm_dream.interchange.shapes import count, has, one_or_each, ratio
from ldm_dream.interchange.system import Facts, PublishedSystem, State
from ldm_dream.networks.autoencoders import build_autoencoder


def vqgan_config(state: State) -> VQGANConfig:
    """What the shapes of a VQGAN say. `resolution` leaves no trace and only places attention, so it
    keeps its default.
    """
    ch = state["encoder.conv_in.weight"].shape[0]
    levels = count(state, "encoder.down")
    resolution = VQGANConfig.model_fields["resolution"].default
    mults = [
        ratio(
            state[f"encoder.down.{i}.block.0.conv1.weight"].shape[0],
            ch,
            "channels of a level over ch",
        )
        for i in range(levels)
    ]
    return VQGANConfig(
        ch=ch,
        ch_mult=tuple(mults),
        num_res_blocks=one_or_each(
            [count(state, f"encoder.down.{i}.block") for i in range(levels)]
        ),
        attn_resolutions=tuple(
            resolution >> i for i in range(levels) if has(state, f"encoder.down.{i}.attn")
        ),
        mid_attention=has(state, "encoder.mid.attn_1"),
        z_channels=state["encoder.conv_out.weight"].shape[0],
        embed_dim=state["quant_conv.weight"].shape[0],
        n_embed=state["quantize.embedding.weight"].shape[0],
    )


def vqgan_run(config: VQGANConfig, facts: Facts) -> AutoencoderRun:
    return AutoencoderRun(description=facts.description, autoencoder=config)


VQGAN = PublishedSystem(
    name="VQGAN (LDM vq-f4, ResShift vq-f4 and vq-f8, taming)",
    licence="LDM, taming: MIT; ResShift: S-Lab License 1.0",
    mark=r"^quantize\.embedding\.",
    drops=r"^loss\.",  # LPIPS and discriminator, which LDM and taming save along
    config=VQGANConfig,
    read_config=vqgan_config,
    build=build_autoencoder,
    run=vqgan_run,
)
