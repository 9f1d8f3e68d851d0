"""Laws of the names in diffusers: its own classes, with our weights under its names, compute what
ours compute.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ldm_dream.config.autoencoder import VQGANConfig
from ldm_dream.config.networks import LDMConfig
from ldm_dream.interchange.diffusers_names import (
    DiffusersError,
    unet_arguments,
    unet_state,
    vqgan_arguments,
    vqgan_state,
)
from ldm_dream.networks import build_network
from ldm_dream.networks.vqgan import VQGAN
from runs import predict

diffusers = pytest.importorskip("diffusers")

UNET = LDMConfig(
    image_size=16,
    model_channels=32,
    channel_mult=(1, 2, 3),
    num_res_blocks=2,
    attention_resolutions=(8, 4),
    num_head_channels=16,
)
AUTOENCODER = VQGANConfig(
    ch=32, ch_mult=(1, 2, 3), num_res_blocks=1, embed_dim=4, z_channels=3, n_embed=24
)


def randomised(module: nn.Module) -> nn.Module:
    """Every parameter random, so that zero-initialised layers hide nothing and no two weights can
    be taken for each other.
    """
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3 if parameter.ndim == 1 else parameter[0].numel() ** -0.5)
    return module.eval()


def close(got: Tensor, want: Tensor) -> None:
    """Equal to 1e-5 of the largest value, which is large enough for that to say something."""
    assert want.std() > 1e-2
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5 * want.abs().max().item())


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_res_blocks": 1, "attention_resolutions": ()},
        {"channel_mult": (1, 2), "attention_resolutions": (16,), "num_head_channels": 32},
        {"in_channels": 4, "out_channels": 4, "cond_channels": 7},
    ],
)
def test_unet2dmodel_with_our_weights_computes_what_our_network_computes(changes):
    cfg = UNET.model_copy(update=changes)
    network = randomised(build_network(cfg))
    theirs = diffusers.UNet2DModel(**unet_arguments(cfg)).eval()
    theirs.load_state_dict(unet_state(cfg, network.state_dict()), strict=True)
    z_t, cond = torch.randn(2, cfg.in_channels, 16, 8), torch.randn(2, cfg.cond_channels, 16, 8)
    t = torch.tensor([3, 981])
    with torch.no_grad():
        close(predict(network, z_t, t, cond), theirs(torch.cat([z_t, cond], 1), t).sample)


def test_published_unet_has_the_parameters_of_diffusers():
    with torch.device("meta"):
        network = build_network(LDMConfig())
        theirs = diffusers.UNet2DModel(**unet_arguments(LDMConfig()))
    got = {key: value.shape for key, value in unet_state(LDMConfig(), network.state_dict()).items()}
    assert got == {key: value.shape for key, value in theirs.state_dict().items()}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"mid_attention": False, "num_res_blocks": 2},
        {"attn_resolutions": (128, 64), "ch_mult": (1, 2, 2)},
        {"latent_scale": 1.7},
    ],
)
def test_vqmodel_with_our_weights_encodes_and_decodes_as_our_vqgan(changes):
    cfg = AUTOENCODER.model_copy(update=changes)
    vqgan = randomised(VQGAN(cfg))
    theirs = diffusers.VQModel(**vqgan_arguments(cfg)).eval()
    theirs.load_state_dict(vqgan_state(cfg, vqgan.state_dict()), strict=True)
    x = torch.randn(2, 3, 24, 16)
    with torch.no_grad():
        z = vqgan.encode(x)
        close(z, theirs.encode(x).latents)
        close(vqgan.decode(z), theirs.decode(z).sample)
        close(vqgan.decode(z, quantize=False), theirs.decode(z, force_not_quantize=True).sample)


@pytest.mark.parametrize(
    "cfg, field",
    [
        (UNET.model_copy(update={"norm": "layer"}), "network.norm"),
        (UNET.model_copy(update={"channel_mult": (2, 4)}), "network.channel_mult"),
        (AUTOENCODER.model_copy(update={"norm": "none"}), "autoencoder.norm"),
        (AUTOENCODER.model_copy(update={"codebook_groups": 2}), "autoencoder.codebook_groups"),
        (
            AUTOENCODER.model_copy(update={"num_res_blocks": (1, 2, 3)}),
            "autoencoder.num_res_blocks",
        ),
        (AUTOENCODER.model_copy(update={"quantize": False}), "autoencoder.quantize"),
    ],
)
def test_what_diffusers_cannot_express_is_refused_by_the_name_of_its_field(cfg, field):
    with pytest.raises(DiffusersError, match=rf"cannot express {field}"):
        unet_arguments(cfg) if isinstance(cfg, LDMConfig) else vqgan_arguments(cfg)
