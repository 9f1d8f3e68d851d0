"""Models released from a run: of its checkpoints too, with a card, and over nothing else."""

import runpy
import shutil
import sys
from pathlib import Path

import pytest
import torch

from ldm_dream.config.run import AutoencoderRun
from ldm_dream.model_folder import ModelError, load_model, read_tensors
from ldm_dream.networks.vqgan import VQGAN
from ldm_dream.training.release import ReleaseError, averaged_state, release
from ldm_dream.training.train import train
from ldm_dream.writing import WriteError
from runs import VQGAN_TINY, diffusion_run

TOOL = Path(__file__).resolve().parents[2] / "tools/release.py"


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A run folder of 4 steps with checkpoints and validations at 2 and 4."""
    tmp = tmp_path_factory.mktemp("release")
    every = {"save_every": 2, "val_every": 2, "log_every": 4, "keep_checkpoints": 9}
    train(diffusion_run(tmp, steps=4, **every), tmp / "run")
    return tmp / "run"


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return read_tensors(folder / "model.safetensors")


def test_a_checkpoint_is_released_with_its_averaged_weights_and_card(trained, tmp_path):
    checkpoints = trained / "checkpoints"
    release(checkpoints / "step-00000004", tmp_path / "four")
    release(checkpoints / "step-00000002", tmp_path / "two")
    last, four, two = map(weights, (trained / "model", tmp_path / "four", tmp_path / "two"))
    assert last.keys() == four.keys() and all(torch.equal(last[key], four[key]) for key in last)
    assert not all(torch.equal(two[key], four[key]) for key in four)
    load_model(tmp_path / "two")
    card = (tmp_path / "two/README.md").read_text()
    assert "- Steps: 2 of 4 made." in card and "Validation at step 2: val/psnr_y" in card
    assert "- 5 pictures of `" in card and str(tmp_path.parent) not in card


@pytest.mark.parametrize(
    "gone, source", [((), "model-best"), (("model-best",), "model"), (("model-best", "model"), "4")]
)
def test_a_run_gives_its_best_model_its_last_or_its_checkpoint(trained, tmp_path, gone, source):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    for name in gone:
        shutil.rmtree(run / name)
    said = release(run, tmp_path / "given")
    load_model(tmp_path / "given")
    if source == "4":
        assert said == "the averaged weights of step 4"
    else:
        assert said == str(run / source)
        assert (tmp_path / "given/README.md").read_bytes() == (
            run / source / "README.md"
        ).read_bytes()
    release(run, tmp_path / "given")  # again: in place of its own


def test_only_a_new_or_a_model_folder_outside_the_run_is_written(trained, tmp_path):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs/letter.txt").write_text("dear")
    checkpoint = trained / "checkpoints/step-00000002"
    shutil.copytree(checkpoint, tmp_path / "copy")
    before = set(trained.rglob("*"))
    for source in (trained, checkpoint):
        for folder in (trained / "model", checkpoint, trained / "new", trained):
            with pytest.raises(ReleaseError, match="is the run's own; name a folder outside"):
                release(source, folder)
        for folder in (tmp_path / "theirs", tmp_path / "copy"):
            with pytest.raises(WriteError, match="which was not written here; name a new"):
                release(source, folder)
    with pytest.raises(WriteError, match="a file"):
        release(trained, tmp_path / "theirs/letter.txt")
    assert set(trained.rglob("*")) == before
    assert (tmp_path / "theirs/letter.txt").read_text() == "dear"


def test_a_damaged_model_is_not_given_away(trained, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    path = run / "model-best/model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ModelError, match="cut short or damaged"):
        release(run, tmp_path / "given")
    assert not (tmp_path / "given").exists()


def test_an_autoencoder_checkpoint_has_its_weights_below_trained_model():
    run = AutoencoderRun(autoencoder=VQGAN_TINY)
    model = VQGAN(VQGAN_TINY)
    tensors = {f"trained.model.{name}": value for name, value in model.state_dict().items()}
    tensors |= {f"ema.{i}": p.detach() + 1 for i, p in enumerate(model.parameters())}
    state = averaged_state(run, tensors)
    for name, parameter in model.named_parameters():
        assert torch.equal(state[name], parameter + 1)
    del tensors["ema.3"]
    with pytest.raises(ReleaseError, match="lacks ema.3"):
        averaged_state(run, tensors)


def test_the_tool_says_what_it_made_and_a_mistake_in_one_sentence(
    trained, tmp_path, monkeypatch, capsys
):
    def tool(*words: object) -> None:
        monkeypatch.setattr(sys, "argv", [str(TOOL), *map(str, words)])
        runpy.run_path(str(TOOL), run_name="__main__")

    tool(trained, "-o", tmp_path / "given")
    assert f"{tmp_path / 'given'}: {trained / 'model-best'}" in capsys.readouterr().out
    with pytest.raises(SystemExit) as end:
        tool(tmp_path / "no", "-o", tmp_path / "given")
    assert end.value.code == 2 and "neither a model folder" in capsys.readouterr().err


def test_latents_are_measured_before_anything_is_written(trained, tmp_path):
    with pytest.raises(ReleaseError, match="no autoencoder; leave out --latent-scale"):
        release(trained, tmp_path / "given", (str(tmp_path),))
    assert not (tmp_path / "given").exists()
