"""Laws of IDM: published size, implicit decoder, rectangles and real scales, memory layout,
precision, compilation.
"""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor

from ldm_dream.config.networks import IDMConfig
from ldm_dream.networks import build_network, compile_blocks
from ldm_dream.networks.idm import Blur, ImplicitDecoder, nearest
from ldm_dream.networks.layers import Attention, noise_level_embedding
from runs import predict

TINY = IDMConfig(
    image_size=16,
    model_channels=8,
    channel_mult=(1, 2, 2),
    num_res_blocks=1,
    attention_resolutions=(8,),
    norm_groups=4,
    dropout=0.0,
    encoder_blocks=2,
    encoder_channels=8,
    max_scale=4,
)
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def tiny(**changes) -> torch.nn.Module:
    """A tiny network whose every parameter is random, biases too."""
    torch.manual_seed(0)
    network = build_network(TINY.model_copy(update=changes)).eval()
    for parameter in network.parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, mean=0.5, std=0.3)
    return network


def inputs(size=(16, 16), lr_size=(4, 4), batch: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    z_t = torch.randn(batch, 3, *size, generator=generator)
    return (
        z_t,
        torch.linspace(0.9, 0.2, batch),
        torch.rand(batch, 3, *lr_size, generator=generator) * 2 - 1,
    )


# -------------------------------------------------------------------------------------------- shape


def test_the_published_config_has_the_published_parameters():
    """Published config has the published parameters that reach the output."""
    with torch.device("meta"):
        network = build_network(IDMConfig())
    assert sum(parameter.numel() for parameter in network.parameters()) == 116_590_885 - 16_789_215


def test_gradients_reach_every_parameter():
    network = tiny()
    predict(network, *inputs((15, 10))).square().mean().backward()
    assert [
        name
        for name, p in network.named_parameters()
        if p.grad is None or not p.grad.abs().max() > 0
    ] == []


def test_attention_is_where_the_training_size_says_and_in_the_middle():
    def names(**changes):
        return [name for name, m in tiny(**changes).named_modules() if isinstance(m, Attention)]

    assert names() == ["unet.downs.3.attn", "unet.mid.0.attn", "unet.ups.3.attn", "unet.ups.4.attn"]
    assert names(attention_resolutions=()) == ["unet.mid.0.attn"]


@pytest.mark.parametrize(
    "changes, field",
    [
        ({"norm_groups": 3}, "norm_groups"),
        ({"model_channels": 9, "norm_groups": 1}, "model_channels"),
    ],
)
def test_a_config_that_cannot_be_built_is_refused_by_the_name_of_its_field(changes, field):
    with pytest.raises(ValueError, match=field):
        IDMConfig(**(TINY.model_dump() | changes))


# -------------------------------------------------------------------------------------------- parts


def test_noise_level_embedding_is_sines_then_cosines_of_the_level_itself():
    got = noise_level_embedding(torch.tensor([0.0, 0.3, 1.0]), 8)
    for row, level in zip(got, [0.0, 0.3, 1.0]):
        angles = [level * 10_000 ** (-k / 4) for k in range(4)]
        torch.testing.assert_close(
            row, torch.tensor([*map(math.sin, angles), *map(math.cos, angles)])
        )


def test_blur_spreads_an_impulse_and_keeps_the_size():
    x = torch.zeros(1, 1, 5, 4)
    x[..., 2, 1] = 25
    want = torch.zeros(5, 4)
    want[1:4, :3] = torch.tensor([[1.0, 3.0, 1.0], [3.0, 9.0, 3.0], [1.0, 3.0, 1.0]])
    torch.testing.assert_close(Blur()(x)[0, 0], want)


def test_attention_is_softmax_over_all_positions_plus_the_input():
    torch.manual_seed(0)
    attention = Attention(8, 4)
    x = torch.randn(2, 8, 3, 5)
    q, k, v = attention.qkv(attention.norm(x)).flatten(2).chunk(3, 1)
    mixed = v @ (q.mT @ k / math.sqrt(8)).softmax(-1).mT
    torch.testing.assert_close(attention(x), x + attention.out(mixed.unflatten(2, (3, 5))), **CLOSE)


@pytest.mark.parametrize("fine, coarse", [(8, 4), (7, 4), (9, 5), (5, 3), (10, 4), (3, 3), (1, 1)])
def test_nearest_cell_is_the_nearest_and_the_offset_leads_back(fine, coarse):
    index, offset = nearest(fine, coarse, torch.device("cpu"))
    for i in range(fine):
        centre = (i + 0.5) / fine  # of a length of 1
        distances = [abs(centre - (j + 0.5) / coarse) for j in range(coarse)]
        assert distances[index[i]] <= min(distances) + 1e-12
        assert (index[i].item() + 0.5 + offset[i].item() / 2) / coarse == pytest.approx(
            centre, abs=1e-6
        )


def decode(decoder: ImplicitDecoder, x: Tensor, size: tuple[int, int]) -> Tensor:
    shares = torch.full((1, x.shape[1]), 0.8), torch.full((1, x.shape[1]), 0.6)
    return decoder(x, x.flip(1), shares, size)


@pytest.mark.parametrize(
    "coarse, size", [((4, 3), (8, 6)), ((3, 5), (5, 9)), ((2, 3), (7, 3)), ((3, 2), (6, 4))]
)
def test_decoder_is_its_mlp_on_the_nearest_feature_and_the_offset_to_it(coarse, size):
    torch.manual_seed(0)
    decoder = ImplicitDecoder(6)
    x = torch.randn(2, 6, *coarse)
    got = decode(decoder, x, size)
    mixed = decoder.style.activate(0.8 * x + 0.6 * x.flip(1))
    assert got.shape == (2, 6, *size)
    for i in range(size[0]):
        for j in range(size[1]):
            # in coarse cells
            position = [
                (i + 0.5) * coarse[0] / size[0] - 0.5,
                (j + 0.5) * coarse[1] / size[1] - 0.5,
            ]
            cell = [math.floor(p + 0.5) for p in position]
            offset = torch.tensor([2 * (p - c) for p, c in zip(position, cell)]).expand(2, 2)
            want = decoder.imnet(torch.cat([mixed[:, :, cell[0], cell[1]], offset], 1))
            torch.testing.assert_close(got[:, :, i, j], want, **CLOSE)


def test_decoded_rectangle_is_its_part_of_the_decoded_square():
    decoder = ImplicitDecoder(6)
    x = torch.randn(1, 6, 5, 5)
    whole = decode(decoder, x, (10, 10))
    torch.testing.assert_close(decode(decoder, x[..., 1:4, :], (6, 10)), whole[..., 2:8, :])
    torch.testing.assert_close(decode(decoder, x[..., 2:], (10, 6)), whole[..., 4:])


def test_proportions_of_the_two_features_matter_only_by_their_ratio():
    decoder = ImplicitDecoder(6)
    x, lr_features = torch.randn(2, 1, 6, 4, 4)
    s1, s2 = torch.tensor([[0.3]]).expand(1, 6), torch.tensor([[-0.7]]).expand(1, 6)
    torch.testing.assert_close(
        decoder(x, lr_features, (s1, s2), (8, 8)),
        decoder(x, lr_features, (5 * s1, 5 * s2), (8, 8)),
        **CLOSE,
    )


# --------------------------------------------------------------------------------- sizes and scales


def transposed(network: torch.nn.Module) -> torch.nn.Module:
    """The network that treats rows as this one treats columns."""
    network = copy.deepcopy(network)
    for name, parameter in network.named_parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.mT.contiguous()
        if name.endswith("imnet.0.weight"):
            parameter.data = torch.cat([parameter.data[:, :-2], parameter.data[:, -2:].flip(1)], 1)
    return network


@pytest.mark.parametrize(
    "size, lr_size", [((16, 8), (4, 2)), ((15, 10), (6, 4)), ((7, 18), (3, 7)), ((1, 5), (1, 2))]
)
def test_rows_and_columns_are_treated_alike(size, lr_size):
    network = tiny()
    z_t, t, cond = inputs(size, lr_size)
    got = predict(network, z_t, t, cond)
    assert got.shape == z_t.shape
    torch.testing.assert_close(predict(transposed(network), z_t.mT, t, cond.mT).mT, got, **CLOSE)
    if size[0] > 1:
        # the law above is not one of any network
        assert (predict(network, z_t.mT, t, cond.mT).mT - got).abs().max() > 1e-2


def at_position(network, z_t, t, cond, position):
    """The output where the position is given, not taken from the sizes."""
    _, picture, *levels = network.prepare(cond, z_t.shape[-2:])
    return network.unet(z_t, network.embed(t), picture, levels, position)


@pytest.mark.parametrize(
    "size, lr_size, position",
    [((10, 10), (4, 4), 0.5), ((15, 10), (6, 4), 0.5), ((8, 8), (8, 8), 0.0)],
)
def test_position_follows_from_the_scale(size, lr_size, position):
    network = tiny()
    torch.testing.assert_close(
        predict(network, *inputs(size, lr_size)),
        at_position(network, *inputs(size, lr_size), torch.tensor([position])),
    )
    assert (
        predict(network, *inputs(size, lr_size))
        - at_position(network, *inputs(size, lr_size), torch.tensor([position + 0.2]))
    ).abs().max() > 1e-3


def test_position_may_differ_between_the_samples_of_a_batch():
    network = tiny()
    z_t, t, cond = inputs()
    positions = torch.tensor([0.2, 0.9])
    single = torch.cat(
        [
            at_position(
                network, z_t[i : i + 1], t[i : i + 1], cond[i : i + 1], positions[i : i + 1]
            )
            for i in range(2)
        ]
    )
    torch.testing.assert_close(at_position(network, z_t, t, cond, positions), single, **CLOSE)


def test_picture_smaller_than_its_lr_picture_is_refused():
    with pytest.raises(ValueError, match="smaller than its LR picture"):
        predict(tiny(), *inputs((16, 3), (4, 4)))


# ------------------------------------------------------------------------------------ whole network


def test_output_depends_on_every_input():
    network = tiny()
    z_t, t, cond = inputs()
    base = predict(network, z_t, t, cond)
    for other in ((z_t + 0.1, t, cond), (z_t, t - 0.1, cond), (z_t, t, cond + 0.1)):
        assert (predict(network, *other) - base).abs().max() > 1e-3


def test_dropout_is_random_in_training_and_off_in_evaluation():
    network = tiny(dropout=0.5)
    assert torch.equal(predict(network, *inputs()), predict(network, *inputs()))
    network.train()
    assert not torch.equal(predict(network, *inputs()), predict(network, *inputs()))


@pytest.mark.parametrize("autocast", [False, True])
def test_channels_last_is_kept_through_the_blocks(autocast):
    network = tiny()
    z_t, t, cond = inputs((12, 10), (4, 3))
    want = predict(network, z_t, t, cond)
    network.to(memory_format=torch.channels_last)
    layouts = []
    for block in network.modules():
        if isinstance(block, (*network.repeated_blocks, Attention, Blur)):
            block.register_forward_hook(
                lambda _, __, out: layouts.append(
                    (out.is_contiguous(memory_format=torch.channels_last), out.dtype)
                )
            )
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        got = predict(
            network,
            z_t.to(memory_format=torch.channels_last),
            t,
            cond.to(memory_format=torch.channels_last),
        )
    assert layouts and set(layouts) == {(True, torch.bfloat16 if autocast else torch.float32)}
    assert got.dtype == z_t.dtype
    assert (got - want).abs().max() < (0.1 if autocast else 1e-4) * want.abs().max()


def test_network_in_16_bit_stays_near_the_one_in_32_bit():
    network = tiny()
    z_t, t, cond = inputs()
    want = predict(network, z_t, t, cond)
    got = predict(network.bfloat16(), z_t.bfloat16(), t, cond.bfloat16())
    assert got.dtype == torch.bfloat16 and (got - want).abs().max() < 0.1 * want.abs().max()


def test_bf16_autocast_trains_with_finite_gradients():
    network = tiny().train()
    with torch.autocast("cpu", torch.bfloat16):
        predict(network, *inputs()).square().mean().backward()
    assert all(
        p.grad.isfinite().all() and p.grad.dtype == torch.float32 for p in network.parameters()
    )


# -------------------------------------------------------------------------------------- compilation


@pytest.mark.parametrize("size, lr_size", [((16, 16), (4, 4)), ((15, 10), (6, 4))])
def test_whole_network_compiles_into_one_graph(size, lr_size):
    network = tiny()
    torch._dynamo.reset()
    compiled = torch.compile(network, fullgraph=True, backend="eager")
    with torch.no_grad():
        torch.testing.assert_close(
            predict(compiled, *inputs(size, lr_size)),
            predict(network, *inputs(size, lr_size)),
            **CLOSE,
        )


def test_compiled_blocks_give_the_same_output_and_names():
    network, compiled = tiny(), tiny()
    torch._dynamo.reset()
    assert compile_blocks(compiled, backend="eager") == sum(
        isinstance(m, network.repeated_blocks) for m in network.modules()
    )
    assert list(compiled.state_dict()) == list(network.state_dict())
    torch.testing.assert_close(predict(compiled, *inputs()), predict(network, *inputs()), **CLOSE)
