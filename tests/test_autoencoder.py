"""VQGAN: published shape, locality, quantisation, scaling."""

import pytest
import torch

from ldm_dream.autoencoder import VQGAN, Attention, Pixel, build_autoencoder
from ldm_dream.config import PixelConfig, VQGANConfig
from runs import VQGAN_TINY as LOCAL


def test_published_defaults_have_the_published_parameter_count():
    with torch.device("meta"):
        model = VQGAN(VQGANConfig())
    assert sum(p.numel() for p in model.parameters()) == 55_322_782
    assert len(model.state_dict()) == 205


def test_pixel_autoencoder_is_the_identity():
    x = torch.rand(1, 3, 5, 7)
    model = build_autoencoder(PixelConfig())
    assert isinstance(model, Pixel)
    assert torch.equal(model.decode(model.encode(x)), x)


def test_latent_scale_is_undone_by_decode():
    torch.manual_seed(0)
    plain, scaled = VQGAN(LOCAL), VQGAN(LOCAL.model_copy(update={"latent_scale": 3.0}))
    scaled.load_state_dict(plain.state_dict())
    x = torch.rand(1, 3, 16, 16)
    torch.testing.assert_close(scaled.encode(x), plain.encode(x) * 3)
    torch.testing.assert_close(scaled.decode(scaled.encode(x), quantize=False), plain.decode(plain.encode(x), quantize=False))


def test_decode_quantises_as_the_config_says_unless_told_otherwise():
    torch.manual_seed(0)
    model = VQGAN(LOCAL)
    z = torch.randn(1, 4, 4, 4)
    assert torch.equal(model.decode(z), model.decode(z, quantize=True))
    assert not torch.equal(model.decode(z), model.decode(z, quantize=False))
    model.quantizes = False
    assert torch.equal(model.decode(z), model.decode(z, quantize=False))


def test_groups_are_looked_up_each_for_itself_in_one_codebook():
    torch.manual_seed(0)
    model = VQGAN(LOCAL)
    h = torch.randn(2, 4, 3, 5)
    halves = [model.quantize(part).h for part in h.split(2, 1)]
    torch.testing.assert_close(model.quantize(h).h, torch.cat(halves, 1))


def test_straight_through_gives_the_latent_the_gradient_of_the_code():
    model = VQGAN(LOCAL)
    h = torch.randn(1, 4, 3, 3, requires_grad=True)
    weight = torch.randn(1, 4, 3, 3)
    (model.quantize(h).h * weight).sum().backward()
    torch.testing.assert_close(h.grad, weight)


def test_a_pixel_far_away_changes_nothing_without_norm_and_attention():
    torch.manual_seed(0)
    model = VQGAN(LOCAL).eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.1)
    x = torch.rand(1, 3, 128, 128)
    y = x.clone()
    y[..., :2, :2] = -1
    difference = (model.encode(x) - model.encode(y)).abs()
    assert difference[..., :2, :2].max() > 0
    assert difference[..., 24:, 24:].max() == 0


def test_attention_equals_softmax_written_out():
    torch.manual_seed(0)
    layer = Attention(VQGANConfig(), 32)
    x = torch.randn(2, 32, 4, 5)
    q, k, v = (f(layer.norm(x)).flatten(2) for f in (layer.q, layer.k, layer.v))
    weights = (q.transpose(1, 2) @ k / 32**0.5).softmax(-1)
    want = x + layer.proj_out((v @ weights.transpose(1, 2)).reshape(x.shape))
    torch.testing.assert_close(layer(x), want, atol=1e-5, rtol=1e-5)


def test_encoder_and_decoder_equal_taming_transformers():
    taming = pytest.importorskip(
        "taming.modules.diffusionmodules.model", reason="taming-transformers (extra `train`) is not installed"
    )
    torch.manual_seed(0)
    cfg = VQGANConfig(ch=32, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(16,), resolution=32, n_embed=16)
    ours = VQGAN(cfg)
    dd = {
        "ch": 32,
        "out_ch": 3,
        "ch_mult": (1, 2),
        "num_res_blocks": 1,
        "attn_resolutions": [16],
        "in_channels": 3,
        "resolution": 32,
        "z_channels": 3,
    }
    encoder, decoder = taming.Encoder(**dd, double_z=False), taming.Decoder(**dd)
    encoder.load_state_dict(ours.encoder.state_dict())
    decoder.load_state_dict(ours.decoder.state_dict())
    x, z = torch.rand(1, 3, 32, 32), torch.randn(1, 3, 16, 16)
    torch.testing.assert_close(ours.encoder(x), encoder(x), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(ours.decoder(z), decoder(z), atol=1e-4, rtol=1e-4)


def test_group_norm_of_a_width_it_does_not_divide_names_the_field():
    with pytest.raises(ValueError, match="autoencoder.norm=group"):
        VQGAN(VQGANConfig(ch=24))
