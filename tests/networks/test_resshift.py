"""Laws of ResShift's Swin U-Net: published shape, masks, padding, memory layout, precision,
compilation.
"""

from __future__ import annotations

import json
import math
from itertools import product
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ldm_dream.config.networks import ResShiftNetConfig
from ldm_dream.networks import build_network, compile_blocks
from ldm_dream.networks import resshift as module
from ldm_dream.networks.layers import GroupNorm, LayerNorm, timestep_embedding, zeroed
from ldm_dream.networks.resshift import BLOCKED, ResBlock, SwinLayer, WindowAttention, shift_mask
from runs import predict

LAYOUTS = Path(__file__).resolve().parents[2].parent / "shared" / "golden" / "layouts"
PUBLISHED = {  # layout -> what differs from the defaults, parameters
    "resshift_realsrx4": ({}, 118_593_583),
    "resshift_bicsrx4": ({}, 118_593_583),
    "resshift_realsrx2": ({"cond_factor": 2}, 118_640_431),
    "resshift_inpaint_imagenet": ({"cond_factor": 4, "cond_channels": 4}, 118_714_399),
    "resshift_faceir": ({"cond_factor": 8, "in_channels": 8, "out_channels": 8}, 118_931_604),
}
TINY = ResShiftNetConfig(
    image_size=8,
    model_channels=32,
    channel_mult=(1, 2),
    num_res_blocks=1,
    attention_resolutions=(8,),
    swin_embed_dim=32,
    num_head_channels=16,
    window_size=4,
    mlp_ratio=2,
)


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


def inputs(
    height: int = 8, width: int = 8, batch: int = 2, factor: int = 1
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    z_t = torch.randn(batch, 3, height, width, generator=generator)
    cond = torch.randn(batch, 3, height * factor, width * factor, generator=generator)
    return z_t, torch.arange(3, 3 + batch), cond


# -------------------------------------------------------------------------------------------- shape


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configs_have_the_published_parameters(name):
    changes, count = PUBLISHED[name]
    with torch.device("meta"):
        network = build_network(ResShiftNetConfig(**changes))
    assert sum(parameter.numel() for parameter in network.parameters()) == count


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configs_have_the_published_keys(name):
    if not LAYOUTS.is_dir():
        pytest.skip(f"{LAYOUTS} is not there")
    layout = json.loads((LAYOUTS / f"{name}.json").read_text())["state_dict"]
    want = {
        key.replace("embed.proj.", "embed."): tuple(shape)
        for key, shape in layout.items()
        if not key.endswith(("attn_mask", "relative_position_index"))
    }
    with torch.device("meta"):
        network = build_network(ResShiftNetConfig(**PUBLISHED[name][0]))
    assert {key: tuple(value.shape) for key, value in network.state_dict().items()} == want


def test_fresh_network_returns_zero_and_fresh_residual_blocks_their_skip():
    network = build_network(TINY).eval()
    assert predict(network, *inputs()).abs().max() == 0
    block = next(block for block in network.modules() if isinstance(block, ResBlock))
    x = torch.randn(1, 32, 8, 8)
    torch.testing.assert_close(
        block(x, torch.randn(1, 4 * 32)), block.skip_connection(x), rtol=0, atol=0
    )


def test_without_attention_resolutions_only_the_middle_has_a_swin_layer():
    network = tiny(attention_resolutions=())
    assert [name for name, m in network.named_modules() if isinstance(m, SwinLayer)] == [
        "middle_block.1"
    ]


def test_only_the_first_residual_block_of_a_level_has_a_swin_layer():
    network = tiny(num_res_blocks=3)
    names = [name for name, m in network.named_modules() if isinstance(m, SwinLayer)]
    assert names == ["input_blocks.1.1", "middle_block.1", "output_blocks.4.1"]


def test_window_shrinks_to_the_training_size_and_does_not_shift_there():
    attention = [m for m in tiny(window_size=16).modules() if isinstance(m, WindowAttention)]
    assert {(m.window, m.shift) for m in attention} == {(8, 0), (4, 0)}
    attention = [m for m in tiny().modules() if isinstance(m, WindowAttention)]
    assert [(m.window, m.shift) for m in attention][:2] == [(4, 0), (4, 2)]


@pytest.mark.parametrize(
    "changes, field",
    [
        ({"model_channels": 40}, "model_channels"),
        ({"swin_embed_dim": 48}, "swin_embed_dim"),
        ({"num_head_channels": 24}, "num_head_channels"),
        ({"num_res_blocks": (1, 2, 3)}, "num_res_blocks"),
        ({"image_size": 1}, "image_size"),
        ({"image_size": 3, "patch_size": 2}, "image_size"),
    ],
)
def test_a_config_that_cannot_be_built_is_refused_by_the_name_of_its_field(changes, field):
    with pytest.raises(ValueError, match=field):
        ResShiftNetConfig(**(TINY.model_dump() | changes))


# -------------------------------------------------------------------------------------------- parts


@pytest.mark.parametrize("width", [8, 9])
def test_timestep_embedding_is_cosines_then_sines(width):
    t = torch.tensor([0, 7, 1999])
    got = timestep_embedding(t, width)
    for row, step in enumerate(t.tolist()):
        angles = [step * 10_000 ** (-i / 4) for i in range(4)]
        want = [math.cos(a) for a in angles] + [math.sin(a) for a in angles] + [0.0] * (width - 8)
        torch.testing.assert_close(got[row], torch.tensor(want), atol=2e-4, rtol=0)


@pytest.mark.parametrize("shift", [0, 2])
def test_window_attention_is_that_of_swin_in_timm(shift):
    """Bias, its index, the shift and its mask (as Swin has it, not `legacy_mask`), in float64."""
    swin = pytest.importorskip("timm.models.swin_transformer")
    torch.manual_seed(0)
    theirs = swin.SwinTransformerBlock(32, (12, 8), num_heads=2, window_size=4, shift_size=shift)
    theirs = theirs.double().eval()
    for parameter in theirs.attn.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    theirs.norm1 = torch.nn.Identity()
    zeroed(theirs.mlp.fc2)  # what is left of the block is x + attention(x)
    ours = WindowAttention(32, 2, 4, shift, legacy_mask=False).double()
    ours.load_state_dict(theirs.attn.state_dict())
    x = torch.randn(2, 12, 8, 32, dtype=torch.float64)
    got = ours(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    torch.testing.assert_close(got, theirs(x) - x, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "height, width, window, shift", [(8, 8, 4, 2), (12, 8, 4, 2), (4, 12, 4, 2), (10, 15, 5, 2)]
)
def test_the_shift_mask_blocks_the_pairs_that_the_roll_made(height, width, window, shift):
    """Shift mask blocks exactly the pairs that the roll brought together."""
    mask = shift_mask(height, width, window, shift, False, torch.device("cpu"), torch.float32)
    tokens = list(product(range(window), range(window)))
    for n, (row, column) in enumerate(product(range(0, height, window), range(0, width, window))):
        # where a token was before the roll
        origin = [((row + y + shift) % height, (column + x + shift) % width) for y, x in tokens]
        for i, j in product(range(len(tokens)), repeat=2):
            moved_together = all(
                origin[i][d] - origin[j][d] == tokens[i][d] - tokens[j][d] for d in (0, 1)
            )
            assert mask[n, 0, i, j] == (0 if moved_together else BLOCKED), (n, i, j)


@pytest.mark.parametrize(
    "height, width, window, shift", [(8, 8, 4, 2), (8, 12, 4, 2), (10, 5, 5, 2)]
)
def test_legacy_mask_parts_the_last_row_of_windows_by_column(height, width, window, shift):
    mask = shift_mask(height, width, window, shift, True, torch.device("cpu"), torch.float32)
    rows, columns = height // window, width // window
    for n, i, j in product(range(rows * columns), range(window**2), range(window**2)):
        parted = (i % window >= window - shift) != (j % window >= window - shift)
        assert mask[n, 0, i, j] == (BLOCKED if parted and n >= (rows - 1) * columns else 0)


def test_window_attention_is_softmax_with_a_bias_of_relative_position():
    torch.manual_seed(0)
    heads, w, c = 2, 3, 8
    attention = WindowAttention(c, heads, w, 0, False).double()
    torch.nn.init.normal_(attention.relative_position_bias_table)
    x = torch.randn(1, c, w, w, dtype=torch.float64)
    tokens = x.flatten(2)[0].T
    q, k, v = attention.qkv(tokens).chunk(3, 1)
    positions = list(product(range(w), range(w)))
    out = torch.empty(w * w, c, dtype=torch.float64)
    for head in range(heads):
        part = slice(head * c // heads, (head + 1) * c // heads)
        logits = q[:, part] @ k[:, part].T / (c // heads) ** 0.5
        for (i, (yi, xi)), (j, (yj, xj)) in product(enumerate(positions), repeat=2):
            row = (yi - yj + w - 1) * (2 * w - 1) + xi - xj + w - 1
            logits[i, j] = logits[i, j] + attention.relative_position_bias_table[row, head]
        out[:, part] = logits.softmax(1) @ v[:, part]
    torch.testing.assert_close(attention(x)[0].flatten(1).T, attention.proj(out))


def test_correctly_masked_shifted_attention_does_not_see_across_the_border():
    attention = WindowAttention(8, 1, 4, 2, False)
    x = torch.randn(1, 8, 8, 8)
    changed = x.clone()
    changed[..., -1, -1] += 1.0  # its rolled window also holds the other three corners
    difference = (attention(changed) - attention(x)).abs().amax((0, 1)) > 1e-6
    assert difference[-2:, -2:].all() and difference.sum() == 4


def test_legacy_mask_changes_the_output():
    network, legacy = tiny(), tiny(legacy_mask=True)
    legacy.load_state_dict(network.state_dict())
    assert (predict(network, *inputs()) - predict(legacy, *inputs())).abs().max() > 1e-3


@pytest.mark.parametrize("norm", [GroupNorm(64), LayerNorm(64)])
def test_norm_statistics_of_16_bit_features_are_taken_in_fp32(norm):
    x = (torch.randn(2, 64, 6, 5) + 30).bfloat16()
    want = norm.double()(x.double())
    got = norm.bfloat16()(x)
    # half a unit in the last place of bfloat16 at 2 to 4
    assert (got.double() - want).abs().max() < 2**-7


@pytest.mark.parametrize("norm", [GroupNorm(64), LayerNorm(64)])
def test_norms_return_the_memory_layout_of_channels_last_input(norm):
    x = torch.randn(2, 64, 6, 5).to(memory_format=torch.channels_last)
    assert norm(x).is_contiguous(memory_format=torch.channels_last)
    want = norm(x.contiguous())
    torch.testing.assert_close(norm(x), want, rtol=1e-5, atol=1e-5)


# ------------------------------------------------------------------------------------ whole network


@pytest.mark.parametrize(
    "height, width, mode",
    [(9, 14, "reflect"), (8, 5, "reflect"), (1, 8, "replicate"), (1, 1, "replicate")],
)
def test_any_size_equals_the_padded_picture_cropped(height, width, mode):
    network = tiny(cond_factor=2)
    z_t, t, cond = inputs(height, width, factor=2)
    down, right = -height % network.multiple, -width % network.multiple
    padded = (
        F.pad(z_t, (0, right, 0, down), mode=mode),
        t,
        F.pad(cond, (0, 2 * right, 0, 2 * down), mode=mode),
    )
    got = predict(network, z_t, t, cond)
    assert got.shape == z_t.shape
    torch.testing.assert_close(got, predict(network, *padded)[..., :height, :width], rtol=0, atol=0)


def test_patches_are_folded_into_channels_at_any_size():
    network = tiny(patch_size=2, image_size=16)
    z_t, t, cond = inputs(13, 16)
    folded = tiny(in_channels=12, out_channels=12, cond_channels=12)
    # folding changes nothing but the channels at both ends
    folded.load_state_dict(network.state_dict())
    padded_z, padded_cond = (F.pad(x, (0, 0, 0, 3), mode="reflect") for x in (z_t, cond))
    both = F.pixel_unshuffle(torch.cat([padded_z, padded_cond], 1), 2)
    want = F.pixel_shuffle(predict(folded, both[:, :12], t, both[:, 12:]), 2)[..., :13, :]
    assert network.multiple == 2 * folded.multiple
    torch.testing.assert_close(predict(network, z_t, t, cond), want, rtol=0, atol=0)


def test_sizes_that_fit_are_not_padded(monkeypatch):
    padded = []
    original = F.pad
    monkeypatch.setattr(
        module.F,
        "pad",
        lambda x, *args, **kwargs: padded.append(x.ndim) or original(x, *args, **kwargs),
    )
    predict(tiny(), *inputs(16, 8))
    assert 4 not in padded
    predict(tiny(), *inputs(15, 8))
    assert 4 in padded


def test_padding_multiple_is_that_of_the_levels_with_one_halving_more():
    assert (tiny().multiple, tiny().align) == (4, 8)
    with torch.device("meta"):
        published = build_network(ResShiftNetConfig())
    assert (published.multiple, published.align) == (16, 64)


@pytest.mark.parametrize(
    "height, width, mode", [(9, 14, "reflect"), (4, 6, "reflect"), (1, 2, "replicate")]
)
def test_attention_alone_sees_whole_windows(height, width, mode):
    layer = next(m for m in tiny().modules() if isinstance(m, SwinLayer))
    x = torch.randn(2, 32, height, width)
    padded = F.pad(layer.patch_embed(x), (0, -width % 4, 0, -height % 4), mode=mode)
    seen = layer.blocks[1](layer.blocks[0](padded))[..., :height, :width]
    torch.testing.assert_close(layer(x), layer.patch_unembed(seen), rtol=0, atol=0)


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


def test_gradients_reach_every_parameter():
    network = tiny(cond_factor=2)
    predict(network, *inputs(factor=2)).square().mean().backward()
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
    with pytest.raises(ValueError, match=r"\(8, 4\); this z_t wants \(8, 8\)"):
        predict(tiny(), z_t, t, cond[..., :4])


def test_dropout_is_random_in_training_and_off_in_evaluation():
    network = tiny(dropout=0.5)
    assert torch.equal(predict(network, *inputs()), predict(network, *inputs()))
    network.train()
    assert not torch.equal(predict(network, *inputs()), predict(network, *inputs()))


def test_layer_norm_needs_no_32_groups():
    network = tiny(norm="layer", model_channels=20, swin_embed_dim=24, num_head_channels=8)
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
        if isinstance(block, (*network.repeated_blocks, SwinLayer)):
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


def test_bf16_autocast_trains_with_finite_gradients():
    network = tiny().train()
    with torch.autocast("cpu", torch.bfloat16):
        predict(network, *inputs()).square().mean().backward()
    assert all(
        p.grad.isfinite().all() and p.grad.dtype == torch.float32 for p in network.parameters()
    )


def test_masks_first_built_in_inference_mode_can_be_used_in_training():
    module._cached.cache_clear()
    network = tiny()
    with torch.inference_mode():
        predict(network, *inputs())
    predict(network, *inputs()).mean().backward()


def test_masks_are_built_once_a_size():
    network = tiny()
    predict(network, *inputs())
    misses = module._cached.cache_info().misses
    predict(network, *inputs(batch=5))
    assert module._cached.cache_info().misses == misses


# -------------------------------------------------------------------------------------- compilation


def test_whole_network_compiles_into_one_graph_padding_included():
    network = tiny()
    torch._dynamo.reset()
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(
            predict(compiled, *inputs(7)), predict(network, *inputs(7)), rtol=1e-4, atol=1e-5
        )


def test_compiled_blocks_give_the_same_output_gradients_and_names():
    network, compiled = tiny(), tiny()
    torch._dynamo.reset()
    blocks = sum(isinstance(m, network.repeated_blocks) for m in network.modules())
    assert compile_blocks(compiled, backend="aot_eager") == blocks
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


@torch.no_grad()
def test_attention_in_bf16_without_gradient_errs_by_a_few_roundings():
    """On a CPU by matrix products: logits up to 8 rounded to 8 bits shift a weight by 2^-6 at most."""
    q, k, v = torch.randn(3, 8, 2, 64, 32).bfloat16()
    for windows in (1, 8):
        bias = torch.randn(windows, 2, 64, 64).bfloat16()
        want = F.scaled_dot_product_attention(
            q.float(), k.float(), v.float(), attn_mask=bias.float()
        )
        with torch.autocast("cpu", torch.bfloat16):
            got = module._attention(q, k, v, bias)
        assert got.dtype == torch.bfloat16 and got.shape == want.shape
        assert (got - want).abs().max() < 2**-6 * v.abs().max()
