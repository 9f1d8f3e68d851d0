"""Laws of the importer: published layouts are recognised from their shapes, and nothing is read
that does not fit exactly.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ldm_dream.config.files import load_config
from ldm_dream.config.model import DDPMConfig, VQGANConfig
from ldm_dream.config.networks import IDMConfig, LDMConfig, ResShiftNetConfig, SR3Config
from ldm_dream.interchange.layouts import IDM, SR3, idm_config
from ldm_dream.interchange.ldm import split_ldm
from ldm_dream.interchange.published import (
    CheckpointImportError,
    import_state,
    load_first_stage,
    load_published,
    published_card,
    published_run,
)
from ldm_dream.interchange.schedule import read_schedule
from ldm_dream.model_folder import load_model
from ldm_dream.networks import build_network
from ldm_dream.networks.autoencoders import build_autoencoder
from ldm_dream.networks.resshift import SwinBlock, relative_position_index, shift_mask
from ldm_dream.process import linear_abar, linear_betas

ROOT = Path(__file__).resolve().parents[2]
LAYOUTS = ROOT.parent / "shared" / "golden" / "layouts"
TINY = ResShiftNetConfig(
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
)
TINY_LDM = LDMConfig(
    model_channels=32, channel_mult=(1, 2), num_res_blocks=1, attention_resolutions=(32,)
)
TINY_VQGAN = VQGANConfig(ch=32, ch_mult=(1, 2), num_res_blocks=1, n_embed=16)


def published_unet(cfg: ResShiftNetConfig) -> dict[str, Tensor]:
    """State dict of a ResShift U-Net with the key names and the buffers that the official class
    saves.
    """
    network = build_network(cfg)
    state = {
        re.sub(r"(patch_(?:un)?embed)\.", r"\1.proj.", key): value
        for key, value in network.state_dict().items()
    }
    for name, block in network.named_modules():
        if isinstance(block, SwinBlock):
            w, s, size = block.attn.window, block.attn.shift, cfg.image_size
            state[f"{name}.attn.relative_position_index"] = relative_position_index(
                w, torch.device("cpu")
            ).reshape(w * w, w * w)
            if s:
                level = cfg.channel_mult.index(
                    network.get_submodule(name.rsplit(".", 2)[0]).patch_embed.in_channels // 32
                )
                mask = shift_mask(
                    size >> level, size >> level, w, s, False, torch.device("cpu"), torch.float32
                )
                state[f"{name}.attn_mask"] = mask[:, 0]
    return state


@pytest.fixture
def unet() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return published_unet(TINY)


@pytest.fixture
def unet_file(tmp_path, unet) -> Path:
    torch.save(unet, tmp_path / "resshift_realsrx4_s4_v3.pth")
    return tmp_path / "resshift_realsrx4_s4_v3.pth"


# ------------------------------------------------------------------------------------------ layouts


def layout(name: str) -> dict:
    if not LAYOUTS.is_dir():
        pytest.skip(f"{LAYOUTS} is not there")
    return json.loads((LAYOUTS / f"{name}.json").read_text())


def tensors(entry: dict) -> dict[str, Tensor]:
    return {key: torch.empty(shape, device="meta") for key, shape in entry["state_dict"].items()}


@pytest.mark.parametrize("name", ["realsrx4", "bicsrx4", "realsrx2", "inpaint_imagenet", "faceir"])
def test_full_size_resshift_layouts_are_recognised_whole(name):
    entry = layout(f"resshift_{name}")
    config, state = import_state(tensors(entry), name)
    model = entry["config"]["model"]
    assert config == ResShiftNetConfig(
        in_channels=model["in_channels"],
        out_channels=model["out_channels"],
        cond_channels=3 + model.get("cond_mask", False),
        cond_factor=model["lq_size"] // model["image_size"],
        legacy_mask=True,
    )
    assert sum(value.numel() for value in state.values()) == entry["n_params"]
    buffers = [
        key for key in entry["state_dict"] if key.endswith(("attn_mask", "relative_position_index"))
    ]
    assert len(buffers) == 24 and len(state) == len(entry["state_dict"]) - 24


@pytest.mark.parametrize(
    "name, parameters",
    [
        ("resshift_autoencoder_vq_f4", 55_322_782),
        ("ldm_vq_f4", 55_322_782),
        ("resshift_faceir_vq_f8", 77_009_115),
        ("taming_vqgan_imagenet_f16_16384", 76_073_859),
    ],
)
def test_full_size_vqgan_layouts_are_recognised_whole(name, parameters):
    entry = layout(name)
    config, state = import_state(tensors(entry), name)
    ddconfig = entry["config"]["ddconfig"]
    blocks = ddconfig["num_res_blocks"]
    assert (config.ch, list(config.ch_mult), config.z_channels) == (
        ddconfig["ch"],
        ddconfig["ch_mult"],
        ddconfig["z_channels"],
    )
    assert config.num_res_blocks == (tuple(blocks) if isinstance(blocks, list) else blocks)
    assert (config.embed_dim, config.n_embed) == (
        entry["config"]["embed_dim"],
        entry["config"]["n_embed"],
    )
    assert [
        size * ddconfig["resolution"] // config.resolution for size in config.attn_resolutions
    ] == ddconfig["attn_resolutions"]
    assert sum(value.numel() for value in state.values()) == parameters
    assert set(state) == {key for key in entry["state_dict"] if not key.startswith("loss.")}


@pytest.mark.parametrize("name", ["sr3_16_128", "sr3_64_512"])
def test_full_size_sr3_layouts_are_recognised_whole(name):
    entry = layout(name)
    config, state = import_state(tensors(entry), name)
    published = entry["config"]
    assert (
        config.model_channels == published["inner_channel"]
        and config.num_res_blocks == published["res_blocks"]
    )
    assert (
        list(config.channel_mult) == published["channel_mults"]
        and config.norm_groups == published["norm_groups"]
    )
    assert list(config.attention_resolutions) == published["attn_res"]
    assert sum(value.numel() for value in state.values()) == entry["n_params"]
    assert len(state) == len(entry["state_dict"]) - 12
    run = published_run(config, f"{name}_gen.pth")
    assert (run.scale, run.prediction, run.process.num_timesteps) == (8, "eps", 2000)


def test_an_sr3_without_condition_is_refused():
    config = SR3Config(cond_channels=0)
    with pytest.raises(CheckpointImportError, match="no low-resolution picture"):
        published_run(config, "I1560000_E91_gen.pth")


def test_full_size_idm_layout_is_recognised_whole_without_what_never_reaches_the_output():
    entry = layout("idm_16_128")
    published = tensors(entry)
    config, state = import_state(published, "idm")
    assert config == IDMConfig()
    dropped = IDM.dropped(published)
    buffers = {key for key in dropped if "." not in key}
    assert (len(buffers), len(dropped - buffers)) == (13, 46)
    ours = sum(value.numel() for value in state.values())
    assert (
        ours + sum(published[key].numel() for key in dropped - buffers)
        == entry["n_params"]
        == 116_590_885
    )


def test_a_layout_that_is_not_known_is_refused_with_the_known_ones():
    state = {
        key.replace("middle_block.", "another."): value
        for key, value in published_unet(TINY).items()
    }
    with pytest.raises(CheckpointImportError, match="unknown layout.*ResShift U-Net; IDM; SR3"):
        import_state(state, "x")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"cond_factor": 1, "num_res_blocks": 2},
        {"window_size": 8},  # no shift at the deepest level
        {"window_size": 32},  # no shift, hence no mask anywhere
        {"swin_depth": 1},
        {"attention_resolutions": (8,)},
        {"attention_resolutions": ()},
        {"channel_mult": (2, 4), "mlp_ratio": 1.5, "num_head_channels": 8},
    ],
)
def test_the_config_is_read_off_the_shapes(changes):
    cfg = TINY.model_copy(update=changes)
    config, state = import_state(published_unet(cfg), "x")
    rebuilt, network = build_network(config), build_network(cfg)
    attention = [
        [
            (m.attn.window, m.attn.shift, m.attn.heads)
            for m in net.modules()
            if isinstance(m, SwinBlock)
        ]
        for net in (rebuilt, network)
    ]
    assert attention[0] == attention[1]
    rebuilt.load_state_dict(state, strict=True)
    if cfg.window_size < cfg.image_size and cfg.swin_depth > 1 and cfg.attention_resolutions:
        assert config == cfg


TINY_IDM = IDMConfig(
    model_channels=8,
    channel_mult=(1, 2, 2),
    num_res_blocks=1,
    attention_resolutions=(64,),
    norm_groups=4,
    encoder_blocks=2,
    encoder_channels=8,
)


def published_idm(cfg: IDMConfig) -> dict[str, Tensor]:
    """State dict with the published names, and some of each kind of tensor that the published class
    has without use.
    """
    state = {
        IDM.published(key): value
        for key, value in build_network(cfg.model_copy(update={"norm_groups": 4}))
        .state_dict()
        .items()
    }
    unused = [
        "betas",
        "posterior_mean_coef2",
        "sqrt_recipm1_alphas_cumprod",
        "imnet.layers.0.weight",
        "encoder.sub_mean.bias",
    ]
    unused += [
        "denoise_fn.final_down1.0.weight",
        "denoise_fn.condition_shift.0.0.bias",
        "denoise_fn.ups.2.style.weight",
    ]
    unused += [f"denoise_fn.conv_body_down.{len(cfg.channel_mult) - 1}.1.weight"]
    return state | {key: torch.zeros(1) for key in unused}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"channel_mult": (1, 2, 2, 4), "num_res_blocks": 2, "attention_resolutions": (128, 16)},
        {"attention_resolutions": (), "encoder_blocks": 3, "encoder_channels": 5},
        {"in_channels": 4, "out_channels": 2, "cond_channels": 1},
    ],
)
def test_the_config_of_idm_is_read_off_the_shapes(changes):
    cfg = TINY_IDM.model_copy(update=changes)
    want = cfg.model_copy(update={"norm_groups": IDMConfig.model_fields["norm_groups"].default})
    assert idm_config(published_idm(cfg)) == want


def test_idm_goes_there_and_back_under_its_published_names():
    cfg = TINY_IDM.model_copy(update={"model_channels": 32, "norm_groups": 32})
    state = published_idm(cfg)
    config, got = import_state(state, "idm")
    assert config == cfg
    build_network(config).load_state_dict(got, strict=True)
    assert torch.equal(got["unet.ups.2.imnet.0.weight"], state["denoise_fn.ups.2.imnet.0.weight"])


@pytest.mark.parametrize(
    "key",
    [
        "denoise_fn.condition_shift.1.0.bias",
        "denoise_fn.conv_body_down.1.2.bias",
        "encoder.tail.0.weight",
    ],
)
def test_a_missing_key_of_idm_is_named_as_published_and_an_unknown_one_is_not_dropped(key):
    state = published_idm(TINY_IDM.model_copy(update={"model_channels": 32, "norm_groups": 32}))
    value = state.pop(key)
    assert f"1 missing ({key})" in refusal(state)
    text = refusal(
        {
            **state,
            key: value,
            "denoise_fn.final_conv.block.4.bias": torch.zeros(1),
            "gammas": torch.zeros(1),
        }
    )
    assert "2 extra (denoise_fn.final_conv.block.4.bias, gammas)" in text


def test_an_imported_idm_is_a_pixel_space_model_of_its_largest_scale_without_a_licence(tmp_path):
    (tmp_path / "latest_gen.pth").write_bytes(b"weights")
    run = published_run(IDMConfig(), "latest_gen.pth")
    assert "none given, so all rights are the authors'" in published_card(
        tmp_path / "latest_gen.pth", run
    )
    assert (run.scale, run.autoencoder.kind, run.prediction, run.process) == (
        8,
        "pixel",
        "eps",
        DDPMConfig(),
    )


# --------------------------------------------------------------------------------------- containers


@pytest.mark.parametrize(
    "prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.module."]
)
@pytest.mark.parametrize("nested", [False, True])
def test_prefixes_and_nesting_do_not_matter(tmp_path, unet, prefix, nested):
    state = {prefix + key: value for key, value in unet.items()}
    torch.save({"iters_start": 3, "state_dict": state} if nested else state, tmp_path / "x.pth")
    config, got = load_published(tmp_path / "x.pth")
    assert config == TINY
    network = build_network(config)
    network.load_state_dict(got, strict=True)
    for key, value in network.state_dict().items():
        torch.testing.assert_close(
            value, unet[re.sub(r"(patch_(?:un)?embed)\.", r"\1.proj.", key)], rtol=0, atol=0
        )


def test_safetensors_and_old_torch_files_hold_the_same(tmp_path, unet):
    save_file({key: value.contiguous() for key, value in unet.items()}, tmp_path / "x.safetensors")
    torch.save(unet, tmp_path / "x.pth", _use_new_zipfile_serialization=False)
    first, second = load_published(tmp_path / "x.safetensors"), load_published(tmp_path / "x.pth")
    assert first[0] == second[0] == TINY
    assert first[1].keys() == second[1].keys() and all(
        torch.equal(first[1][key], second[1][key]) for key in first[1]
    )


def test_lightning_checkpoint_of_a_vqgan_imports_without_its_loss(tmp_path, monkeypatch):
    module = types.ModuleType("pytorch_lightning.callbacks.model_checkpoint")
    module.ModelCheckpoint = type("ModelCheckpoint", (), {"__module__": module.__name__})
    for name in ("pytorch_lightning", "pytorch_lightning.callbacks", module.__name__):
        monkeypatch.setitem(
            sys.modules, name, types.ModuleType(name) if name != module.__name__ else module
        )
    vqgan = build_autoencoder(TINY_VQGAN)
    state = {
        **vqgan.state_dict(),
        "loss.logvar": torch.zeros(()),
        "loss.discriminator.main.0.weight": torch.zeros(4, 3, 4, 4),
    }
    torch.save(
        {"epoch": 1, "callbacks": {module.ModelCheckpoint: {"best": 0.5}}, "state_dict": state},
        tmp_path / "model.ckpt",
    )
    for name in ("pytorch_lightning", "pytorch_lightning.callbacks", module.__name__):
        monkeypatch.delitem(sys.modules, name)
    config, got = load_published(tmp_path / "model.ckpt")
    assert config == TINY_VQGAN
    assert got.keys() == vqgan.state_dict().keys()


# --------------------------------------------------------------------------------------- strictness


def refusal(state: dict[str, Tensor]) -> str:
    with pytest.raises(CheckpointImportError) as error:
        import_state(state, "x.pth")
    return str(error.value)


@pytest.mark.parametrize(
    "key",
    [
        "time_embed.0.weight",
        "input_blocks.0.0.bias",
        "input_blocks.2.0.in_layers.2.weight",
        "input_blocks.1.1.patch_embed.proj.weight",
        "middle_block.1.blocks.1.norm2.bias",
        "output_blocks.3.0.skip_connection.weight",
        "feature_extractor.2.op.bias",
        "out.2.weight",
    ],
)
def test_a_missing_key_is_named(unet, key):
    del unet[key]
    text = refusal(unet)
    assert key in text and "missing" in text and text.count("\n") == 0


def test_an_extra_key_is_named(unet):
    unet["output_blocks.3.0.in_layers.7.weight"] = torch.zeros(1)
    assert "1 extra (output_blocks.3.0.in_layers.7.weight)" in refusal(unet)


def test_a_misshapen_key_is_named_with_both_shapes(unet):
    unet["middle_block.1.patch_unembed.proj.bias"] = torch.zeros(65)
    assert (
        "1 of another shape (middle_block.1.patch_unembed.proj.bias [65] instead of [64])"
        in refusal(unet)
    )


def test_many_wrong_keys_are_counted_and_the_first_three_named(unet):
    wrong = {key: value for key, value in unet.items() if not key.startswith("output_blocks.0.0.")}
    text = refusal(wrong)
    assert (
        "12 missing (output_blocks.0.0.in_layers.0.weight, " in text
        and text.count("output_blocks.0.0.") == 3
    )


def test_every_vqgan_key_is_accounted_for():
    state = build_autoencoder(TINY_VQGAN).state_dict()
    for key in state:
        with pytest.raises(CheckpointImportError):
            import_state({name: value for name, value in state.items() if name != key}, "x")
    assert "1 extra (model_ema.decay)" in refusal({**state, "model_ema.decay": torch.zeros(())})


# ------------------------------------------------------------------------------------------- LDM-SR


def random_weights(module: torch.nn.Module, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        key: torch.randn(value.shape, generator=generator)
        for key, value in module.state_dict().items()
    }


@pytest.fixture
def ldm() -> dict[str, Tensor]:
    """The state dict of latent-diffusion's `model.ckpt`, at tiny sizes: U-Net, its average, first
    stage, tables.
    """
    network, vqgan = build_network(TINY_LDM), build_autoencoder(TINY_VQGAN)
    averages = {
        "diffusion_model" + key.replace(".", ""): value
        for key, value in random_weights(network, 1).items()
    }
    return {
        "betas": linear_betas(1000, 0.0015, 0.0155, "sqrt_linear").float(),
        "alphas_cumprod": linear_abar(1000, 0.0015, 0.0155, "sqrt_linear").float(),
        "posterior_mean_coef1": torch.zeros(1000),
        **{
            f"model.diffusion_model.{key}": value
            for key, value in random_weights(network, 0).items()
        },
        "model_ema.decay": torch.tensor(0.9999),
        "model_ema.num_updates": torch.tensor(3, dtype=torch.int32),
        **{f"model_ema.{key}": value for key, value in averages.items()},
        **{f"first_stage_model.{key}": value for key, value in random_weights(vqgan, 2).items()},
    }


def test_full_size_ldm_layout_is_recognised_whole():
    path = LAYOUTS.parents[1] / "reference" / "layouts" / "ldm_bsr_sr.tsv"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    rows = [line.split("\t") for line in path.read_text().splitlines()]
    state = {
        key: torch.empty([int(n) for n in shape.strip("[]").split(",") if n], device="meta")
        for key, shape, _ in rows
    }
    state["alphas_cumprod"] = linear_abar(1000, 0.0015, 0.0155, "sqrt_linear").float()
    config, unet = import_state(state, "model.ckpt")
    assert config == LDMConfig()
    assert (
        len(state) == 831
        and len(unet) == 306
        and sum(value.numel() for value in unet.values()) == 113_622_563
    )
    config, first_stage = import_state(split_ldm(state, "model.ckpt").first_stage, "model.ckpt")
    assert config == VQGANConfig()
    assert (
        len(first_stage) == 205
        and sum(value.numel() for value in first_stage.values()) == 55_322_782
    )


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_res_blocks": 2, "attention_resolutions": ()},
        {"channel_mult": (1, 2, 3), "attention_resolutions": (64, 16)},
        {"in_channels": 4, "out_channels": 4, "cond_channels": 7},
    ],
)
def test_the_config_of_an_ldm_unet_is_read_off_the_shapes(changes):
    cfg = TINY_LDM.model_copy(update=changes)
    assert import_state(build_network(cfg).state_dict(), "x")[0] == cfg


def test_the_running_average_is_what_an_ldm_checkpoint_gives(ldm):
    config, state = import_state(ldm, "x")
    assert config == TINY_LDM
    assert state.keys() == build_network(TINY_LDM).state_dict().keys()
    assert all(
        torch.equal(value, random_weights(build_network(TINY_LDM), 1)[key])
        for key, value in state.items()
    )


def test_without_running_averages_the_weights_are_taken_and_that_is_said(ldm, caplog):
    _, state = import_state(
        {key: value for key, value in ldm.items() if not key.startswith("model_ema.")}, "x.ckpt"
    )
    assert all(
        torch.equal(value, ldm[f"model.diffusion_model.{key}"]) for key, value in state.items()
    )
    assert "x.ckpt has no running average" in caplog.text


def test_every_key_of_an_ldm_checkpoint_is_accounted_for(ldm, tmp_path):
    silent = {
        "betas",
        "alphas_cumprod",
        "posterior_mean_coef1",
        "model_ema.decay",
        "model_ema.num_updates",
    }
    for key in ldm.keys() - silent:
        broken = {name: value for name, value in ldm.items() if name != key}
        with pytest.raises(CheckpointImportError):
            parts = split_ldm(broken, "x")
            import_state(parts.unet, "x")
            import_state(parts.first_stage, "x")


@pytest.mark.parametrize(
    "key, value, text",
    [
        ("cond_stage_model.weight", (3,), r"but none of its models has cond_stage_model.weight\.$"),
        ("scale_factor", (), r"but none of its models has scale_factor\.$"),
        (
            "model_ema.diffusion_modelout9bias",
            (3,),
            r"nothing that model_ema.diffusion_modelout9bias is the average of",
        ),
        (
            "model_ema.diffusion_modelout2bias",
            (4,),
            r"no average of the same shape for model.diffusion_model.out.2.bias",
        ),
        (
            "model.diffusion_model.out.9.bias",
            (3,),
            r"no average of the same shape for model.diffusion_model.out.9.bias",
        ),
    ],
)
def test_what_does_not_belong_into_an_ldm_checkpoint_is_named(ldm, key, value, text):
    assert re.search(text, refusal({**ldm, key: torch.full(value, 0.5)}))


def test_a_key_missing_in_unet_and_average_is_named(ldm):
    del ldm["model.diffusion_model.out.2.bias"], ldm["model_ema.diffusion_modelout2bias"]
    assert "looks like LDM-SR U-Net, but of its 128 keys: 1 missing (out.2.bias)" in refusal(ldm)


def test_a_misshapen_first_stage_is_named_as_such(ldm, tmp_path):
    ldm["first_stage_model.decoder.conv_out.bias"] = torch.zeros(4)
    torch.save({"state_dict": ldm}, tmp_path / "model.ckpt")
    with pytest.raises(
        CheckpointImportError,
        match=r"first_stage_model: looks like VQGAN.*decoder.conv_out.bias \[4\]",
    ):
        load_first_stage(tmp_path / "model.ckpt")


def test_a_file_of_one_model_has_no_first_stage(unet_file):
    assert load_first_stage(unet_file) is None


@pytest.mark.parametrize(
    "cfg, vqgan",
    [
        (LDMConfig(cond_channels=0), VQGANConfig()),
        (LDMConfig(in_channels=4, out_channels=4), VQGANConfig()),
        (LDMConfig(), VQGANConfig(embed_dim=4)),
    ],
)
def test_an_ldm_that_is_not_ldm_sr_is_refused(cfg, vqgan):
    with pytest.raises(CheckpointImportError, match="is not LDM-SR, which has 3 of each"):
        published_run(cfg, "model.ckpt", first_stage=vqgan)


def test_the_tool_writes_ldm_sr_with_its_first_stage(tmp_path, ldm):
    torch.save({"epoch": 1, "state_dict": ldm}, tmp_path / "model.ckpt")
    result = tool(tmp_path / "model.ckpt", "-o", tmp_path / "model")
    assert result.returncode == 0, result.stderr
    assert "next:" not in result.stdout
    model = load_model(tmp_path / "model")
    assert model.run.process == DDPMConfig(
        num_timesteps=1000, beta_start=0.0015, beta_end=0.0155, schedule="sqrt_linear"
    )
    assert (model.run.prediction, model.run.condition, model.run.scale) == (
        "eps",
        ("lr",),
        TINY_VQGAN.factor,
    )
    assert (model.run.sampler.kind, model.run.sampler.steps, model.run.sampler.eta) == (
        "ddim",
        100,
        1.0,
    )
    assert torch.equal(model.network.out[2].bias, ldm["model_ema.diffusion_modelout2bias"])
    assert torch.equal(
        model.autoencoder.quantize.embedding.weight,
        ldm["first_stage_model.quantize.embedding.weight"],
    )
    assert "As published: MIT." in (tmp_path / "model" / "README.md").read_text()


# ---------------------------------------------------------------------------------- noise schedules


def buffers(*schedule) -> dict[str, Tensor]:
    return {
        "betas": linear_betas(*schedule).float(),
        "alphas_cumprod": linear_abar(*schedule).float(),
    }


@pytest.mark.parametrize(
    "schedule",
    [
        (2000, 1e-6, 1e-2, "linear"),
        (1000, 1e-4, 2e-2, "linear"),
        (1000, 0.0015, 0.0155, "sqrt_linear"),
        (50, 0.3, 0.3, "linear"),
        (1, 0.5, 0.5, "linear"),
    ],
)
def test_the_schedule_is_read_from_the_buffers_of_the_file(schedule):
    config = read_schedule(buffers(*schedule), "x")
    assert (config.num_timesteps, config.beta_start, config.beta_end, config.schedule) == schedule
    assert config == read_schedule({"betas": buffers(*schedule)["betas"]}, "x")
    assert read_schedule({"denoise_fn.downs.0.weight": torch.zeros(1)}, "x") is None


COSINE = (
    torch.cos((torch.linspace(0, 1, 1001, dtype=torch.float64) + 0.008) / 1.008 * torch.pi / 2) ** 2
)  # abar
COSINE = (1 - COSINE[1:] / COSINE[:-1]).clamp(max=0.999)


@pytest.mark.parametrize(
    "state, text",
    [
        ({"betas": COSINE}, r"\(1000 steps, betas 4.1\d+e-05 to 0.999\) is linear neither"),
        ({"betas": torch.linspace(-1e-4, 1e-2, 10)}, "is linear neither"),
        (
            {"betas": torch.cat([torch.linspace(1e-6, 1e-2, 200), torch.full((1800,), 1e-2)])},
            r"\(2000 steps, .* linear neither",
        ),
        ({"betas": torch.zeros(10)}, r"\(10 steps, betas 0 to 0\) is linear neither"),
        ({"betas": torch.full((10,), torch.nan)}, "is linear neither"),
        ({"alphas_cumprod": torch.full((10,), 0.5)}, "alphas_cumprod without a list of betas"),
        ({"betas": torch.zeros(0)}, "without a list of betas"),
        (
            {**buffers(100, 1e-4, 2e-2), "alphas_cumprod": torch.full((100,), 0.5)},
            "is not that of its alphas_cumprod",
        ),
        (
            {**buffers(100, 1e-4, 2e-2), "alphas_cumprod": torch.full((99,), 0.5)},
            "is not that of its alphas_cumprod",
        ),
    ],
)
def test_a_schedule_that_no_config_can_say_is_refused_in_one_sentence(state, text):
    with pytest.raises(CheckpointImportError, match=text) as error:
        read_schedule(state, "x.pth")
    assert str(error.value).startswith("x.pth: ") and "\n" not in str(error.value)


@pytest.mark.parametrize("config", [SR3Config(), IDMConfig(), LDMConfig()])
def test_the_run_has_the_schedule_of_the_file_and_without_one_the_published(config):
    given = DDPMConfig(num_timesteps=300, beta_start=1e-4, beta_end=0.05)
    published = published_run(config, "x").process
    assert published.num_timesteps == (1000 if isinstance(config, LDMConfig) else 2000)
    assert published_run(config, "x", schedule=given).process == given.model_copy(
        update={"continuous": published.continuous}
    )


def test_the_tool_writes_sr3_with_the_schedule_of_its_buffers(tmp_path):
    config = SR3Config(
        image_size=32,
        model_channels=32,
        channel_mult=(1, 2),
        num_res_blocks=1,
        attention_resolutions=(16,),
    )
    state = {SR3.published(key): value for key, value in build_network(config).state_dict().items()}
    torch.save(state | buffers(300, 1e-4, 0.05), tmp_path / "I10_E1_gen.pth")
    result = tool(tmp_path / "I10_E1_gen.pth", "-o", tmp_path / "model")
    assert result.returncode == 0, result.stderr
    model = load_model(tmp_path / "model")
    assert model.run.process == DDPMConfig(
        num_timesteps=300, beta_start=1e-4, beta_end=0.05, continuous=True
    )
    assert torch.equal(
        model.network.mid[0].attn.qkv.weight, state["denoise_fn.mid.0.attn.qkv.weight"]
    )
    torch.save(state | {"betas": COSINE.float()}, tmp_path / "I10_E1_gen.pth")
    result = tool(tmp_path / "I10_E1_gen.pth", "-o", tmp_path / "other")
    assert (
        result.returncode == 2
        and result.stderr.count("\n") == 1
        and "linear neither" in result.stderr
    )
    assert not (tmp_path / "other").exists()


# -------------------------------------------------------------------------------------------- files


class Malicious:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("new_format", [True, False])
def test_a_pickle_that_wants_to_run_code_is_refused_and_runs_nothing(tmp_path, unet, new_format):
    trap = tmp_path / "trap"
    torch.save(
        {"state_dict": unet, "x": Malicious(trap)},
        tmp_path / "x.pth",
        _use_new_zipfile_serialization=new_format,
    )
    with pytest.raises(
        CheckpointImportError, match="refused, because reading it would run code"
    ) as error:
        load_published(tmp_path / "x.pth")
    assert not trap.exists() and "\n" not in str(error.value)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
@pytest.mark.parametrize("suffix", [".pth", ".old.pth", ".safetensors"])
def test_a_truncated_file_is_one_sentence(tmp_path, unet, share, suffix):
    path = tmp_path / f"x{suffix}"
    if suffix == ".safetensors":
        save_file({key: value.contiguous() for key, value in unet.items()}, path)
    else:
        torch.save(unet, path, _use_new_zipfile_serialization=suffix == ".pth")
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(CheckpointImportError, match="truncated, or no checkpoint at all") as error:
        load_published(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "value", [[1, 2], {}, {"state_dict": {}}, {"epoch": 3}, {"state_dict": None}, torch.zeros(2)]
)
def test_a_file_without_a_state_dict_is_refused(tmp_path, value):
    torch.save(value, tmp_path / "x.pth")
    with pytest.raises(CheckpointImportError, match="holds no state dict"):
        load_published(tmp_path / "x.pth")


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(CheckpointImportError, match="gone.pth: no such file"):
        load_published(tmp_path / "gone.pth")


# ------------------------------------------------------------------------------------ model folders


@pytest.mark.parametrize(
    "filename, steps, kappa",
    [
        ("resshift_realsrx4_s15_v1.pth", 15, 2.0),
        ("resshift_realsrx4_s4_v3.pth", 4, 2.0),
        ("resshift_bicsrx4_opencv_s15.pth", 15, 1.0),
        ("ema_model_400000.pth", 15, 2.0),
    ],
)
def test_the_schedule_follows_from_the_published_name(filename, steps, kappa):
    process = published_run(ResShiftNetConfig(), filename).process
    assert (process.num_timesteps, process.kappa) == (steps, kappa)


def test_the_scale_follows_from_the_sizes_of_latent_and_condition():
    scales = {
        factor: published_run(ResShiftNetConfig(cond_factor=factor), "x").scale
        for factor in (1, 2, 4)
    }
    assert scales == {1: 4, 2: 2, 4: 1}
    assert (
        published_run(ResShiftNetConfig(in_channels=8, out_channels=8, cond_factor=8), "x").scale
        == 1
    )


@pytest.mark.parametrize(
    "cfg, filename", [(ResShiftNetConfig(cond_channels=4), "x"), (ResShiftNetConfig(), "x_s7.pth")]
)
def test_what_is_no_published_super_resolution_model_is_refused(cfg, filename):
    with pytest.raises(CheckpointImportError):
        published_run(cfg, filename)


def tool(*args: object) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, ROOT / "tools/import_checkpoint.py", *map(str, args)],
        capture_output=True,
        text=True,
    )


def test_the_tool_writes_a_model_folder(tmp_path, unet, unet_file):
    result = tool(unet_file, "-o", tmp_path / "model")
    assert result.returncode == 0, result.stderr
    run = load_config(tmp_path / "model" / "config.yaml")
    assert (run.network, run.process.num_timesteps, run.scale) == (TINY, 4, 2)
    state = load_file(tmp_path / "model" / "model.safetensors")
    build_network(run.network).load_state_dict(state, strict=True)
    assert torch.equal(state["out.2.bias"], unet["out.2.bias"])
    assert "non-commercial" in (tmp_path / "model" / "README.md").read_text()


def test_the_tool_says_a_mistake_in_one_sentence(tmp_path):
    (tmp_path / "x.pth").write_bytes(b"hello")
    result = tool(tmp_path / "x.pth", "-o", tmp_path / "model")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.count("\n") == 1 and "Traceback" not in result.stderr
    assert not (tmp_path / "model").exists()


def test_the_tool_helps_without_torch():
    code = "import sys, runpy; sys.argv = ['x', '--help']\n"
    code += "try: runpy.run_path('tools/import_checkpoint.py', run_name='__main__')\n"
    code += "except SystemExit: assert 'torch' not in sys.modules"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0 and "MODEL_DIR" in result.stdout, result.stderr
