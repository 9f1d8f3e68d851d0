"""Laws of LDM-SR's checkpoint, which holds several models: the running average of the U-Net is what
it gives, its first stage comes along, and every key has its place.
"""

from __future__ import annotations

import json
import re

import pytest
import torch
from torch import Tensor

from ldm_dream.config.autoencoder import VQGANConfig
from ldm_dream.config.networks import LDMConfig
from ldm_dream.interchange.published import (
    CheckpointImportError,
    import_first_stage,
    import_state,
)
from ldm_dream.interchange.systems.ldm import split_ldm
from published_systems import (
    LDM_SCHEDULE,
    SYSTEMS,
    build,
    build_once,
    ldm_checkpoint,
    published,
    random_weights,
    refusal,
    schedule_buffers,
    size,
)
from tests.conftest import SHARED

UNET, EMA = "model.diffusion_model.", "model_ema.diffusion_model"


@pytest.fixture
def ldm() -> dict[str, Tensor]:
    return ldm_checkpoint()


def test_the_full_size_ldm_layout_is_recognised_whole():
    path = SHARED / "reference/layouts/ldm_bsr_sr.tsv"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    rows = [line.split("\t") for line in path.read_text().splitlines()]
    state = {key: torch.empty(json.loads(shape), device="meta") for key, shape, _ in rows}
    state["alphas_cumprod"] = schedule_buffers(*LDM_SCHEDULE)["alphas_cumprod"]
    config, unet = import_state(state, "model.ckpt")
    assert config == LDMConfig()
    assert (len(state), len(unet), size(unet)) == (831, 306, 113_622_563)
    config, first_stage = import_state(split_ldm(state, "model.ckpt").first_stage, "model.ckpt")
    assert config == VQGANConfig()
    assert (len(first_stage), size(first_stage)) == (205, 55_322_782)


def test_the_running_average_is_what_an_ldm_checkpoint_gives(ldm):
    config, state = import_state(ldm, "x")
    assert config == SYSTEMS["ldm"].config
    averages = random_weights(build(config), 1)
    assert state.keys() == averages.keys()
    assert all(torch.equal(state[key], value) for key, value in averages.items())


def test_without_running_averages_the_weights_are_taken_and_that_is_said(ldm, caplog):
    raw = {key: value for key, value in ldm.items() if not key.startswith("model_ema.")}
    _, state = import_state(raw, "x.ckpt")
    assert all(state[key] is ldm[f"model.diffusion_model.{key}"] for key in state)
    assert "x.ckpt has no running average" in caplog.text


def test_every_key_of_an_ldm_checkpoint_is_accounted_for(ldm, monkeypatch):
    build_once(monkeypatch)
    silent = {"betas", "alphas_cumprod", "posterior_mean_coef1"}
    silent |= {"model_ema.decay", "model_ema.num_updates"}
    for key in ldm.keys() - silent:
        broken = {name: value for name, value in ldm.items() if name != key}
        with pytest.raises(CheckpointImportError):
            parts = split_ldm(broken, "x")
            import_state(parts.network, "x")
            import_state(parts.first_stage, "x")


@pytest.mark.parametrize(
    "key, shape, text",
    [
        ("cond_stage_model.weight", (3,), r"but none of its models has cond_stage_model.weight\.$"),
        ("scale_factor", (), r"but none of its models has scale_factor\.$"),
        (f"{EMA}out9bias", (3,), f"nothing that {EMA}out9bias is the average of"),
        (f"{EMA}out2bias", (4,), f"no average of the same shape for {UNET}out.2.bias"),
        (f"{UNET}out.9.bias", (3,), f"no average of the same shape for {UNET}out.9.bias"),
    ],
)
def test_what_does_not_belong_into_an_ldm_checkpoint_is_named(ldm, key, shape, text):
    assert re.search(text, refusal({**ldm, key: torch.full(shape, 0.5)}))


def test_a_key_missing_in_unet_and_average_is_named(ldm):
    del ldm["model.diffusion_model.out.2.bias"], ldm["model_ema.diffusion_modelout2bias"]
    assert "looks like LDM-SR U-Net, but of its 128 keys: 1 missing (out.2.bias)" in refusal(ldm)


def test_a_misshapen_first_stage_is_named_as_such(ldm):
    ldm["first_stage_model.decoder.conv_out.bias"] = torch.zeros(4)
    text = r"first_stage_model: looks like VQGAN.*decoder.conv_out.bias \[4\]"
    with pytest.raises(CheckpointImportError, match=text):
        import_first_stage(ldm, "model.ckpt")


def test_a_file_of_one_model_has_no_first_stage():
    assert import_first_stage(published(SYSTEMS["resshift"]), "x.pth") is None
