"""What surrounds a training step: precisions, early end, live curves, traces, shared validation."""

import json
import math
import os
import subprocess
import sys
import time
import types
from contextlib import suppress
from pathlib import Path

import pytest
import torch
import yaml
from processes import as_ranks
from safetensors.torch import load_file

from ldm_dream.data.images import read_image
from ldm_dream.errors import UserError
from ldm_dream.model_config import read_run
from ldm_dream.model_folder import own_autoencoder, read_tensors, save_model
from ldm_dream.training import state
from ldm_dream.training.diffusion import DiffusionObjective
from ldm_dream.training.precision import precision_of
from ldm_dream.training.train import train
from ldm_dream.training.trainer import Finite, Means, TrainingError
from runs import diffusion_run, rows_of

CPU = torch.device("cpu")


def test_fp16_scales_its_loss_and_resumes_with_its_scale(tmp_path):
    whole = diffusion_run(tmp_path, precision="fp16")
    train(whole, tmp_path / "whole")
    half = whole.train.model_copy(update={"steps": 3})
    train(whole.model_copy(update={"train": half}), tmp_path / "cut")
    train(whole, tmp_path / "cut")
    name = "checkpoints/step-00000006/state.safetensors"
    kept, again = load_file(tmp_path / "whole" / name), load_file(tmp_path / "cut" / name)
    assert kept["scaler.scale"] > 1 and kept["scaler.growth_tracker"] > 0
    for part in ("scaler.scale", "scaler.growth_tracker"):
        assert kept[part] == again[part]
    assert all(math.isfinite(row["loss/network"]) for row in rows_of(tmp_path / "whole")[:6])


def test_an_overflow_under_fp16_leaves_a_step_out():
    scaler = precision_of("fp16", CPU).scaler
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.AdamW([weight], lr=0.1, fused=True)
    scaler.scale((weight * torch.tensor(math.inf)).sum()).backward()
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()
    assert torch.equal(weight.detach(), torch.ones(2)) and scaler.get_scale() == 2.0**15


def test_the_first_step_that_was_not_finite_is_remembered():
    finite = Finite(CPU)
    finite.look(3, torch.tensor(1.0))
    assert finite.failed() is None
    for step, value in ((5, math.nan), (6, 1.0), (7, math.inf)):
        finite.look(step, torch.tensor(1.0), torch.tensor(value))
    assert finite.failed() == 5


def test_nothing_is_saved_after_a_step_that_was_not_finite(tmp_path, monkeypatch):
    """Also where no line of the log lies between."""
    real = DiffusionObjective.loss

    def broken(self, batch, step, generator):
        loss, logged = real(self, batch, step, generator)
        return (loss * math.nan if step == 4 else loss), logged

    monkeypatch.setattr(DiffusionObjective, "loss", broken)
    run = diffusion_run(tmp_path, log_every=100, val_every=5)
    with pytest.raises(TrainingError, match="step 4"):
        train(run, tmp_path / "run")
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000003"]
    assert not (tmp_path / "run" / "model").exists()


def test_means_are_of_what_was_added_since_they_were_taken():
    means = Means()
    for value in (1.0, 2.0, 6.0):
        means.add({"a": torch.tensor(value)})
    means.add({"b": torch.tensor(5.0)})
    assert means.take() == {"a": 3.0, "b": 5.0} and means.take() == {}


def test_a_run_without_a_better_validation_ends_early_and_stays_ended(
    tmp_path, capsys, monkeypatch
):
    figures = iter([20.0, 21.0, 20.5, 20.7, 30.0, 31.0])
    monkeypatch.setattr(
        "ldm_dream.training.results.validate", lambda *_: {"val/psnr_y": next(figures)}
    )
    run = diffusion_run(tmp_path, steps=50, val_every=2, patience=2, save_every=100)
    assert train(run, tmp_path / "run") == 0
    said = "ended early at step 8, no better val/psnr_y than that of step 4 in 2 validations"
    assert said in capsys.readouterr().out
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000008"]
    assert train(run, tmp_path / "run") == 0
    assert said in capsys.readouterr().out and next(figures) == 30.0
    more = run.train.model_copy(update={"patience": 3, "steps": 9})
    assert train(run.model_copy(update={"train": more}), tmp_path / "run") == 0
    assert "from step 8" in capsys.readouterr().out


def test_tensorboard_gets_each_line_while_the_run_goes_on(tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    train(diffusion_run(tmp_path, tracker="tensorboard", val_every=3), tmp_path / "run")
    found = events.EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    found.Reload()
    assert [e.step for e in found.Scalars("loss/network")] == [1, 2, 3, 4, 5, 6]
    assert [e.step for e in found.Scalars("val/psnr_y")] == [3, 6]


@pytest.mark.parametrize("kind", ["wandb", "trackio"])
def test_a_service_gets_the_config_and_each_line(kind, tmp_path, monkeypatch):
    calls = []
    fake = types.SimpleNamespace(
        init=lambda **given: calls.append(("init", given)),
        log=lambda figures, step: calls.append((step, figures)),
        finish=lambda: calls.append(("finish", None)),
    )
    monkeypatch.setitem(sys.modules, kind, fake)
    run = diffusion_run(tmp_path, tracker=kind, steps=2)
    train(run, tmp_path / "run")
    assert calls[0][1]["config"]["train"]["tracker"] == kind and calls[0][1]["resume"] == "allow"
    assert [step for step, figures in calls[1:-1] if "loss/network" in figures] == [1, 2]
    assert calls[-1][0] == "finish"
    first = calls[0][1]["name"]
    longer = run.train.model_copy(update={"steps": 3})
    train(run.model_copy(update={"train": longer}), tmp_path / "run")
    assert calls[-1 - len([c for c in calls if c[0] == 3]) - 1][1]["name"] == first


def test_a_tracker_that_is_not_installed_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="needs the package wandb; install it with: pip install"):
        train(diffusion_run(tmp_path, tracker="wandb"), tmp_path / "run")


def test_a_trace_of_so_many_steps_is_written(tmp_path):
    train(diffusion_run(tmp_path), tmp_path / "run", profile=2)
    trace = json.loads((tmp_path / "run" / "trace.json").read_text())
    assert any("conv" in event.get("name", "") for event in trace["traceEvents"])


def test_processes_share_validation_and_find_the_same(tmp_path):
    run = diffusion_run(tmp_path, steps=2, val_every=1, val_images=5, accumulate=2, batch_size=1)
    train(run, tmp_path / "one")
    shared = run.train.model_copy(update={"accumulate": 1})
    shared = run.model_copy(update={"train": shared})
    assert as_ranks(2, train, shared, tmp_path / "two") == [0, 0]
    want, got = (
        [row for row in rows_of(tmp_path / name) if "val/psnr_y" in row] for name in ("one", "two")
    )
    assert [row["step"] for row in got] == [row["step"] for row in want] == [1, 2]
    for a, b in zip(want, got):
        assert b["val/psnr_y"] == pytest.approx(a["val/psnr_y"], abs=2e-3)
    grids = [read_image(tmp_path / name / "samples/step-00000002.png") for name in ("one", "two")]
    assert grids[0].pixels.shape == grids[1].pixels.shape
    assert abs(grids[0].pixels.astype(int) - grids[1].pixels).max() <= 2


def test_figures_do_not_depend_on_how_pictures_are_batched(tmp_path):
    run = diffusion_run(tmp_path, steps=1, val_every=1, val_images=5, val_crop=32)
    found = []
    for batch_size in (1, 4):
        sized = run.train.model_copy(update={"batch_size": batch_size, "learning_rate": 1e-9})
        train(run.model_copy(update={"train": sized}), tmp_path / str(batch_size))
        found.append(rows_of(tmp_path / str(batch_size))[-1]["val/psnr_y"])
    assert found[0] == pytest.approx(found[1], abs=1e-3)


def test_workers_end_with_a_trainer_that_was_killed(tmp_path):
    run = diffusion_run(tmp_path, workers=2, steps=10_000)
    given = run.model_dump(mode="json", exclude_unset=True)
    given["autoencoder"] |= {"kind": "vqgan"}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(given))
    tool = [sys.executable, "tools/train.py", str(tmp_path / "run.yaml")]
    mark = f"RUN_OF_TEST={tmp_path}"
    trainer = subprocess.Popen(
        [*tool, "--run-dir", str(tmp_path / "run")],
        stdout=subprocess.PIPE, text=True, env=os.environ | dict([mark.split("=")]),
    )  # fmt: skip
    assert trainer.stdout is not None
    next(line for line in trainer.stdout if line.startswith("step "))
    assert len(marked(mark)) >= 4, "trainer, server, two workers"
    trainer.kill()
    trainer.wait()
    until = time.monotonic() + 20
    while marked(mark) and time.monotonic() < until:
        time.sleep(0.1)
    assert not marked(mark)


def marked(mark: str) -> list[str]:
    """Processes that live and were started with this variable."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if mark.encode() in (path / "environ").read_bytes().split(b"\0"):
                found.append(path.name)
    return found


def test_a_resume_with_other_validation_ends_early_in_all_processes(tmp_path, monkeypatch):
    """They agree on which figures compare, though the first one alone writes the history."""
    run = diffusion_run(tmp_path, steps=6, val_every=1)
    train(run, tmp_path / "run")
    changes = {"val_crop": 32, "patience": 2, "steps": 40, "learning_rate": 1e-12}
    other = run.model_copy(update={"train": run.train.model_copy(update=changes)})
    assert as_ranks(2, train, other, tmp_path / "run") == [0, 0]
    assert rows_of(tmp_path / "run")[-1]["step"] < 40


def test_processes_that_see_other_checkpoints_do_not_train(tmp_path, monkeypatch):
    monkeypatch.setattr(state, "SEEN", 1)
    monkeypatch.setattr(state.distributed, "of_first_object", lambda x: 7)
    with pytest.raises(state.StateError, match="of step 7 for the first process"):
        state.newest_for_all(tmp_path)


@pytest.mark.parametrize(
    ("other", "known", "said"),
    [(False, "", False), (True, "", True), (True, "taught", False), (True, "frozen", False)],
)
def test_weights_of_other_latents_are_named(other, known, said, tmp_path, caplog):
    """taught: by the autoencoder of those weights, so that the latents are its. frozen: the encoder
    may be that one.
    """
    run = diffusion_run(tmp_path, steps=1)
    train(run, tmp_path / "first")
    if other:
        retrained = read_tensors(tmp_path / "vq" / "model.safetensors")
        retrained = {name: value * 1.01 for name, value in retrained.items()}
        made = read_run(tmp_path / "vq")
        if known == "taught":
            loss = made.loss.model_copy(
                update={"teacher": own_autoencoder(run.autoencoder)[0], "latent": 1.0}
            )
            frozen = made.train.model_copy(update={"freeze": ("quantize",)})
            made = made.model_copy(update={"loss": loss, "train": frozen})
        if known == "frozen":
            frozen = made.train.model_copy(update={"freeze": ("encoder", "quant_conv")})
            made = made.model_copy(update={"train": frozen})
        save_model(tmp_path / "vq2", made, retrained, "a card")
        cfg = run.autoencoder.model_copy(update={"pretrained": str(tmp_path / "vq2")})
        run = run.model_copy(update={"autoencoder": cfg})
    begun = run.train.model_copy(update={"init_from": str(tmp_path / "first")})
    train(run.model_copy(update={"train": begun}), tmp_path / "second")
    assert ("knows the latents of another autoencoder" in caplog.text) == said
