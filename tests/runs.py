"""Runs small enough for a test: pictures, an autoencoder folder, configs."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ldm_dream.config.autoencoder import VQGANConfig
from ldm_dream.config.networks import ResShiftNetConfig
from ldm_dream.config.process import ResidualShiftConfig
from ldm_dream.config.run import AutoencoderRun, DiffusionRun
from ldm_dream.data.images import Image, write_image
from ldm_dream.denoiser import Denoiser, Inputs, sent
from ldm_dream.model_folder import save_model
from ldm_dream.networks import build_network
from ldm_dream.networks.vqgan import VQGAN
from ldm_dream.process import Numbers, wide

VQGAN_TINY = VQGANConfig(
    ch=8,
    ch_mult=(1, 1, 2),
    num_res_blocks=1,
    mid_attention=False,
    norm="none",
    z_channels=4,
    embed_dim=4,
    n_embed=16,
    codebook_groups=2,
)
NETWORK_TINY = {
    "kind": "resshift", "image_size": 8, "in_channels": 4, "out_channels": 4, "cond_channels": 7, "model_channels": 16,
    "channel_mult": (1, 2), "num_res_blocks": 1, "attention_resolutions": (), "swin_embed_dim": 16, "num_head_channels": 8,
    "window_size": 4, "norm": "layer", "dropout": 0.1,
}  # fmt: skip


def pictures(folder: Path, count: int = 5, side: int = 48) -> Path:
    """Smooth random pictures as PNG."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    for i in range(count):
        coarse = torch.from_numpy(random.random((1, 3, 6, 6)))
        smooth = torch.nn.functional.interpolate(
            coarse, size=(side, side + 4 * i), mode="bicubic"
        ).clamp(0, 1)
        write_image(
            folder / f"{i}.png", Image((smooth[0].permute(1, 2, 0).numpy() * 255).astype(np.uint8))
        )
    return folder


def autoencoder_folder(folder: Path) -> Path:
    torch.manual_seed(0)
    run = AutoencoderRun(task="autoencoder", autoencoder=VQGAN_TINY)
    save_model(folder, run, VQGAN(VQGAN_TINY).state_dict(), "a card")
    return folder


def pixel_model(folder: Path) -> Path:
    """A x2 model in pixel space, a few thousand random weights."""
    network = ResShiftNetConfig(
        image_size=8,
        model_channels=8,
        channel_mult=(1,),
        num_res_blocks=1,
        attention_resolutions=(),
        swin_embed_dim=8,
        num_head_channels=8,
        window_size=4,
        norm="layer",
    )
    run = DiffusionRun(scale=2, process=ResidualShiftConfig(num_timesteps=2), network=network)
    save_model(folder, run, build_network(run.network).state_dict(), card="for tests")
    return folder


def diffusion_run(tmp: Path, **train) -> DiffusionRun:
    """A run on pictures and an autoencoder that are made in `tmp`."""
    return DiffusionRun(
        task="diffusion",
        autoencoder=VQGANConfig(pretrained=str(autoencoder_folder(tmp / "vq"))),
        network=NETWORK_TINY,
        process={"kind": "residual_shift", "num_timesteps": 4, "kappa": 1.0},
        condition=("lr", "z_lr"),
        loss={"strength": 1.0},
        data={"train": (str(pictures(tmp / "hr")),), "val": (str(tmp / "hr"),), "patch": 32},
        train={
            "steps": 6,
            "batch_size": 2,
            "precision": "fp32",
            "log_every": 1,
            "val_every": 100,
            "val_images": 1,
            "save_every": 3,
            "workers": 0,
        }
        | train,
    )


def rows_of(run_dir: Path) -> list[dict]:
    """What a run has logged, a row each time."""
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


class PlainDenoiser(Denoiser):
    """A function of (z_t, t, cond) as the loss and the samplers meet it: t is the index in the
    process, z_t is not scaled, cond is the one feature of its inputs.
    """

    def __init__(self, function: Callable[..., Tensor], process, prediction: str):
        network = function if isinstance(function, nn.Module) else nn.Identity()
        super().__init__(network, process, (), prediction, call=function)

    def numbers(self, t: Tensor, z: Tensor) -> Numbers:
        at = self.process.at(t, wide(z.dtype))
        return Numbers(sent(at.rows, z.device))

    def at(self, t: Tensor, inputs: Inputs) -> Inputs:
        return replace(inputs, at=self.numbers(t, inputs.z_lr))

    def __call__(self, z_t: Tensor, t: Tensor, inputs: Inputs) -> Tensor:
        return self.call(z_t, t, *inputs.features)


def said(prediction: str, z0: Tensor, eps: Tensor, z_lr: Tensor, at: Numbers) -> Tensor:
    """What a network says of a known z0 and eps."""
    return {
        "eps": eps,
        "z0": z0,
        "v": at.a * eps - at.s * z0,
        "residual": z_lr - z0,
        "eps_scale": at.s * eps,
        "flow": eps - z0,
    }[prediction]


def predict(network: nn.Module, z_t: Tensor, t: Tensor, cond: Tensor) -> Tensor:
    """A network's output at t as it is told (timestep or noise level), from its condition."""
    return network(z_t, network.embed(t), *network.prepare(cond, z_t.shape[-2:]))
