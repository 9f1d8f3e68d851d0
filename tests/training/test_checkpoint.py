"""Model folders and checkpoints are whole or not there, and what is broken is named."""

import pytest
import torch
import yaml

from ldm_dream.config.model import VQGANConfig
from ldm_dream.model_folder import (
    ModelError,
    find_model,
    load_autoencoder,
    load_model,
    read_run,
    save_model,
)
from ldm_dream.networks import build_network
from ldm_dream.training.checkpoint import latest_checkpoint, save_checkpoint
from runs import VQGAN_TINY, autoencoder_folder, diffusion_run


def save_tiny(tmp_path):
    run = diffusion_run(tmp_path)
    save_model(tmp_path / "model", run, build_network(run.network).state_dict(), "a card")
    return tmp_path / "model"


def test_a_model_folder_comes_back_as_it_was_saved(tmp_path):
    folder = save_tiny(tmp_path)
    model = load_model(folder)
    assert model.run == diffusion_run(tmp_path)
    assert not model.network.training
    assert (folder / "README.md").read_text() == "a card"


def test_pretrained_brings_the_architecture_of_its_folder(tmp_path):
    loaded = load_autoencoder(
        VQGANConfig(pretrained=str(autoencoder_folder(tmp_path / "vq")), quantize=False)
    )
    assert loaded.channels == VQGAN_TINY.embed_dim
    assert loaded.quantizes is False
    assert not any(p.requires_grad for p in loaded.parameters())


def test_unknown_model_lists_the_bundled_ones():
    with pytest.raises(ModelError, match="neither a model folder"):
        find_model("no-such-model")


@pytest.mark.parametrize("size", [0, 7, 1000])
def test_weights_cut_short_are_named(tmp_path, size):
    folder = save_tiny(tmp_path)
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ModelError, match="cut short or damaged"):
        load_model(folder)


def test_weights_of_another_shape_are_named(tmp_path):
    folder = save_tiny(tmp_path)
    text = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(text.replace("model_channels: 16", "model_channels: 32"))
    with pytest.raises(ModelError, match="do not fit config.yaml"):
        load_model(folder)


def test_a_model_folder_of_an_earlier_version_loads(tmp_path):
    """Its config names knobs that are gone."""
    path = save_tiny(tmp_path) / "config.yaml"
    path.write_text(path.read_text().replace("\nloss:\n", "\nloss:\n  fraction: 1.0\n"))
    assert "fraction" in path.read_text()
    assert load_model(path.parent).run == diffusion_run(tmp_path)
    old = {"process": {"kind": "regression"}, "sampler": {"kind": "ddim", "steps": 1}}
    path.write_text(yaml.safe_dump({"prediction": "z0", **old}))
    assert read_run(path.parent).sampler.kind == "ancestral"


@pytest.mark.parametrize("text, says", [("", "holds no keys"), ("- a list\n", "this is a list")])
def test_a_config_without_keys_is_named(tmp_path, text, says):
    folder = save_tiny(tmp_path)
    (folder / "config.yaml").write_text(text)
    with pytest.raises(ModelError, match=says):
        load_model(folder)


def test_an_autoencoder_is_no_upscaler(tmp_path):
    with pytest.raises(ModelError, match="this is an autoencoder"):
        load_model(autoencoder_folder(tmp_path / "vq"))


def test_a_broken_checkpoint_is_named_and_the_one_before_is_taken(tmp_path, caplog):
    for step in (1, 2):
        save_checkpoint(
            tmp_path, step, {"x": torch.full((3,), float(step))}, {"note": step}, keep=2
        )
    path = tmp_path / "checkpoints" / "step-00000002" / "state.safetensors"
    path.write_bytes(path.read_bytes()[:20])
    found = latest_checkpoint(tmp_path)
    assert found.step == 1 and torch.equal(found.tensors["x"], torch.ones(3))
    assert "step-00000002" in caplog.text


def test_only_the_newest_checkpoints_are_kept(tmp_path):
    for step in range(5):
        save_checkpoint(tmp_path, step, {"x": torch.zeros(1)}, {}, keep=2)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == [
        "step-00000003",
        "step-00000004",
    ]


def test_a_failed_write_leaves_the_old_folder_and_no_draft(tmp_path, monkeypatch):
    folder = save_tiny(tmp_path)
    before = (folder / "model.safetensors").read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ldm_dream.model_folder.save_file", full)
    with pytest.raises(ModelError, match="No space left"):
        save_model(folder, diffusion_run(tmp_path), {}, "new")
    assert (folder / "model.safetensors").read_bytes() == before
    assert not list(tmp_path.glob(".*.tmp"))
