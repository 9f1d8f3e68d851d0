"""Laws of the importer: published layouts are recognised from their shapes, and nothing is read
that does not fit exactly. A law that holds for every system is written once, over SYSTEMS.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import sys
import types
import zipfile
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from golden import resshift_unet, sr3, vqgan
from golden.reading import Case
from ldm_dream.config.autoencoder import PixelConfig, VQGANConfig
from ldm_dream.config.networks import IDMConfig, LDMConfig, ResShiftNetConfig, SR3Config
from ldm_dream.config.process import DDPMConfig, ResidualShiftConfig
from ldm_dream.interchange.published import (
    CheckpointImportError,
    import_state,
    published_card,
    published_run,
)
from ldm_dream.interchange.system import Config
from ldm_dream.networks.resshift import SwinBlock
from published_systems import (
    DIFFUSION,
    LDM_PROCESS,
    SYSTEMS,
    build,
    build_once,
    load_published,
    published,
    refusal,
    save_halves,
    size,
)
from tests.conftest import SHARED

EACH = pytest.mark.parametrize("system", SYSTEMS.values(), ids=SYSTEMS)


@pytest.fixture
def unet() -> dict[str, Tensor]:
    return published(SYSTEMS["resshift"])


# -------------------------------------------------------------------------------------- every system


@pytest.mark.parametrize(
    "name, changes",
    [(name, changes) for name, system in SYSTEMS.items() for changes in system.variants],
)
def test_the_config_is_read_off_the_shapes(name, changes):
    """Of a ResShift without masks, which tell its size, the windows alone."""
    cfg, state = (
        SYSTEMS[name].config.model_copy(update=changes),
        published(SYSTEMS[name], **changes),
    )
    config, got = import_state(state, "x")
    rebuilt = build(config)
    rebuilt.load_state_dict(got, strict=True, assign=True)
    assert windows(rebuilt) == windows(build(cfg))
    if name != "resshift" or any("attn_mask" in key for key in state):
        assert config == cfg


def windows(network: nn.Module) -> list[tuple[int, int, int]]:
    blocks = [module for module in network.modules() if isinstance(module, SwinBlock)]
    return [(block.attn.window, block.attn.shift, block.attn.heads) for block in blocks]


@EACH
def test_what_is_published_comes_back_under_our_names(system):
    state = published(system)
    _, got = import_state(state, "x")
    along = system.along(system.config, build(system.config)).keys()
    assert got.keys() == build(system.config).state_dict().keys()
    for key in state.keys() - along:
        assert got[system.layout.ours(key)] is state[key]
    for key, ours in system.places.items():
        assert got[ours] is state[key]


PREFIXES = ("", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.module.")


@EACH
def test_prefixes_and_nesting_do_not_matter(system, tmp_path):
    state = published(system)
    want = import_state(state, "x")[1]
    for prefix in PREFIXES:
        renamed = {prefix + key: value for key, value in state.items()}
        for contents in (renamed, {"iters_start": 3, "state_dict": renamed}):
            torch.save(contents, tmp_path / "x.pth")
            config, got = load_published(tmp_path / "x.pth")
            assert config == system.config and got.keys() == want.keys()
            assert all(torch.equal(got[key], value) for key, value in want.items())


@EACH
def test_every_key_that_is_not_saved_along_must_be_there(system, monkeypatch):
    build_once(monkeypatch)
    state = published(system)
    for key in state.keys() - system.along(system.config, build(system.config)).keys():
        refusal({name: value for name, value in state.items() if name != key})


@EACH
def test_a_missing_key_is_named_as_published(system):
    state = published(system)
    for key in system.missing:
        text = refusal({name: value for name, value in state.items() if name != key})
        assert f"1 missing ({key})" in text or f"the key '{key}' is missing" in text


@EACH
def test_an_extra_key_is_named_as_published(system):
    state = published(system) | dict.fromkeys(system.extra, torch.zeros(1))
    assert f"{len(system.extra)} extra ({', '.join(system.extra)})" in refusal(state)


@EACH
def test_a_misshapen_key_is_named_with_both_shapes(system):
    state = published(system)
    n = len(state[system.vector])
    state[system.vector] = torch.zeros(n + 1)
    text = f"1 of another shape ({system.vector} [{n + 1}] instead of [{n}])"
    assert text in refusal(state)


def test_many_wrong_keys_are_counted_and_the_first_three_named(unet):
    wrong = {key: value for key, value in unet.items() if not key.startswith("output_blocks.0.0.")}
    text = refusal(wrong)
    assert "12 missing (output_blocks.0.0.in_layers.0.weight, " in text
    assert text.count("output_blocks.0.0.") == 3


def test_a_layout_that_is_not_known_is_refused_with_the_known_ones(unet):
    state = {key.replace("middle_block.", "another."): value for key, value in unet.items()}
    assert re.search("unknown layout.*ResShift U-Net; IDM; SR3", refusal(state))


@pytest.mark.parametrize("name", SYSTEMS)
def test_the_card_states_the_terms_of_the_publishers(name, tmp_path):
    (tmp_path / "x.pth").write_bytes(b"weights")
    config = type(SYSTEMS[name].config)()
    text = published_card(tmp_path / "x.pth", published_run(config, "x.pth"))
    assert f"As published: {SYSTEMS[name].terms}." in text


# ---------------------------------------------------------------------------------------- full sizes


class Whole(NamedTuple):
    """A published layout below ../shared, and what must come of it."""

    name: str
    parameters: int  # that reach the output
    dropped: tuple[int, int] = (0, 0)  # tensors: tables of the schedule, others
    others: str = "^$"  # regular expression of those
    run: dict[str, Any] = {}  # what the run says


SWIN = r"\.(attn_mask|relative_position_index)$"
# an MLP that nothing calls, the mean shift of EDSR, and in the U-Net what no output depends on
IDM_UNREAD = (
    r"^(imnet|encoder\.(sub|add)_mean|denoise_fn\.(final_(down|linear|style)|ups|cond|conv))"
)
FACES = {"scale": 8, "prediction": "eps", "process.num_timesteps": 2000}
WHOLE = [
    Whole("resshift_realsrx4", 118_593_583, (0, 24), SWIN),
    Whole("resshift_bicsrx4", 118_593_583, (0, 24), SWIN),
    Whole("resshift_realsrx2", 118_640_431, (0, 24), SWIN),
    Whole("resshift_inpaint_imagenet", 118_714_399, (0, 24), SWIN),
    Whole("resshift_faceir", 118_931_604, (0, 24), SWIN),
    Whole("sr3_16_128", 97_807_491, (12, 0), run=FACES),
    Whole("sr3_64_512", 155_334_339, (12, 0), run=FACES),
    Whole("idm_16_128", 99_801_670, (13, 46), IDM_UNREAD, FACES),
    Whole("resshift_autoencoder_vq_f4", 55_322_782),
    Whole("resshift_faceir_vq_f8", 77_009_115),
    Whole("ldm_vq_f4", 55_322_782, (0, 55), r"^loss\."),
    Whole("taming_vqgan_imagenet_f16_16384", 76_073_859, (0, 49), r"^loss\."),
]
# of the official modules, beside those tables: n_params of a layout counts all but these
BUFFERS = rf"{SWIN}|\.(running_mean|running_var|num_batches_tracked|shift|scale)$"


@pytest.mark.parametrize("row", WHOLE, ids=attrgetter("name"))
def test_a_full_size_layout_is_recognised_whole(row):
    path = SHARED / f"golden/layouts/{row.name}.json"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    entry = json.loads(path.read_text())
    shapes = entry["state_dict"]
    state = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    config, got = import_state(state, row.name)
    assert config == stated_config(config, entry["config"])

    layout = next(s.layout for s in SYSTEMS.values() if type(s.config) is type(config))
    dropped = {key: value for key, value in state.items() if layout.ours(key) not in got}
    others = {key: value for key, value in dropped.items() if "." in key}
    assert (len(dropped) - len(others), len(others)) == row.dropped
    assert len(got) == len(state) - len(dropped)
    assert all(re.search(row.others, key) for key in others)
    assert size(got) == row.parameters
    unread = {key: value for key, value in others.items() if not re.search(BUFFERS, key)}
    assert size(got) + size(unread) == entry["n_params"]
    for name, value in row.run.items():
        assert attrgetter(name)(published_run(config, f"{row.name}_gen.pth")) == value


def stated_config(read: Config, stated: dict) -> Config:
    """What the authors state, and of what leaves no trace in the shapes that which was read."""
    if isinstance(read, IDMConfig):
        return IDMConfig()
    if isinstance(read, ResShiftNetConfig):
        cfg = resshift_unet.config(Case(stated["model"]))
        blocks = set(cfg.num_res_blocks)  # as many at each level are one number
        return cfg.model_copy(update={"num_res_blocks": blocks.pop()} if len(blocks) == 1 else {})
    if isinstance(read, SR3Config):
        free = {"image_size": read.image_size, "dropout": read.dropout}
        return sr3.config(Case(stated)).model_copy(update=free)
    cfg = vqgan.config(Case(stated))
    sides = [side * read.resolution // cfg.resolution for side in cfg.attn_resolutions]
    return cfg.model_copy(update={"resolution": read.resolution, "attn_resolutions": tuple(sides)})


# ---------------------------------------------------------------------------------------- containers


def test_safetensors_and_old_torch_files_hold_the_same(tmp_path, unet):
    save_file({key: value.contiguous() for key, value in unet.items()}, tmp_path / "x.safetensors")
    torch.save(unet, tmp_path / "x.pth", _use_new_zipfile_serialization=False)
    first, second = load_published(tmp_path / "x.safetensors"), load_published(tmp_path / "x.pth")
    assert first[0] == second[0] == SYSTEMS["resshift"].config
    assert first[1].keys() == second[1].keys()
    assert all(torch.equal(first[1][key], value) for key, value in second[1].items())


def test_a_lightning_checkpoint_with_callbacks_imports(tmp_path, monkeypatch):
    """Its pickle names a class of Lightning, which need not be installed."""
    module = types.ModuleType("pytorch_lightning.callbacks.model_checkpoint")
    module.ModelCheckpoint = type("ModelCheckpoint", (), {"__module__": module.__name__})
    names = ("pytorch_lightning", "pytorch_lightning.callbacks", module.__name__)
    with monkeypatch.context() as lightning:
        for name in names:
            there = module if name == module.__name__ else types.ModuleType(name)
            lightning.setitem(sys.modules, name, there)
        contents = {"epoch": 1, "callbacks": {module.ModelCheckpoint: {"best": 0.5}}}
        contents["state_dict"] = published(SYSTEMS["vqgan"])
        torch.save(contents, tmp_path / "model.ckpt")
    assert not {*names} & sys.modules.keys()
    config, got = load_published(tmp_path / "model.ckpt")
    assert config == SYSTEMS["vqgan"].config
    assert got.keys() == build(config).state_dict().keys()


def test_either_half_of_a_taesd_stands_for_both(tmp_path):
    state = published(SYSTEMS["taesd"])
    encoder = save_halves(state, tmp_path)
    for half in (encoder, tmp_path / "taef2_decoder.pth"):
        config, got = load_published(half)
        assert config == SYSTEMS["taesd"].config and got.keys() == state.keys()
        assert all(torch.equal(got[key], value) for key, value in state.items())
    encoder.rename(tmp_path / "taef2.pth")
    with pytest.raises(CheckpointImportError, match="neither 'encoder' nor 'decoder'; name it so"):
        load_published(tmp_path / "taef2.pth")
    with pytest.raises(CheckpointImportError, match="taef2_encoder.pth: no such file"):
        load_published(tmp_path / "taef2_decoder.pth")


# --------------------------------------------------------------------------------------------- files


class Malicious:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("new_format", [True, False])
def test_a_pickle_that_wants_to_run_code_is_refused_and_runs_nothing(tmp_path, unet, new_format):
    path, trap = tmp_path / "x.pth", tmp_path / "trap"
    contents = {"state_dict": unet, "x": Malicious(trap)}
    torch.save(contents, path, _use_new_zipfile_serialization=new_format)
    with pytest.raises(CheckpointImportError, match="because reading it would run code") as error:
        load_published(path)
    assert ": refused, " in str(error.value)
    assert not trap.exists() and "\n" not in str(error.value)


@pytest.mark.parametrize("suffix", [".pth", ".old.pth", ".safetensors"])
def test_a_truncated_file_is_one_sentence(tmp_path, unet, suffix):
    path = tmp_path / f"x{suffix}"
    if suffix == ".safetensors":
        save_file({key: value.contiguous() for key, value in unet.items()}, path)
    else:
        torch.save(unet, path, _use_new_zipfile_serialization=suffix == ".pth")
    whole = path.read_bytes()
    for share in (0.0, 0.01, 0.5, 0.999):
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(CheckpointImportError, match="truncated, or no checkpoint") as error:
            load_published(path)
        assert "at all" in str(error.value) and "\n" not in str(error.value)


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


# ---------------------------------------------------------------------------------------------- runs

RUNS = [
    (
        ResShiftNetConfig(),
        {"scale": 4, "autoencoder": VQGANConfig(), "process": ResidualShiftConfig()},
    ),
    (
        SR3Config(),
        {"scale": 8, "autoencoder": PixelConfig(), "prediction": "eps", "condition": ("z_lr",)}
        | {"process": DDPMConfig(continuous=True)},
    ),
    (
        IDMConfig(),
        {"scale": 8, "autoencoder": PixelConfig(), "prediction": "eps", "process": DDPMConfig()},
    ),
    (
        LDMConfig(),
        {"scale": 4, "autoencoder": VQGANConfig(), "prediction": "eps", "condition": ("lr",)}
        | {
            "process": LDM_PROCESS,
            "sampler.kind": "ddim",
            "sampler.steps": 100,
            "sampler.eta": 1.0,
        },
    ),
]


@pytest.mark.parametrize("config, want", RUNS, ids=DIFFUSION)
def test_the_run_is_the_one_its_authors_trained(config, want):
    run = published_run(config, "x.pth")
    assert {name: attrgetter(name)(run) for name in want} == want


@pytest.mark.parametrize(
    "filename, steps, kappa",
    [
        ("resshift_realsrx4_s15_v1.pth", 15, 2.0),
        ("resshift_realsrx4_s4_v3.pth", 4, 2.0),
        ("resshift_bicsrx4_opencv_s15.pth", 15, 1.0),
        ("ema_model_400000.pth", 15, 2.0),
    ],
)
def test_the_schedule_of_resshift_follows_from_the_published_name(filename, steps, kappa):
    process = published_run(ResShiftNetConfig(), filename).process
    assert (process.num_timesteps, process.kappa) == (steps, kappa)


@pytest.mark.parametrize("channels, factor, scale", [(3, 1, 4), (3, 2, 2), (3, 4, 1), (8, 8, 1)])
def test_the_scale_follows_from_the_sizes_of_latent_and_condition(channels, factor, scale):
    config = ResShiftNetConfig(in_channels=channels, out_channels=channels, cond_factor=factor)
    assert published_run(config, "x").scale == scale


@pytest.mark.parametrize(
    "config, filename, first_stage, text",
    [
        (ResShiftNetConfig(cond_channels=4), "x", None, "is none of ResShift's"),
        (SR3Config(cond_channels=0), "x", None, "takes no low-resolution picture"),
        (LDMConfig(cond_channels=0), "x", VQGANConfig(), "is not LDM-SR, which has 3 of each"),
        (
            LDMConfig(in_channels=4, out_channels=4),
            "x",
            VQGANConfig(),
            "is not LDM-SR, which has 3 of each",
        ),
        (LDMConfig(), "x", VQGANConfig(embed_dim=4), "is not LDM-SR, which has 3 of each"),
    ],
)
def test_what_is_no_published_model_is_refused(config, filename, first_stage, text):
    with pytest.raises(CheckpointImportError, match=text):
        published_run(config, filename, first_stage=first_stage)


# ------------------------------------------------------------------------------------------ wrappers


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"params": {"x": torch.zeros(1)}, "params_ema": state},
        lambda state: {"model": {"state_dict": state}, "optimizer": {"lr": 1}, "epoch": 3},
        lambda state: {"ema": state, "step": torch.tensor(3)},
        lambda state: {"netG": {f"module.{key}": value for key, value in state.items()}},
        lambda state: {f"netG.{key}": value for key, value in state.items()},
    ],
)
def test_wrappers_of_training_codes_are_found(wrap, tmp_path):
    state = published(SYSTEMS["sr3"])
    torch.save(wrap(state), tmp_path / "x.pth")
    got = load_published(tmp_path / "x.pth")[1]
    assert all(torch.equal(got[key], value) for key, value in import_state(state, "x")[1].items())


def test_a_file_without_a_state_dict_names_what_it_holds(tmp_path):
    torch.save({"epoch": 3, "optim": {"lr": 0.1}}, tmp_path / "x.pth")
    with pytest.raises(CheckpointImportError, match="its keys are epoch, optim; expected"):
        load_published(tmp_path / "x.pth")


class Bomb:
    def __init__(self, trap: Path):
        self.trap = trap

    def __reduce__(self):
        return os.system, (f"touch {self.trap}",)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickle_that_calls_the_system_is_named_and_not_run(tmp_path, protocol):
    for held in (Bomb(tmp_path / "trap"), {"state_dict": {"x": Bomb(tmp_path / "trap")}}):
        (tmp_path / "x.pth").write_bytes(pickle.dumps(held, protocol))
        with pytest.raises(CheckpointImportError, match=r"would run code \(posix\.system\)"):
            load_published(tmp_path / "x.pth")
    assert not (tmp_path / "trap").exists()


def test_an_archive_that_would_grow_is_refused_unread(tmp_path, unet):
    path = tmp_path / "x.pth"
    torch.save(unet, path)
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(tmp_path / "y.pth", "w", 8) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    with pytest.raises(CheckpointImportError, match="it would grow to"):
        load_published(tmp_path / "y.pth")


def test_an_archive_without_checksums_is_read(tmp_path, unet):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(unet, tmp_path / "x.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    assert load_published(tmp_path / "x.pth")[1]


def test_a_flipped_bit_in_an_archive_is_found(tmp_path, unet):
    path = tmp_path / "x.pth"
    torch.save(unet, path)
    whole = path.read_bytes()
    value = next(value for value in unet.values() if value.numel() > 9)
    for inside, says in ((value.numpy().tobytes(), "(its checksum)"), (b"FloatSt", "Bad CRC-32")):
        data = bytearray(whole)
        data[data.index(inside)] ^= 1
        path.write_bytes(data)
        with pytest.raises(CheckpointImportError, match=re.escape(says)):
            load_published(path)


def test_an_entry_that_is_too_short_is_found(tmp_path, unet):
    """torch takes what stands behind it in the file."""
    torch.save(unet, tmp_path / "x.pth")
    with (
        zipfile.ZipFile(tmp_path / "x.pth") as old,
        zipfile.ZipFile(tmp_path / "y.pth", "w") as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name)[: -4 if name.endswith("data/2") else None])
    with pytest.raises(CheckpointImportError, match="damaged: .* is not as it was written"):
        load_published(tmp_path / "y.pth")


@pytest.mark.parametrize(
    "value, says",
    [
        (torch.full((3,), torch.nan), "holds NaN or infinity"),
        (torch.eye(3).to_sparse(), "is sparse, quantized, complex or without values"),
        (torch.zeros(1).expand(2**20, 2**12), "far larger than the file"),
        (torch.empty(2**30, device="meta"), "without values"),
    ],
)
def test_tensors_that_are_no_weights_are_refused(tmp_path, value, says):
    torch.save({"betas": value}, tmp_path / "x.pth")
    with pytest.raises(CheckpointImportError, match=says):
        load_published(tmp_path / "x.pth")


def test_a_web_page_is_called_one(tmp_path):
    (tmp_path / "x.pth").write_bytes(b"<!DOCTYPE html>")
    with pytest.raises(CheckpointImportError, match="a web page or XML, no checkpoint"):
        load_published(tmp_path / "x.pth")
