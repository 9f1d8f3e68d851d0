"""What tools/bundle.py writes among the bundled models, and what it refuses to write over."""

import runpy
import sys
from pathlib import Path

import pytest
import torch

from ldm_dream import model_config
from ldm_dream.config.autoencoder import VQGANConfig
from ldm_dream.config.run import AutoencoderLossConfig, AutoencoderRun, DiffusionRun
from ldm_dream.config.train import TrainConfig
from ldm_dream.model_config import read_run
from ldm_dream.model_folder import read_tensors, save_model

TOOL = Path(__file__).resolve().parents[2] / "tools/bundle.py"


@pytest.fixture
def bundle(monkeypatch, tmp_path):
    """The tool on a model of one weight, into a folder of bundled models in `tmp_path`: a name and
    the model, if another -> None.
    """
    save_model(tmp_path / "model", DiffusionRun(), {"w": torch.ones(2)}, "old card")
    (tmp_path / "card.md").write_text("new card")
    monkeypatch.setattr(model_config, "BUNDLED", tmp_path / "bundled")

    def run(name: str, model: Path = tmp_path / "model", card: Path = tmp_path / "card.md") -> None:
        words = [str(TOOL), str(model), name, "--card", str(card)]
        monkeypatch.setattr(sys, "argv", words)
        runpy.run_path(str(TOOL), run_name="__main__")

    return run


def test_a_model_is_bundled_in_half_precision_with_its_card(bundle, tmp_path):
    for _ in range(2):  # the second time in place of the first
        bundle("mine")
    folder = tmp_path / "bundled/mine"
    assert read_tensors(folder / "model.safetensors")["w"].dtype == torch.float16
    assert (folder / "README.md").read_text() == "new card"


TAUGHT = AutoencoderLossConfig(teacher=VQGANConfig(pretrained="vq-f4-tiny"), latent=1.0)


@pytest.mark.parametrize(
    "loss, freeze",
    [(TAUGHT, ("quantize",)), (AutoencoderLossConfig(), ("encoder", "quant_conv", "quantize"))],
)
def test_latents_that_models_know_keep_their_scale(bundle, tmp_path, loss, freeze):
    """Those of a teacher, and of an encoder that stayed."""
    known = AutoencoderRun(
        autoencoder=VQGANConfig(latent_scale=1.5), loss=loss, train=TrainConfig(freeze=freeze)
    )
    save_model(tmp_path / "known", known, {"w": torch.ones(2)}, "card")
    bundle("mine", tmp_path / "known")
    assert read_run(tmp_path / "bundled/mine").autoencoder == known.autoencoder


def test_a_frozen_encoder_alone_does_not_keep_the_scale():
    train = TrainConfig(freeze=("encoder",))
    assert not AutoencoderRun(train=train).keeps_latents, "quant_conv makes latents too"


@pytest.mark.parametrize(
    "words, text",
    [
        ({"name": "../model"}, "is no name of a model"),
        ({"name": ".."}, "is no name of a model"),
        ({"name": "theirs"}, "holds letter.txt, which was not written here"),
        ({"name": "itself", "model": "bundled/itself"}, "is the bundled model itself"),
        ({"name": "mine", "card": "no.md"}, "no card can be read from it"),
    ],
)
def test_nothing_else_is_written_over(bundle, tmp_path, capsys, words, text):
    (tmp_path / "bundled/theirs").mkdir(parents=True)
    (tmp_path / "bundled/theirs/letter.txt").write_text("dear")
    save_model(tmp_path / "bundled/itself", DiffusionRun(), {"w": torch.ones(2)}, "card")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(SystemExit) as end:
        bundle(
            **{key: value if key == "name" else tmp_path / value for key, value in words.items()}
        )
    assert end.value.code == 2 and text in capsys.readouterr().err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
