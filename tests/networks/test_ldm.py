"""Laws of LDM-SR's U-Net: published shape, attention, padding, memory layout, precision,
compilation.

That it computes what the published network computes is held by tests/interchange/test_diffusers_names.py,
against diffusers.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ldm_dream.config.networks import LDMConfig
from ldm_dream.networks import build_network, compile_blocks
from ldm_dream.networks.ldm import Attention, ResBlock
from runs import predict

LAYOUT = (
    Path(__file__).resolve().parents[2].parent
    / "shared"
    / "reference"
    / "layouts"
    / "ldm_bsr_sr.tsv"
)
TINY = LDMConfig(
    image_size=8,
    model_channels=32,
    channel_mult=(1, 2, 2),
    num_res_blocks=1,
    attention_resolutions=(4,),
    num_head_channels=16,
)
BLOCKS = (ResBlock, Attention)


def tiny(**changes) -> torch.nn.Module:
    """A tiny network whose every parameter is random: the zero-initialised layers would hide what
    is before them.
    """
    torch.manual_seed(0)
    network = build_network(TINY.model_copy(update=changes)).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(
            parameter, std=0.1 if parameter.ndim == 1 else parameter[0].numel() ** -0.5
        )
    return network


def inputs(height: int = 8, width: int = 8, batch: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    z_t, cond = torch.randn(2, batch, 3, height, width, generator=generator)
    return z_t, torch.arange(3, 3 + batch), cond


# -------------------------------------------------------------------------------------------- shape


def test_published_config_has_the_published_parameters():
    with torch.device("meta"):
        network = build_network(LDMConfig())
    assert sum(parameter.numel() for parameter in network.parameters()) == 113_622_563


def test_published_config_has_the_published_keys():
    if not LAYOUT.is_file():
        pytest.skip(f"{LAYOUT} is not there")
    rows = [line.split("\t") for line in LAYOUT.read_text().splitlines()]
    prefix = "model.diffusion_model."
    want = {
        key.removeprefix(prefix): [int(side) for side in shape.strip("[]").split(",")]
        for key, shape, _ in rows
        if key.startswith(prefix)
    }
    with torch.device("meta"):
        network = build_network(LDMConfig())
    assert len(want) == 306
    assert {key: list(value.shape) for key, value in network.state_dict().items()} == want


def test_fresh_network_returns_zero_and_fresh_blocks_their_skip():
    network = build_network(TINY).eval()
    assert predict(network, *inputs()).abs().max() == 0
    x = torch.randn(1, 64, 4, 4)
    for block in (ResBlock(TINY, 64, 32), Attention(TINY, 64)):
        want = block.skip_connection(x) if isinstance(block, ResBlock) else x
        got = block(x, torch.randn(1, 128)) if isinstance(block, ResBlock) else block(x)
        torch.testing.assert_close(got, want, rtol=0, atol=0)


def test_attention_stands_at_the_named_sizes_and_in_the_middle():
    """Attention follows every block of the named sizes and stands in the middle."""
    names = [name for name, m in tiny(num_res_blocks=2).named_modules() if isinstance(m, Attention)]
    assert names == [
        "input_blocks.4.1",
        "input_blocks.5.1",
        "middle_block.1",
        *(f"output_blocks.{i}.1" for i in (3, 4, 5)),
    ]
    assert [
        n for n, m in tiny(attention_resolutions=()).named_modules() if isinstance(m, Attention)
    ] == ["middle_block.1"]


@pytest.mark.parametrize(
    "changes, field",
    [
        ({"model_channels": 40}, "model_channels"),
        ({"num_head_channels": 24}, "num_head_channels"),
        ({"attention_resolutions": (8,), "num_head_channels": 64}, "num_head_channels"),
        ({"image_size": 3}, "image_size"),
        ({"channel_mult": ()}, "channel_mult"),
        ({"channel_mult": (1, 0)}, "channel_mult"),
    ],
)
def test_a_config_that_cannot_be_built_is_refused_by_the_name_of_its_field(changes, field):
    with pytest.raises(ValueError, match=field):
        LDMConfig(**(TINY.model_dump() | changes))


# -------------------------------------------------------------------------------------------- parts


def test_attention_is_softmax_over_all_positions_head_by_head():
    torch.manual_seed(0)
    c, heads, d = 32, 2, 16
    attention = Attention(TINY, c).double()
    torch.nn.init.normal_(attention.proj_out.weight)
    x = torch.randn(1, c, 3, 5, dtype=torch.float64)
    qkv = attention.qkv(attention.norm(x).flatten(2))[0]  # [3C,N], by the published Conv1d itself
    out = []
    for head in range(heads):
        q, k, v = qkv[3 * d * head : 3 * d * (head + 1)].split(d)
        out.append(v @ ((q.T @ k) / d**0.5).softmax(1).T)
    want = x + attention.proj_out(torch.cat(out)[None]).reshape(x.shape)
    torch.testing.assert_close(attention(x), want)


def test_a_residual_block_adds_the_timestep_without_scaling():
    block = ResBlock(TINY, 32, 32)
    block.out_layers = torch.nn.Identity()
    x, emb = torch.randn(2, 32, 4, 4), torch.randn(2, 128)
    shift = block.emb_layers(emb)[:, :, None, None]
    torch.testing.assert_close(block(x, emb), x + block.in_layers(x) + shift)


# ------------------------------------------------------------------------------------ whole network


@pytest.mark.parametrize(
    "height, width, mode",
    [(9, 14, "reflect"), (8, 5, "reflect"), (1, 8, "replicate"), (1, 1, "replicate")],
)
def test_any_size_equals_the_padded_picture_cropped(height, width, mode):
    network = tiny()
    z_t, t, cond = inputs(height, width)
    padding = (0, -width % 4, 0, -height % 4)
    padded = F.pad(z_t, padding, mode=mode), t, F.pad(cond, padding, mode=mode)
    got = predict(network, z_t, t, cond)
    assert got.shape == z_t.shape
    torch.testing.assert_close(got, predict(network, *padded)[..., :height, :width], rtol=0, atol=0)


def test_padding_multiple_is_that_of_the_levels():
    with torch.device("meta"):
        assert build_network(LDMConfig()).multiple == 8


def test_samples_of_a_batch_do_not_mix():
    network = tiny()
    z_t, t, cond = inputs(batch=3)
    single = torch.cat(
        [predict(network, z_t[i : i + 1], t[i : i + 1], cond[i : i + 1]) for i in range(3)]
    )
    torch.testing.assert_close(predict(network, z_t, t, cond), single, rtol=1e-5, atol=1e-5)


def test_output_depends_on_every_input():
    network = tiny()
    z_t, t, cond = inputs()
    base = predict(network, z_t, t, cond)
    for other in ((z_t + 0.1, t, cond), (z_t, t + 50, cond), (z_t, t, cond + 0.1)):
        assert (predict(network, *other) - base).abs().max() > 1e-3


def test_latent_comes_before_condition():
    network = tiny()
    z_t, t, cond = inputs()
    network.input_blocks[0][0].weight.data[:, :3] = 0
    assert torch.equal(predict(network, z_t, t, cond), predict(network, z_t + 1, t, cond))


def test_gradients_reach_every_parameter():
    network = tiny()
    predict(network, *inputs()).square().mean().backward()
    assert [
        name
        for name, p in network.named_parameters()
        if p.grad is None or not p.grad.abs().max() > 0
    ] == []


def test_network_without_condition_takes_an_empty_one():
    network = tiny(cond_channels=0)
    z_t, t, cond = inputs(7, 8)
    assert predict(network, z_t, t, cond[:, :0]).shape == z_t.shape


def test_condition_of_another_size_is_refused():
    z_t, t, cond = inputs()
    with pytest.raises(ValueError, match=r"the condition is \(8, 4\); this z_t wants \(8, 8\)"):
        predict(tiny(), z_t, t, cond[..., :4])


def test_dropout_is_random_in_training_and_off_in_evaluation():
    network = tiny(dropout=0.5)
    assert torch.equal(predict(network, *inputs()), predict(network, *inputs()))
    network.train()
    assert not torch.equal(predict(network, *inputs()), predict(network, *inputs()))


def test_layer_norm_needs_no_32_groups():
    network = tiny(norm="layer", model_channels=24, num_head_channels=8)
    assert predict(network, *inputs()).isfinite().all()


@pytest.mark.parametrize("norm", ["group", "layer"])
@pytest.mark.parametrize("autocast", [False, True])
def test_channels_last_is_kept_through_the_blocks(norm, autocast):
    network = tiny(norm=norm)
    z_t, t, cond = inputs()
    want = predict(network, z_t, t, cond)
    network.to(memory_format=torch.channels_last)
    layouts = []
    for block in network.modules():
        if isinstance(block, BLOCKS):
            block.register_forward_hook(
                lambda _, __, out: layouts.append(
                    (out.is_contiguous(memory_format=torch.channels_last), out.dtype)
                )
            )
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        got = predict(network, z_t.to(memory_format=torch.channels_last), t, cond)
    assert layouts and set(layouts) == {(True, torch.bfloat16 if autocast else torch.float32)}
    assert got.dtype == z_t.dtype
    assert (got - want).abs().max() < (0.1 if autocast else 1e-4) * want.abs().max()


def test_tokens_of_channels_last_features_are_a_view(monkeypatch):
    seen = []
    original = F.linear
    monkeypatch.setattr(
        F,
        "linear",
        lambda tokens, *rest: seen.append(tokens.is_contiguous()) or original(tokens, *rest),
    )
    Attention(TINY, 64)(torch.randn(2, 64, 4, 6).to(memory_format=torch.channels_last))
    assert seen == [True, True]


def test_bf16_autocast_trains_with_finite_gradients():
    network = tiny().train()
    with torch.autocast("cpu", torch.bfloat16):
        predict(network, *inputs()).square().mean().backward()
    assert all(
        p.grad.isfinite().all() and p.grad.dtype == torch.float32 for p in network.parameters()
    )


# -------------------------------------------------------------------------------------- compilation


def test_whole_network_compiles_into_one_graph_padding_included():
    network = tiny()
    torch._dynamo.reset()
    compiled = torch.compile(network, fullgraph=True, backend="eager")
    with torch.no_grad():
        torch.testing.assert_close(
            predict(compiled, *inputs(7)), predict(network, *inputs(7)), rtol=1e-4, atol=1e-5
        )


def test_compiled_blocks_give_the_same_output_gradients_and_names():
    network, compiled = tiny(), tiny()
    torch._dynamo.reset()
    assert compile_blocks(compiled, backend="eager") == sum(
        isinstance(m, BLOCKS) for m in network.modules()
    )
    assert list(compiled.state_dict()) == list(network.state_dict())
    for net in (network, compiled):
        predict(net, *inputs()).square().mean().backward()
    torch.testing.assert_close(
        predict(compiled, *inputs()), predict(network, *inputs()), rtol=1e-4, atol=1e-5
    )
    for (name, p), (_, q) in zip(network.named_parameters(), compiled.named_parameters()):
        torch.testing.assert_close(
            p.grad, q.grad, rtol=1e-3, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )
