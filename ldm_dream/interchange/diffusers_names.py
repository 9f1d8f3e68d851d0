"""Our LDM U-Net and VQGAN in the terms of diffusers: arguments of its `UNet2DModel` and `VQModel`,
and their weights.

diffusers numbers the decoder's levels from the deepest, keeps q, k and v apart, and writes 1x1
convolutions of attention as linear layers. Where it has no word for a config (local norms, a
codebook in groups, ...) that is a DiffusersError.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ldm_dream.config.autoencoder import VQGANConfig
from ldm_dream.config.networks import LDMConfig
from ldm_dream.errors import UserError

UNET_RESNET = {  # our module -> theirs
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
# to_qkv stands for to_q, to_k and to_v
UNET_ATTENTION = {
    "norm": "group_norm",
    "qkv": "to_qkv",
    "proj_out": "to_out.0",
}
VQ_RESNET = {
    "norm1": "norm1",
    "conv1": "conv1",
    "norm2": "norm2",
    "conv2": "conv2",
    "nin_shortcut": "conv_shortcut",
}
VQ_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}


class DiffusersError(UserError, ValueError):
    """A config that diffusers' classes cannot express; its text is one sentence."""


# -------------------------------------------------------------------------------------------- U-Net


def unet_arguments(cfg: LDMConfig) -> dict:
    """Arguments of `diffusers.UNet2DModel`; it takes z_t and the condition side by side. Raises
    DiffusersError.
    """
    _require(cfg.norm == "group", f"network.norm={cfg.norm}", "group")
    _require(
        cfg.channel_mult[0] == 1,
        f"network.channel_mult={list(cfg.channel_mult)}",
        "a first entry of 1",
    )
    attends = [
        cfg.image_size >> level in cfg.attention_resolutions
        for level in range(len(cfg.channel_mult))
    ]
    # the rest are its defaults: cos before sin, SiLU, 32 groups, eps 1e-5, no scale-shift norm
    return {
        "sample_size": cfg.image_size,
        "in_channels": cfg.in_channels + cfg.cond_channels,
        "out_channels": cfg.out_channels,
        "block_out_channels": [cfg.model_channels * mult for mult in cfg.channel_mult],
        "down_block_types": [
            "AttnDownBlock2D" if attention else "DownBlock2D" for attention in attends
        ],
        "up_block_types": [
            "AttnUpBlock2D" if attention else "UpBlock2D" for attention in reversed(attends)
        ],
        "layers_per_block": cfg.num_res_blocks,
        "attention_head_dim": cfg.num_head_channels,
        "dropout": cfg.dropout,
    }


def unet_names(cfg: LDMConfig) -> dict[str, str]:
    """Our module -> theirs, for every module with weights that a network of this config can have."""
    names = {
        "time_embed.0": "time_embedding.linear_1",
        "time_embed.2": "time_embedding.linear_2",
        "input_blocks.0.0": "conv_in",
        "out.0": "conv_norm_out",
        "out.2": "conv_out",
        **_under("middle_block.0", "mid_block.resnets.0", UNET_RESNET),
        **_under("middle_block.1", "mid_block.attentions.0", UNET_ATTENTION),
        **_under("middle_block.2", "mid_block.resnets.1", UNET_RESNET),
    }
    # a level in the encoder: residual blocks, then downsampling; in the decoder: one block more
    stages = cfg.num_res_blocks + 1
    for level in range(len(cfg.channel_mult)):
        for j in range(stages):
            down, up = (
                f"input_blocks.{1 + level * stages + j}",
                f"output_blocks.{level * stages + j}",
            )
            names |= _under(f"{down}.0", f"down_blocks.{level}.resnets.{j}", UNET_RESNET)
            names |= _under(f"{down}.1", f"down_blocks.{level}.attentions.{j}", UNET_ATTENTION)
            names |= _under(f"{up}.0", f"up_blocks.{level}.resnets.{j}", UNET_RESNET)
            names |= _under(f"{up}.1", f"up_blocks.{level}.attentions.{j}", UNET_ATTENTION)
        names[f"{down}.0.op"] = f"down_blocks.{level}.downsamplers.0.conv"
        for place in (1, 2):  # behind attention or not
            names[f"{up}.{place}.conv"] = f"up_blocks.{level}.upsamplers.0.conv"
    return names


def unet_state(cfg: LDMConfig, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """State dict of our U-Net -> of `UNet2DModel(**unet_arguments(cfg))`."""
    names, theirs = unet_names(cfg), {}
    for key, value in state.items():
        module, _, parameter = key.rpartition(".")
        name = names[module]
        if name.endswith("to_qkv"):  # rows [heads, (q, k, v), d], theirs [heads, d] each
            rows = value.reshape(-1, 3, cfg.num_head_channels, *value.shape[1:2])
            for part, split in zip("qkv", rows.unbind(1)):
                theirs[f"{name.removesuffix('qkv')}{part}.{parameter}"] = split.flatten(0, 1)
        else:
            theirs[f"{name}.{parameter}"] = (
                value.squeeze(2) if name.endswith("to_out.0") and value.ndim == 3 else value
            )
    return theirs


# -------------------------------------------------------------------------------------------- VQGAN


def vqgan_arguments(cfg: VQGANConfig) -> dict:
    """Arguments of `diffusers.VQModel`. Raises DiffusersError."""
    _require(cfg.norm == "group", f"autoencoder.norm={cfg.norm}", "group")
    _require(
        isinstance(cfg.num_res_blocks, int),
        f"autoencoder.num_res_blocks={cfg.num_res_blocks}",
        "one number for all levels",
    )
    _require(cfg.patch == 1, f"autoencoder.patch={cfg.patch}", "1")
    _require(cfg.codebook_groups == 1, f"autoencoder.codebook_groups={cfg.codebook_groups}", "1")
    _require(cfg.quantize, "autoencoder.quantize=false", "true")
    attends = [cfg.size(level) in cfg.attn_resolutions for level in range(len(cfg.ch_mult))]
    return {
        "block_out_channels": [cfg.ch * mult for mult in cfg.ch_mult],
        "down_block_types": [
            "AttnDownEncoderBlock2D" if attention else "DownEncoderBlock2D" for attention in attends
        ],
        "up_block_types": [
            "AttnUpDecoderBlock2D" if attention else "UpDecoderBlock2D"
            for attention in reversed(attends)
        ],
        "layers_per_block": cfg.num_res_blocks,
        "mid_block_add_attention": cfg.mid_attention,
        "latent_channels": cfg.z_channels,
        "vq_embed_dim": cfg.embed_dim,
        "num_vq_embeddings": cfg.n_embed,
        "sample_size": cfg.resolution,
        "scaling_factor": 1.0,  # vqgan_state() folds latent_scale into the weights
    }


def vqgan_names(cfg: VQGANConfig) -> dict[str, str]:
    """Our module -> theirs, for every module with weights that a VQGAN of this config can have."""
    same = ("encoder.conv_in", "encoder.conv_out", "decoder.conv_in", "decoder.conv_out")
    names = {name: name for name in (*same, "quant_conv", "post_quant_conv", "quantize.embedding")}
    levels, blocks = len(cfg.ch_mult), cfg.num_res_blocks
    counts = [blocks] * levels if isinstance(blocks, int) else list(blocks)
    for half in ("encoder", "decoder"):
        names[f"{half}.norm_out"] = f"{half}.conv_norm_out"
        names |= _under(f"{half}.mid.block_1", f"{half}.mid_block.resnets.0", VQ_RESNET)
        names |= _under(f"{half}.mid.attn_1", f"{half}.mid_block.attentions.0", VQ_ATTENTION)
        names |= _under(f"{half}.mid.block_2", f"{half}.mid_block.resnets.1", VQ_RESNET)
    for level in range(levels):
        sides = {
            f"encoder.down.{level}": f"encoder.down_blocks.{level}",
            f"decoder.up.{level}": f"decoder.up_blocks.{levels - 1 - level}",
        }
        for ours, theirs in sides.items():
            for j in range(counts[level] + 1):
                names |= _under(f"{ours}.block.{j}", f"{theirs}.resnets.{j}", VQ_RESNET)
                names |= _under(f"{ours}.attn.{j}", f"{theirs}.attentions.{j}", VQ_ATTENTION)
            names[f"{ours}.downsample.conv"] = f"{theirs}.downsamplers.0.conv"
            names[f"{ours}.upsample.conv"] = f"{theirs}.upsamplers.0.conv"
    return names


def vqgan_state(cfg: VQGANConfig, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """State dict of our VQGAN -> of `VQModel(**vqgan_arguments(cfg))`, whose latents are ours,
    `latent_scale` included.
    """
    scales = {"quant_conv.weight": cfg.latent_scale, "quant_conv.bias": cfg.latent_scale}
    scales |= {
        "quantize.embedding.weight": cfg.latent_scale,
        "post_quant_conv.weight": 1 / cfg.latent_scale,
    }
    names, theirs = vqgan_names(cfg), {}
    for key, value in state.items():
        module, _, parameter = key.rpartition(".")
        linear = ".to_" in names[module] and value.ndim == 4
        theirs[f"{names[module]}.{parameter}"] = (
            value.flatten(1) if linear else value
        ) * scales.get(key, 1.0)
    return theirs


# -------------------------------------------------------------------------------------------- parts


def _under(ours: str, theirs: str, parts: Mapping[str, str]) -> dict[str, str]:
    return {f"{ours}.{a}": f"{theirs}.{b}" for a, b in parts.items()}


def _require(fits: bool, given: str, wanted: str) -> None:
    if not fits:
        raise DiffusersError(f"diffusers cannot express {given}; its classes want {wanted}.")
