"""What is exported gives the same picture in diffusers; what it has no class for keeps our form."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ldm_dream.config.autoencoder import VQGANConfig
from ldm_dream.config.files import load_config
from ldm_dream.config.networks import LDMConfig, ResShiftNetConfig, SR3Config
from ldm_dream.config.process import DDPMConfig, FlowConfig, ResidualShiftConfig, Sampling
from ldm_dream.config.run import DiffusionRun
from ldm_dream.denoiser import Denoiser
from ldm_dream.interchange.diffusers import export_diffusers
from ldm_dream.model_folder import LoadedModel
from ldm_dream.networks import build_network
from ldm_dream.networks.autoencoders import build_autoencoder
from ldm_dream.networks.vqgan import VQGAN
from ldm_dream.process import build_process
from ldm_dream.sampler import gaussian, plan, sample
from runs import predict


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
        process=DDPMConfig(
            num_timesteps=1000, beta_start=0.0015, beta_end=0.0155, schedule="sqrt_linear"
        ),
        prediction="eps",
        condition=("lr",),
        sampler={"kind": "ddim"},
    )
    network, autoencoder = build_network(run.network), VQGAN(run.autoencoder)
    for parameter in (*network.parameters(), *autoencoder.parameters()):
        torch.nn.init.normal_(
            parameter, std=0.3 if parameter.ndim == 1 else parameter[0].numel() ** -0.5
        )
    return LoadedModel(run, network.eval(), autoencoder.eval(), build_process(run.process), None)


def test_the_pipeline_of_diffusers_gives_the_same_picture(model, tmp_path):
    diffusers = pytest.importorskip("diffusers", reason="diffusers (extra `dev`) is not installed")
    export_diffusers(model, tmp_path / "pipeline")
    # its parts, as the pipeline runs them: the pipeline's own class wants transformers too
    folder = str(tmp_path / "pipeline")
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
        denoiser = Denoiser(model.network, model.process, model.run.condition, "eps")
        sampling = Sampling(kind="ddim", steps=(750, 500, 250, 0))
        z0 = sample(denoiser, denoiser.prepare(lr, noise), sampling, lambda k: noise)
        ours = model.autoencoder.decode(z0)
    assert theirs.std() > 0.1
    torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=1e-4)
    index = json.loads((tmp_path / "pipeline" / "model_index.json").read_text())
    assert index["_class_name"] == "LDMSuperResolutionPipeline" and set(index) > {
        "unet",
        "vqvae",
        "scheduler",
    }


def weights(folder: Path) -> tuple[dict, dict]:
    config = json.loads((folder / "config.json").read_text())
    return config, load_file(folder / "diffusion_pytorch_model.safetensors")


def test_of_a_resshift_model_diffusers_has_the_autoencoder(model, tmp_path):
    """Of a resshift model diffusers has the autoencoder and the network is ours."""
    diffusers = pytest.importorskip("diffusers", reason="diffusers (extra `dev`) is not installed")
    network = ResShiftNetConfig(
        image_size=16,
        model_channels=32,
        channel_mult=(1, 2),
        num_res_blocks=1,
        swin_embed_dim=32,
        attention_resolutions=(16,),
    )
    run = model.run.model_copy(
        update={"network": network, "process": ResidualShiftConfig(), "prediction": "z0"}
    )
    model = model._replace(
        run=run, network=build_network(network), process=build_process(run.process)
    )
    parts = export_diffusers(model, tmp_path / "parts")
    assert [(part.folder, part.kind) for part in parts] == [
        ("network", "ResShiftNet"),
        ("vqvae", "VQModel"),
    ]
    assert sorted(path.name for path in (tmp_path / "parts").iterdir()) == [
        "SHA256SUMS",
        "network",
        "run.yaml",
        "vqvae",
    ]

    config, state = weights(tmp_path / "parts/network")
    rebuilt = build_network(
        ResShiftNetConfig(
            **{key: value for key, value in config.items() if not key.startswith("_")}
        )
    )
    rebuilt.load_state_dict(state, strict=True)
    assert (
        config["_class_name"] == "ResShiftNet"
        and rebuilt.state_dict().keys() == model.network.state_dict().keys()
    )
    assert all(torch.equal(value, model.network.state_dict()[key]) for key, value in state.items())
    vqvae = diffusers.VQModel.from_pretrained(str(tmp_path / "parts"), subfolder="vqvae").eval()
    latents = torch.randn(1, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(
            vqvae.decode(latents).sample, model.autoencoder.decode(latents), atol=2e-4, rtol=1e-4
        )
    assert load_config(tmp_path / "parts/run.yaml").process == ResidualShiftConfig()


def test_of_an_sr3_model_the_scheduler_samples_as_we_do(model, tmp_path):
    diffusers = pytest.importorskip("diffusers", reason="diffusers (extra `dev`) is not installed")
    torch.manual_seed(0)
    run = DiffusionRun(
        network=SR3Config(model_channels=32, channel_mult=(1, 2), num_res_blocks=1),
        process=DDPMConfig(num_timesteps=20, beta_start=1e-3, beta_end=0.3),
        prediction="eps",
        condition=("z_lr",),
        sampler={"kind": "ancestral"},
    )
    network = build_network(run.network).eval()
    model = LoadedModel(
        run, network, build_autoencoder(run.autoencoder), build_process(run.process), None
    )
    assert [part.folder for part in export_diffusers(model, tmp_path / "parts")] == [
        "network",
        "scheduler",
    ]
    scheduler = diffusers.DDPMScheduler.from_pretrained(
        str(tmp_path / "parts"), subfolder="scheduler"
    )
    scheduler.set_timesteps(6)
    z_lr, generator = torch.rand(1, 3, 16, 16) * 2 - 1, torch.Generator().manual_seed(1)
    theirs = torch.randn(z_lr.shape, generator=generator)
    with torch.no_grad():
        for t in scheduler.timesteps:
            level = scheduler.alphas_cumprod[t].sqrt()[None]
            output = predict(network, theirs, level, z_lr)
            theirs = scheduler.step(output, t, theirs, generator=generator).prev_sample
        generator.manual_seed(1)
        denoiser = Denoiser(network, model.process, ("z_lr",), "eps")
        inputs, noise = denoiser.prepare(z_lr, z_lr), gaussian(z_lr, generator)
        ours = sample(denoiser, inputs, Sampling(kind="ancestral", steps=6), noise, clip=1.0)
    assert theirs.std() > 0.1
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("schedule", ["cosine", "warmup10", "const"])
@pytest.mark.parametrize("spacing, offset", [("trailing", 0), ("leading", 1)])
def test_the_scheduler_says_schedule_spacing_and_end(model, schedule, spacing, offset, tmp_path):
    diffusers = pytest.importorskip("diffusers", reason="diffusers (extra `dev`) is not installed")
    process = DDPMConfig(num_timesteps=200, schedule=schedule)
    sampling = Sampling(kind="ddim", steps=8, spacing=spacing, steps_offset=offset, end="first")
    run = model.run.model_copy(update={"process": process, "sampler": sampling})
    made = model._replace(run=run, process=build_process(process))
    export_diffusers(made, tmp_path / "parts")
    folder = str(tmp_path / "parts")
    scheduler = diffusers.DDIMScheduler.from_pretrained(folder, subfolder="scheduler")
    abar = made.process.a(torch.arange(200), torch.float64).flatten() ** 2
    torch.testing.assert_close(scheduler.alphas_cumprod.double(), abar, rtol=1e-4, atol=1e-7)
    scheduler.set_timesteps(8)
    assert scheduler.timesteps.tolist() == plan(made.process, sampling)
    assert scheduler.final_alpha_cumprod == scheduler.alphas_cumprod[0]


def test_what_diffusers_cannot_express_keeps_our_form_and_says_why(model, tmp_path):
    vqgan = VQGANConfig(ch=32, ch_mult=(1, 1, 1), num_res_blocks=1, n_embed=64, norm="none")
    run = model.run.model_copy(update={"process": FlowConfig(), "autoencoder": vqgan})
    parts = export_diffusers(
        model._replace(run=run, autoencoder=build_autoencoder(vqgan)), tmp_path / "parts"
    )
    assert [(part.folder, part.kind) for part in parts] == [
        ("unet", "UNet2DModel"),
        ("autoencoder", "VQGAN"),
    ]
    assert "cannot express autoencoder.norm=none" in parts[1].why
    config, state = weights(tmp_path / "parts/autoencoder")
    rebuilt = build_autoencoder(
        VQGANConfig(**{key: value for key, value in config.items() if not key.startswith("_")})
    )
    rebuilt.load_state_dict(state, strict=True)
    assert (
        not (tmp_path / "parts/scheduler").exists()
        and not (tmp_path / "parts/model_index.json").exists()
    )


def test_the_tool_names_each_part(tmp_path, monkeypatch, capsys):
    tool = Path(__file__).resolve().parents[2] / "tools/export_diffusers.py"
    monkeypatch.setattr(
        sys, "argv", [str(tool), "dream-latent-x4-tiny", "-o", str(tmp_path / "parts")]
    )
    runpy.run_path(str(tool), run_name="__main__")
    network, autoencoder, end = capsys.readouterr().out.splitlines()
    assert network.endswith("ldm_dream's ResShiftNet: diffusers has no network of kind resshift.")
    assert "cannot express autoencoder.norm=none" in autoencoder and "run.yaml" in end
