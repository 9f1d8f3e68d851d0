"""SR3's U-Net: published size, any input size, one graph, memory layout, its orthogonal start."""

import pytest
import torch

from ldm_dream.config.networks import SR3Config
from ldm_dream.networks import build_network, compile_blocks
from runs import predict

TINY = SR3Config(
    image_size=16,
    model_channels=8,
    channel_mult=(1, 2, 2),
    num_res_blocks=1,
    attention_resolutions=(8,),
    norm_groups=4,
    dropout=0.1,
)


def inputs(
    height: int = 16, width: int = 16, batch: int = 2
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    z_t, cond = torch.randn(2, batch, 3, height, width, generator=generator)
    return z_t, torch.rand(batch, generator=generator), cond


@pytest.fixture
def model():
    torch.manual_seed(0)
    return build_network(TINY).eval()


@pytest.mark.parametrize(
    ("cfg", "parameters"),
    [
        (SR3Config(), 97_807_491),
        (
            SR3Config(
                image_size=512,
                channel_mult=(1, 2, 4, 8, 16),
                num_res_blocks=1,
                attention_resolutions=(),
                norm_groups=16,
            ),
            155_334_339,
        ),
        (SR3Config(cond_channels=0), 97_805_763),
    ],
)
def test_published_configs_have_the_published_parameter_counts(cfg, parameters):
    with torch.device("meta"):
        assert sum(p.numel() for p in build_network(cfg).parameters()) == parameters


@pytest.mark.parametrize(("height", "width"), [(16, 16), (12, 20), (50, 70), (5, 1)])
def test_any_size_comes_back_as_it_was(model, height, width):
    z_t, level, cond = inputs(height, width)
    with torch.no_grad():
        assert predict(model, z_t, level, cond).shape == z_t.shape


def test_a_sample_does_not_depend_on_its_neighbours(model):
    z_t, level, cond = inputs()
    with torch.no_grad():
        torch.testing.assert_close(
            predict(model, z_t, level, cond)[:1], predict(model, z_t[:1], level[:1], cond[:1])
        )


def test_the_noise_level_and_the_condition_matter(model):
    z_t, level, cond = inputs()
    with torch.no_grad():
        out = predict(model, z_t, level, cond)
        assert not torch.allclose(out, predict(model, z_t, 1 - level, cond))
        assert not torch.allclose(out, predict(model, z_t, level, cond.flip(0)))


def test_channels_last_stays_and_changes_nothing(model):
    z_t, level, cond = inputs()
    seen = []
    model.mid[1].register_forward_hook(
        lambda _, args, out: seen.append(out.is_contiguous(memory_format=torch.channels_last))
    )
    with torch.no_grad():
        want = predict(model, z_t, level, cond)
        last = model.to(memory_format=torch.channels_last)
        z_t, cond = (x.to(memory_format=torch.channels_last) for x in (z_t, cond))
        got = predict(last, z_t, level, cond)
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    assert seen[-1]


def test_the_whole_network_and_its_blocks_compile_to_one_graph(model):
    z_t, level, cond = inputs()
    with torch.no_grad():
        want = predict(model, z_t, level, cond)
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        torch.testing.assert_close(predict(compiled, z_t, level, cond), want)
        assert compile_blocks(model, backend="eager") == 11
        torch.testing.assert_close(predict(model, z_t, level, cond), want)


def test_training_begins_with_orthogonal_weights(model):
    weight = model.downs[1].conv1.weight.flatten(1)
    torch.testing.assert_close(weight @ weight.T, torch.eye(len(weight)), atol=1e-5, rtol=1e-5)
    assert model.downs[1].conv1.bias.abs().max() == 0


@pytest.mark.parametrize(
    ("changes", "says"),
    [({"norm_groups": 3}, "norm_groups=3"), ({"image_size": 2}, "image_size=2")],
)
def test_what_cannot_be_built_is_one_sentence(changes, says):
    with pytest.raises(ValueError, match=says):
        SR3Config(**(TINY.model_dump() | changes))
