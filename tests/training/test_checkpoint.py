"""Model folders and checkpoints are whole or not there, and what is broken is named."""

import shutil

import pytest
import torch
import yaml

from ldm_dream.config.autoencoder import VQGANConfig
from ldm_dream.model_folder import (
    ModelError,
    find_model,
    load_autoencoder,
    load_model,
    own_autoencoder,
    read_run,
    save_model,
    weights_digest,
    write_tensors,
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


def test_a_run_folder_means_its_best_model_and_else_its_last(tmp_path):
    run = tmp_path / "run"
    autoencoder_folder(run / "model")
    (run / "config.yaml").write_text("task: autoencoder")
    assert find_model(run) == run / "model"
    autoencoder_folder(run / "model-best")
    assert find_model(run) == run / "model-best"
    assert find_model(run / "model") == run / "model"


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


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_named(tmp_path, value):
    run = diffusion_run(tmp_path)
    state = build_network(run.network).state_dict()
    next(iter(state.values())).view(-1)[0] = value
    save_model(tmp_path / "model", run, state, "a card")
    with pytest.raises(ModelError, match="1 weights hold NaN or infinity, the first is "):
        load_model(tmp_path / "model")


def test_weights_of_another_kind_of_number_are_named(tmp_path):
    run = diffusion_run(tmp_path)
    state = build_network(run.network).state_dict()
    name = next(iter(state))
    save_model(tmp_path / "model", run, state | {name: state[name].int()}, "a card")
    with pytest.raises(ModelError, match="1 weights do not fit config.yaml"):
        load_model(tmp_path / "model")


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


def save(run_dir, *steps, keep=2, keep_every=None):
    for step in steps:
        save_checkpoint(run_dir, step, {"x": torch.full((30,), float(step))}, {}, keep, keep_every)


def names(run_dir):
    return sorted(path.name for path in (run_dir / "checkpoints").iterdir())


def flip(path, place=-3):
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def test_checkpoints_at_multiples_are_kept_for_good(tmp_path):
    save(tmp_path, *range(2, 17, 2), keep=1, keep_every=6)
    assert names(tmp_path) == ["step-00000006", "step-00000012", "step-00000016"]


@pytest.mark.parametrize("damage", ["cut", "bit", "meta", "gone"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_taken(tmp_path, caplog, damage):
    save(tmp_path, 1, 2)
    folder = tmp_path / "checkpoints" / "step-00000002"
    path = folder / "state.safetensors"
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:20])
    elif damage == "gone":
        path.unlink()
    else:
        flip(folder / "meta.json" if damage == "meta" else path)
    found = latest_checkpoint(tmp_path)
    assert found and found.step == 1 and torch.equal(found.tensors["x"], torch.ones(30))
    assert "step-00000002" in caplog.text


def test_only_the_newest_checkpoints_are_kept(tmp_path):
    save(tmp_path, *range(5))
    assert names(tmp_path) == ["step-00000003", "step-00000004"]


def test_new_checkpoints_stay_beside_damaged_later_ones(tmp_path):
    save(tmp_path, 1, 10, 11, keep=3)
    for name in ("step-00000010", "step-00000011"):
        flip(tmp_path / "checkpoints" / name / "state.safetensors")
    for step in (2, 3, 4):
        save(tmp_path, step)
        assert latest_checkpoint(tmp_path).step == step
    assert names(tmp_path) == [f"step-{step:08d}" for step in (3, 4, 10, 11)]


def test_what_was_put_among_checkpoints_stays_and_misleads_nobody(tmp_path):
    save(tmp_path, 1)
    folder = tmp_path / "checkpoints"
    shutil.copytree(folder / "step-00000001", folder / "step-best")
    (folder / "step-tmp").mkdir()
    (folder / "notes.txt").write_text("mine")
    for step in (2, 3):
        save(tmp_path, step, keep=1)
        assert latest_checkpoint(tmp_path).step == step
    assert names(tmp_path) == ["notes.txt", "step-00000003", "step-best", "step-tmp"]


def test_where_no_checkpoint_is_whole_nothing_starts_from_0(tmp_path):
    save(tmp_path, 1)
    flip(tmp_path / "checkpoints/step-00000001/state.safetensors")
    with pytest.raises(ModelError, match="no whole checkpoint; put one back"):
        latest_checkpoint(tmp_path)


def test_a_flipped_bit_in_a_model_is_named(tmp_path):
    path = save_tiny(tmp_path) / "model.safetensors"
    flip(path)
    with pytest.raises(ModelError, match="not those that were written"):
        load_model(path.parent)


def test_a_latent_model_keeps_its_autoencoder(tmp_path):
    """Training the autoencoder further, or moving folders, changes no picture of the model."""
    run, folder = diffusion_run(tmp_path), tmp_path / "model"
    cfg, tensors = own_autoencoder(run.autoencoder)
    known = run.model_copy(update={"autoencoder": cfg})
    save_model(folder, known, build_network(run.network).state_dict(), "a card", tensors)
    shutil.rmtree(tmp_path / "vq")
    moved = folder.rename(tmp_path / "moved")
    model = load_model(moved)
    assert model.run.autoencoder.pretrained is None
    assert model.run.autoencoder.sha256 == cfg.sha256 == weights_digest(tensors)
    z = model.autoencoder.encode(torch.zeros(1, 3, 16, 16))
    assert z.shape == (1, 4, 4, 4)
    wrong = {name: value + 1 for name, value in tensors.items()}
    write_tensors(moved / "autoencoder.safetensors", wrong)
    (moved / "SHA256SUMS").unlink()
    with pytest.raises(ModelError, match="not the autoencoder that this model was trained with"):
        load_model(moved)


def test_a_bundled_autoencoder_is_known_by_its_name_and_digest():
    cfg, tensors = own_autoencoder(VQGANConfig(pretrained="vq-f4-fast"))
    assert tensors is None and cfg.pretrained == "vq-f4-fast"
    assert cfg.sha256 == load_model("dream-latent-x4-tiny").run.autoencoder.sha256
