"""Benchmark `engines`: the parts of a picture by PyTorch and by runtimes beside it."""

import sys

import pytest
import torch

from benchmarks import engines, record
from benchmarks.__main__ import build_parser
from benchmarks.choices import ENGINES
from ldm_dream.errors import UserError
from ldm_dream.model_folder import load_model
from runs import pixel_model


@pytest.fixture(autouse=True)
def no_last_layer_of_zeros(monkeypatch):
    """As training begins; the output would be 0."""

    def loaded(name):
        model = load_model(name)
        for parameter in model.network.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        return model

    monkeypatch.setattr(engines, "load_model", loaded)


def measured(tmp_path, *words):
    model, out = pixel_model(tmp_path / "model"), tmp_path / "rows.jsonl"
    words = ["engines", "-n", str(model), "--size", "4", *words, "--json", str(out)]
    engines.main(build_parser().parse_args([*words, "--repetitions", "2"]))
    return {row["variant"]: row["metrics"] for row in record.read(out)}


def test_every_engine_that_may_be_named_is_there():
    assert tuple(engines.FUNCTIONS) == ENGINES


def test_engines_stand_beside_pytorch_and_say_how_far_they_are_apart(tmp_path, capsys):
    pytest.importorskip("onnxruntime")
    found = measured(tmp_path, "--engines", "eager", "onnxruntime")
    assert set(found) == {"denoiser, eager", "denoiser, onnxruntime"}
    assert found["denoiser, eager"]["relative_error"] == 0
    assert 0 < found["denoiser, onnxruntime"]["relative_error"] < 1e-4
    assert "| denoiser | onnxruntime |" in " ".join(capsys.readouterr().out.split())


def test_bf16_is_as_far_from_fp32_as_its_rounding(tmp_path):
    found = measured(tmp_path, "--engines", "eager", "--dtype", "bf16")
    assert 1e-4 < found["denoiser, eager"]["relative_error"] < 0.05


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--engines", "openvino"], r"^openvino is not installed; pip install 'ldm_dream\[bench"),
        (["--engines", "onnxruntime", "--dtype", "bf16"], "^ONNX Runtime computes in fp32"),
    ],
)
def test_an_engine_that_cannot_run_is_one_sentence(words, sentence, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(UserError, match=sentence):
        measured(tmp_path, *words)
