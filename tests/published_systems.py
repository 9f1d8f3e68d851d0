"""Every system that can be imported, small, as its authors would publish it: for the tests of the
importer and of its tool.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from ldm_dream.config.autoencoder import TAESDConfig, VQGANConfig
from ldm_dream.config.networks import IDMConfig, LDMConfig, ResShiftNetConfig, SR3Config
from ldm_dream.config.process import DDPMConfig
from ldm_dream.interchange import published as importer
from ldm_dream.interchange.checkpoint_file import read_checkpoint
from ldm_dream.interchange.published import CheckpointImportError, import_state
from ldm_dream.interchange.system import Config, PublishedSystem
from ldm_dream.interchange.systems import IDM, LDM, RESSHIFT, SR3, TAESD, VQGAN
from ldm_dream.networks.resshift import SwinBlock, relative_position_index, shift_mask
from ldm_dream.schedules import abar_of, betas_of

CPU = torch.device("cpu")
SR3_SCHEDULE = (300, 1e-4, 0.05, "linear")
LDM_SCHEDULE = (1000, 0.0015, 0.0155, "sqrt_linear")
FIELDS = ("num_timesteps", "beta_start", "beta_end", "schedule")
SR3_PROCESS = DDPMConfig(**dict(zip(FIELDS, SR3_SCHEDULE)))
LDM_PROCESS = DDPMConfig(**dict(zip(FIELDS, LDM_SCHEDULE)))
TIME = (torch.linspace(0, 1, 1001, dtype=torch.float64) + 0.008) / 1.008
ABAR = torch.cos(TIME * torch.pi / 2) ** 2
COSINE = (1 - ABAR[1:] / ABAR[:-1]).clamp(max=0.999)  # betas


def swin_buffers(cfg: ResShiftNetConfig, network: nn.Module) -> dict[str, Tensor]:
    """What the official attention saves along: follows from the sizes."""
    buffers = {}
    for name, block in network.named_modules():
        if isinstance(block, SwinBlock):
            w, s = block.attn.window, block.attn.shift
            index = relative_position_index(w, CPU).reshape(w * w, w * w)
            buffers[f"{name}.attn.relative_position_index"] = index
            if s:
                layer = network.get_submodule(name.rsplit(".", 2)[0])
                level = cfg.channel_mult.index(layer.patch_embed.in_channels // 32)
                size = cfg.image_size >> level
                mask = shift_mask(size, size, w, s, False, CPU, torch.float32)
                buffers[f"{name}.attn_mask"] = mask[:, 0]
    return buffers


def idm_unused(cfg: IDMConfig, network: nn.Module) -> dict[str, Tensor]:
    """Some of each kind of tensor that the published class has without use."""
    keys = ["posterior_mean_coef2", "sqrt_recipm1_alphas_cumprod"]
    keys += ["imnet.layers.0.weight", "encoder.sub_mean.bias", "denoise_fn.final_down1.0.weight"]
    keys += ["denoise_fn.condition_shift.0.0.bias", "denoise_fn.ups.2.style.weight"]
    keys += [f"denoise_fn.conv_body_down.{len(cfg.channel_mult) - 1}.1.weight"]
    return schedule_buffers(*SR3_SCHEDULE) | dict.fromkeys(keys, torch.zeros(1))


def schedule_buffers(*schedule) -> dict[str, Tensor]:
    return {
        "betas": betas_of(*schedule).float(),
        "alphas_cumprod": abar_of(*schedule).float(),
    }


class System(NamedTuple):
    """A small network as its authors would publish it."""

    layout: PublishedSystem
    config: Config
    variants: tuple[dict[str, Any], ...]  # changes of the config that the shapes must tell
    places: dict[str, str]  # published key -> ours
    missing: tuple[str, ...]  # keys whose absence is told by this name
    extra: tuple[str, ...]  # keys that its network does not have
    vector: str  # a key of one dimension
    terms: str  # of its licence
    # what is saved along, and carries nothing, of a config and its network
    along: Callable[[Any, nn.Module], dict[str, Tensor]] = lambda cfg, network: {}


SYSTEMS = {
    "resshift": System(
        layout=RESSHIFT,
        config=ResShiftNetConfig(
            image_size=16,
            model_channels=32,
            channel_mult=(1, 2),
            num_res_blocks=(2, 1),
            attention_resolutions=(16, 8),
            swin_embed_dim=32,
            num_head_channels=16,
            window_size=4,
            mlp_ratio=2,
            cond_factor=2,
            legacy_mask=True,
        ),
        variants=(
            {},
            {"cond_factor": 1, "num_res_blocks": 2},
            {"window_size": 8},  # no shift at the deepest level
            {"window_size": 32},  # no shift, hence no mask anywhere
            {"swin_depth": 1},
            {"attention_resolutions": (8,)},
            {"attention_resolutions": ()},
            {"channel_mult": (2, 4), "mlp_ratio": 1.5, "num_head_channels": 8},
        ),
        places={"input_blocks.1.1.patch_embed.proj.weight": "input_blocks.1.1.patch_embed.weight"},
        missing=(
            "time_embed.0.weight",
            "input_blocks.0.0.bias",
            "input_blocks.2.0.in_layers.2.weight",
            "input_blocks.1.1.patch_embed.proj.weight",
            "middle_block.1.blocks.1.norm2.bias",
            "output_blocks.3.0.skip_connection.weight",
            "feature_extractor.2.op.bias",
            "out.2.weight",
        ),
        extra=("output_blocks.3.0.in_layers.7.weight",),
        vector="middle_block.1.patch_unembed.proj.bias",
        terms="S-Lab License 1.0 (non-commercial)",
        along=swin_buffers,
    ),
    "sr3": System(
        layout=SR3,
        config=SR3Config(
            image_size=32,
            model_channels=32,
            channel_mult=(1, 2),
            num_res_blocks=1,
            attention_resolutions=(16,),
        ),
        variants=(
            {},
            {"image_size": 64, "channel_mult": (1, 2, 3), "num_res_blocks": 2},
            {"image_size": 128, "attention_resolutions": ()},
            {"in_channels": 4, "out_channels": 4, "cond_channels": 1},
        ),
        places={"denoise_fn.mid.0.attn.qkv.weight": "mid.0.attn.qkv.weight"},
        missing=(
            "denoise_fn.downs.1.res_block.block1.block.3.weight",
            "denoise_fn.noise_level_mlp.3.bias",
            "denoise_fn.final_conv.block.0.bias",
        ),
        extra=("denoise_fn.final_conv.block.4.bias",),
        vector="denoise_fn.ups.0.res_block.res_conv.bias",
        terms="SR3: Apache-2.0; DREAM: MIT",
        along=lambda cfg, network: schedule_buffers(*SR3_SCHEDULE),
    ),
    "idm": System(
        layout=IDM,
        config=IDMConfig(
            model_channels=32,
            channel_mult=(1, 2, 2),
            num_res_blocks=1,
            attention_resolutions=(64,),
            encoder_blocks=2,
            encoder_channels=8,
        ),
        variants=(
            {},
            {"channel_mult": (1, 2, 2, 4), "num_res_blocks": 2, "attention_resolutions": (128, 16)},
            {"attention_resolutions": (), "encoder_blocks": 3, "encoder_channels": 5},
            {"in_channels": 4, "out_channels": 2, "cond_channels": 1},
        ),
        places={"denoise_fn.ups.2.imnet.0.weight": "unet.ups.2.imnet.0.weight"},
        missing=(
            "denoise_fn.condition_shift.1.0.bias",
            "denoise_fn.conv_body_down.1.2.bias",
            "encoder.tail.0.weight",
        ),
        extra=("denoise_fn.final_conv.block.4.bias", "gammas"),
        vector="encoder.tail.0.bias",
        terms="none given, so all rights are the authors'",
        along=idm_unused,
    ),
    "ldm": System(  # its U-Net; `ldm_checkpoint` is the file around it
        layout=LDM,
        config=LDMConfig(
            model_channels=32, channel_mult=(1, 2), num_res_blocks=1, attention_resolutions=(32,)
        ),
        variants=(
            {},
            {"num_res_blocks": 2, "attention_resolutions": ()},
            {"channel_mult": (1, 2, 3), "attention_resolutions": (64, 16)},
            {"in_channels": 4, "out_channels": 4, "cond_channels": 7},
        ),
        places={"middle_block.1.qkv.weight": "middle_block.1.qkv.weight"},
        missing=("time_embed.0.weight", "out.2.bias", "input_blocks.1.0.in_layers.2.weight"),
        extra=("out.9.bias",),
        vector="out.2.bias",
        terms="MIT",
    ),
    "vqgan": System(
        layout=VQGAN,
        config=VQGANConfig(ch=32, ch_mult=(1, 2), num_res_blocks=1, n_embed=16),
        variants=(
            {},
            {"num_res_blocks": (2, 1), "z_channels": 4, "embed_dim": 5},
            {"ch_mult": (1, 1, 2), "attn_resolutions": (128, 64)},
            {"mid_attention": False},
        ),
        places={"decoder.mid.attn_1.q.weight": "decoder.mid.attn_1.q.weight"},
        missing=("encoder.conv_in.weight", "decoder.conv_out.bias", "quant_conv.weight"),
        extra=("model_ema.decay",),
        vector="decoder.conv_out.bias",
        terms="LDM, taming: MIT; ResShift: S-Lab License 1.0",
        along=lambda cfg, network: {
            "loss.logvar": torch.zeros(()),
            "loss.discriminator.main.0.weight": torch.zeros(4, 3, 4, 4),
        },
    ),
    "taesd": System(
        layout=TAESD,
        config=TAESDConfig(),
        variants=({}, {"latent_channels": 4, "group_norm_branch": False}),
        places={"encoder.1.conv.0.weight": "encoder.1.conv.0.weight"},
        missing=("encoder.14.weight", "decoder.1.bias", "encoder.3.conv.2.weight"),
        extra=("decoder.30.bias",),
        vector="decoder.1.bias",
        terms="MIT",
    ),
}
DIFFUSION = ("resshift", "sr3", "idm", "ldm")


def build(cfg: Config) -> nn.Module:
    """Without memory."""
    layout = next(system.layout for system in SYSTEMS.values() if type(system.config) is type(cfg))
    with torch.device("meta"):
        return layout.build(cfg)


def random_weights(module: nn.Module, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {key: value.shape for key, value in module.state_dict().items()}
    return {key: torch.randn(shape, generator=generator) for key, shape in shapes.items()}


def published(system: System, **changes) -> dict[str, Tensor]:
    """State dict under the published names, with what is saved along."""
    cfg = system.config.model_copy(update=changes)
    network = build(cfg)
    state = random_weights(network)
    return {system.layout.published(k): v for k, v in state.items()} | system.along(cfg, network)


def ldm_checkpoint() -> dict[str, Tensor]:
    """The state dict of latent-diffusion's `model.ckpt`, at tiny sizes: U-Net, its average, first
    stage, tables.
    """
    network = build(SYSTEMS["ldm"].config)
    weights, averages = random_weights(network, 0), random_weights(network, 1)
    first_stage = random_weights(build(SYSTEMS["vqgan"].config), 2)
    return {
        **schedule_buffers(*LDM_SCHEDULE),
        "posterior_mean_coef1": torch.zeros(1000),
        **{f"model.diffusion_model.{key}": value for key, value in weights.items()},
        "model_ema.decay": torch.tensor(0.9999),
        "model_ema.num_updates": torch.tensor(3, dtype=torch.int32),
        **{f"model_ema.diffusion_model{k.replace('.', '')}": v for k, v in averages.items()},
        **{f"first_stage_model.{key}": value for key, value in first_stage.items()},
    }


def save_halves(state: dict[str, Tensor], folder: Path) -> Path:
    """As TAESD is published: two files, whose keys begin with numbers. -> the encoder's."""
    for half in ("encoder", "decoder"):
        part = {k.removeprefix(f"{half}."): v for k, v in state.items() if k.startswith(half)}
        torch.save(part, folder / f"taef2_{half}.pth")
    return folder / "taef2_encoder.pth"


def load_published(path: str | Path) -> tuple[Config, dict[str, Tensor]]:
    """A published file as the import tool reads it."""
    return import_state(read_checkpoint(Path(path)), str(path))


def size(state: dict[str, Tensor]) -> int:
    return sum(value.numel() for value in state.values())


def refusal(state: dict[str, Tensor]) -> str:
    """The one line that says why `state` is not imported."""
    with pytest.raises(CheckpointImportError) as error:
        import_state(state, "x.pth")
    assert "\n" not in str(error.value)
    return str(error.value)


def build_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The importer builds the same network once, for a test that imports a hundred times."""
    cached = [dataclasses.replace(row, build=cache(row.build)) for row in importer.SYSTEMS]
    monkeypatch.setattr(importer, "SYSTEMS", tuple(cached))
