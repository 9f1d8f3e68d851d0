"""The exported pipeline gives the same picture in diffusers; what it has no part for is refused."""

import json

import pytest
import torch

from ldm_dream.autoencoder import VQGAN
from ldm_dream.checkpoint import LoadedModel
from ldm_dream.condition import build_cond
from ldm_dream.config import DiffusionRun
from ldm_dream.config_models import DDPMConfig, FlowConfig, LDMConfig, VQGANConfig
from ldm_dream.diffusers_names import DiffusersError
from ldm_dream.export import export_diffusers
from ldm_dream.networks import build_network
from ldm_dream.process import build_process
from ldm_dream.sampler import sample


@pytest.fixture
def model() -> LoadedModel:
    torch.manual_seed(0)
    run = DiffusionRun(
        autoencoder=VQGANConfig(ch=32, ch_mult=(1, 1, 1), num_res_blocks=1, n_embed=64),
        network=LDMConfig(
            image_size=32,
            model_channels=32,
            channel_mult=(1, 2),
            num_res_blocks=1,
            attention_resolutions=(16,),
            num_head_channels=32,
        ),
        process=DDPMConfig(num_timesteps=1000, beta_start=0.0015, beta_end=0.0155, schedule="sqrt_linear"),
        prediction="eps",
        condition=("lr",),
        sampler={"kind": "ddim"},
    )
    network, autoencoder = build_network(run.network), VQGAN(run.autoencoder)
    for parameter in (*network.parameters(), *autoencoder.parameters()):
        torch.nn.init.normal_(parameter, std=0.3 if parameter.ndim == 1 else parameter[0].numel() ** -0.5)
    return LoadedModel(run, network.eval(), autoencoder.eval(), build_process(run.process), None)


def test_the_pipeline_of_diffusers_gives_the_same_picture(model, tmp_path):
    diffusers = pytest.importorskip("diffusers", reason="diffusers (extra `dev`) is not installed")
    export_diffusers(model, tmp_path / "pipeline")
    folder = str(tmp_path / "pipeline")  # its parts, as the pipeline runs them: the pipeline's own class wants transformers too
    unet = diffusers.UNet2DModel.from_pretrained(folder, subfolder="unet").eval()
    vqvae = diffusers.VQModel.from_pretrained(folder, subfolder="vqvae").eval()
    scheduler = diffusers.DDIMScheduler.from_pretrained(folder, subfolder="scheduler")
    scheduler.set_timesteps(4)
    lr = torch.rand(1, 3, 32, 64) * 2 - 1
    noise = torch.randn(1, 3, 32, 64)
    latents = noise * scheduler.init_noise_sigma
    with torch.no_grad():
        for t in scheduler.timesteps:
            output = unet(torch.cat([latents, lr], 1), t).sample
            latents = scheduler.step(output, t, latents, eta=0.0).prev_sample
        theirs = vqvae.decode(latents).sample

    with torch.no_grad():
        z0 = sample(
            model.network, model.process, noise, build_cond(model.run, lr, noise), prediction="eps", kind="ddim",
            steps=[750, 500, 250, 0], noise=lambda k: noise,
        )  # fmt: skip
        ours = model.autoencoder.decode(z0)
    assert theirs.std() > 0.1
    torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=1e-4)
    index = json.loads((tmp_path / "pipeline" / "model_index.json").read_text())
    assert index["_class_name"] == "LDMSuperResolutionPipeline" and set(index) > {"unet", "vqvae", "scheduler"}


def test_what_diffusers_has_no_part_for_is_refused_and_nothing_is_written(model, tmp_path):
    flow = model._replace(run=model.run.model_copy(update={"process": FlowConfig()}))
    with pytest.raises(DiffusersError, match="not for ldm, flow and vqgan"):
        export_diffusers(flow, tmp_path / "pipeline")
    assert not list(tmp_path.iterdir())
