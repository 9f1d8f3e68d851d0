"""Golden runner of IDM (idm_unet): LR encoder, U-Net and loss, from the case's constructor
arguments alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

from golden.reading import Case, watching
from ldm_dream.config.networks import IDMConfig
from ldm_dream.interchange.published import translate
from ldm_dream.interchange.systems import IDM
from ldm_dream.networks import build_network
from ldm_dream.networks.idm import ImplicitDecoder


def config(unet: Case, encoder: Case) -> IDMConfig:
    """Constructor arguments of the official classes -> our config. The U-Net takes the condition
    (RGB) and z_t side by side.
    """
    return IDMConfig(
        image_size=unet["image_size"],
        in_channels=unet["in_channel"] - 3,
        out_channels=unet["out_channel"],
        model_channels=unet["inner_channel"],
        channel_mult=unet["channel_mults"],
        num_res_blocks=unet["res_blocks"],
        attention_resolutions=unet["attn_res"],
        norm_groups=unet["norm_groups"],
        dropout=unet["dropout"],
        encoder_blocks=encoder["n_resblocks"],
        encoder_channels=encoder["n_feats"],
    )


def run(case: Case, io: dict[str, Tensor], weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """-> condition_i, eps_i, p_losses_l1_sum_i, and the intermediates of item 0."""
    construct = case["construct"]
    construct.known("schedule", "imnet_MLP_kwargs")  # levels are given; nothing calls the MLP
    construct["encoder_EDSR_kwargs"].only(no_upsampling=False)
    construct["encoder_EDSR_kwargs"].known("scale", "rgb_range")  # of layers that are not applied
    construct["diffusion_kwargs"].only(loss_type="l1", conditional=True)
    construct["diffusion_kwargs"].known("channels", "image_size")
    network = build_network(
        config(construct["unet_kwargs"], construct["encoder_EDSR_kwargs"])
    ).eval()
    network.load_state_dict(translate(IDM, weights), strict=True)
    # EDSR's residual scaling, published with 1, is a factor on a block's last layer
    for block in network.encoder.body[:-1]:
        for parameter in block.body[-1].parameters():
            parameter.data *= construct["encoder_EDSR_kwargs"]["res_scale"]

    decoders = [module for module in network.unet.ups if isinstance(module, ImplicitDecoder)]
    watched = {"condition": network.encoder, "conv_body_first": network.unet.conv_body_first}
    watched |= {f"idm{j}_style": decoder.style for j, decoder in enumerate(decoders)}
    watched |= {f"idm{j}_tokens": decoder for j, decoder in enumerate(decoders)}

    outputs: dict[str, Tensor] = {}
    for i in range(case["n_items"]):
        lr, level, position = io[f"in.lr_{i}"], io[f"in.noise_level_{i}"], io[f"in.scaler_{i}"]
        with torch.no_grad():
            with watching(watched) as seen:
                _, picture, *levels = network.prepare(lr, io[f"in.x_noisy_{i}"].shape[-2:])
                emb = network.embed(level[:, 0])
                outputs[f"eps_{i}"] = network.unet(
                    io[f"in.x_noisy_{i}"], emb, picture, levels, position
                )
            for name, value in seen.items():
                outputs[f"{name}_{i}"] = value.flatten(2).mT if name.endswith("tokens") else value
            a, z0, eps = level[:, :, None, None], io[f"in.y0_{i}"], io[f"in.noise_{i}"]
            z_t = a * z0 + (1 - a**2).sqrt() * eps
            predicted = network.unet(z_t, emb, picture, levels, position)
            outputs[f"p_losses_l1_sum_{i}"] = (eps - predicted).abs().sum()
    return outputs
