"""Benchmark `parts`: where the time of an upscaled picture goes."""

import pytest

from benchmarks import parts, record
from benchmarks.__main__ import build_parser
from ldm_dream.errors import UserError
from ldm_dream.upscaling.diffusion import Diffusion
from ldm_dream.upscaling.upscaler import Upscaler
from runs import pixel_model


def test_the_parts_of_a_pictures_time_are_all_of_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(parts, "conv_peak", lambda device, dtype: 1e9)
    model, out = pixel_model(tmp_path / "model"), tmp_path / "rows.jsonl"
    words = ["parts", "-n", str(model), "--size", "16", "--repetitions", "2", "--json", str(out)]
    parts.main(build_parser().parse_args(words))
    found = {row["variant"]: row["metrics"] for row in record.read(out)}
    assert set(found) == {"encoder", "network", "decoder", parts.REST}
    assert sum(metrics["share"] for metrics in found.values()) == pytest.approx(1)
    assert found["network"]["gflop_per_megapixel"] > 0 == found["decoder"]["gflop_per_megapixel"]
    assert "| network " in capsys.readouterr().out


def test_parts_are_themselves_again_after_they_were_measured(tmp_path):
    engine = Upscaler.from_pretrained(pixel_model(tmp_path / "model")).engine
    assert isinstance(engine, Diffusion)
    before, kept = engine.denoiser.call, engine.autoencoder.encode

    def fails() -> None:
        raise UserError("stop")

    with pytest.raises(UserError):
        parts.seconds_of_parts(engine, fails)
    assert engine.denoiser.call is before
    assert engine.autoencoder.encode == kept
