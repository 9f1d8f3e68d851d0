"""Laws of the noise schedule that a published checkpoint carries as buffers."""

from __future__ import annotations

import pytest
import torch

from ldm_dream.config.networks import IDMConfig, LDMConfig, SR3Config
from ldm_dream.config.process import DDPMConfig
from ldm_dream.interchange.published import CheckpointImportError, published_run
from ldm_dream.interchange.schedule import read_schedule
from ldm_dream.schedules import betas_of
from published_systems import COSINE, LDM_SCHEDULE, schedule_buffers


@pytest.mark.parametrize(
    "schedule",
    [
        (2000, 1e-6, 1e-2, "linear"),
        (1000, 1e-4, 2e-2, "linear"),
        LDM_SCHEDULE,
        (50, 0.3, 0.3, "linear"),
        (2, 0.5, 0.5, "linear"),
        (200, 1e-6, 1e-2, "warmup10"),
        (200, 1e-6, 1e-2, "warmup50"),
    ],
)
def test_the_schedule_is_read_from_the_buffers_of_the_file(schedule):
    buffers = schedule_buffers(*schedule)
    config = read_schedule(buffers, "x")
    assert (config.num_timesteps, config.beta_start, config.beta_end, config.schedule) == schedule
    assert config == read_schedule({"betas": buffers["betas"]}, "x")
    assert read_schedule({"denoise_fn.downs.0.weight": torch.zeros(1)}, "x") is None


@pytest.mark.parametrize(
    "betas, schedule", [(COSINE, "cosine"), (1 / torch.arange(500.0, 0, -1), "jsd")]
)
def test_a_schedule_without_ends_is_read_by_its_name(betas, schedule):
    config = read_schedule({"betas": betas}, "x")
    assert config == DDPMConfig(num_timesteps=len(betas), schedule=schedule)
    torch.testing.assert_close(betas_of(len(betas), 0.0, 0.0, schedule).float(), betas.float())


BENT = torch.cat([torch.linspace(1e-6, 1e-2, 300), torch.full((1700,), 1e-2)])
NONE = "is none of linear, sqrt_linear, warmup10, warmup50, const, jsd, cosine"
OTHER = schedule_buffers(100, 1e-4, 2e-2)


@pytest.mark.parametrize(
    "state, text",
    [
        ({"betas": torch.linspace(-1e-4, 1e-2, 10)}, NONE),
        ({"betas": BENT}, rf"\(2000 steps, betas 1e-06 to 0.01\) {NONE}"),
        ({"betas": torch.full((1,), 0.5)}, "none that a model here can have"),
        ({"betas": torch.zeros(10)}, rf"\(10 steps, betas 0 to 0\) {NONE}"),
        ({"betas": torch.full((10,), torch.nan)}, NONE),
        ({"alphas_cumprod": torch.full((10,), 0.5)}, "alphas_cumprod without a list of betas"),
        ({"betas": torch.zeros(0)}, "without a list of betas"),
        (OTHER | {"alphas_cumprod": torch.full((100,), 0.5)}, "is not that of its alphas_cumprod"),
        (OTHER | {"alphas_cumprod": torch.full((99,), 0.5)}, "is not that of its alphas_cumprod"),
    ],
)
def test_a_schedule_that_no_config_can_say_is_refused_in_one_sentence(state, text):
    with pytest.raises(CheckpointImportError, match=text) as error:
        read_schedule(state, "x.pth")
    assert str(error.value).startswith("x.pth: ") and "\n" not in str(error.value)


@pytest.mark.parametrize("config", [SR3Config(), IDMConfig(), LDMConfig()])
def test_the_schedule_of_the_file_goes_before_the_published_one(config):
    given = DDPMConfig(num_timesteps=300, beta_start=1e-4, beta_end=0.05)
    own = published_run(config, "x").process
    assert own.num_timesteps == (1000 if isinstance(config, LDMConfig) else 2000)
    run = published_run(config, "x", schedule=given)
    assert run.process == given.model_copy(update={"continuous": own.continuous})
