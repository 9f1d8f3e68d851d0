"""The training loop: resumes bit for bit, stops at what is not finite, trains both kinds of runs."""

import json
import math
from pathlib import Path

import pytest
import torch
from processes import as_ranks
from safetensors.torch import load_file

from ldm_dream.config.data import DataConfig
from ldm_dream.config.run import AutoencoderRun, DiffusionRun
from ldm_dream.config.train import TrainConfig
from ldm_dream.data import windows
from ldm_dream.data.blind import degrade_as_planned
from ldm_dream.data.pairs import PairDataset
from ldm_dream.data.resize import upsample
from ldm_dream.errors import UserError
from ldm_dream.model_folder import load_autoencoder, load_model, resolve_autoencoder
from ldm_dream.networks.idm import ImplicitUNet
from ldm_dream.networks.vqgan import VQGAN
from ldm_dream.scoring.metrics import MetricUnavailable
from ldm_dream.training.autoencoder import CodeUsage
from ldm_dream.training.check import check_run
from ldm_dream.training.diffusion import DiffusionObjective
from ldm_dream.training.latents import LatentDataset
from ldm_dream.training.results import best_step
from ldm_dream.training.train import train
from ldm_dream.training.trainer import TrainingError, learning_rate
from ldm_dream.upscaling.upscaler import Upscaler
from runs import VQGAN_TINY, autoencoder_folder, diffusion_run, pictures, rows_of

ROOT = Path(__file__).resolve().parents[2]


def test_a_finished_run_leaves_a_model_folder_that_loads(tmp_path):
    train(diffusion_run(tmp_path), tmp_path / "run")
    model = load_model(tmp_path / "run" / "model")
    assert model.run.scale == 4
    rows = rows_of(tmp_path / "run")
    assert [row["step"] for row in rows if "loss/network" in row] == [1, 2, 3, 4, 5, 6]
    assert any("val/psnr_y" in row for row in rows)
    assert (tmp_path / "run" / "samples" / "step-00000006.png").is_file()


def test_a_non_finite_loss_stops_before_the_optimizer_step(tmp_path, monkeypatch):
    run = diffusion_run(tmp_path)
    real = DiffusionObjective.loss

    def broken(self, batch, step, generator):
        loss, logged = real(self, batch, step, generator)
        return (loss * math.nan if step == 4 else loss), logged

    monkeypatch.setattr(DiffusionObjective, "loss", broken)
    with pytest.raises(
        TrainingError, match="step 4: loss or gradient of part network is not finite"
    ):
        train(run, tmp_path / "run")
    kept = load_file(tmp_path / "run" / "checkpoints" / "step-00000003" / "state.safetensors")
    assert all(v.isfinite().all() for v in kept.values())


def autoencoder_run(tmp_path, frozen: bool = False, **loss) -> AutoencoderRun:
    return AutoencoderRun(
        task="autoencoder",
        autoencoder=VQGAN_TINY,
        loss={"lpips": 0.0} | loss,
        data={"train": (str(pictures(tmp_path / "hr")),), "patch": 32},
        train={
            "steps": 6,
            "batch_size": 2,
            "precision": "fp32",
            "log_every": 1,
            "save_every": 6,
            "learning_rate": 1e-3,
            "freeze": ("quantize",) if frozen else (),
        },
    )


def test_an_autoencoder_run_trains_its_codebook_and_its_discriminator(tmp_path):
    pytest.importorskip(
        "taming.modules.discriminator.model",
        reason="taming-transformers (extra `train`) is not installed",
    )
    run = autoencoder_run(tmp_path, codebook_start=2, adversarial=0.5, adversarial_start=3)
    train(run, tmp_path / "run")
    rows = rows_of(tmp_path / "run")
    assert ["codes_used" in row for row in rows] == [False, False, True, True, True, True]
    assert ["adversarial" in row for row in rows] == [False, False, False, True, True, True]
    assert ["hinge" in row for row in rows] == [False, False, False, True, True, True]
    assert rows[3]["hinge"] > 0 and rows[3]["grad_norm/discriminator"] > 0


def test_frozen_parameters_stay_and_fine_tuning_keeps_the_codebook(tmp_path):
    run = autoencoder_run(tmp_path)
    start = autoencoder_folder(tmp_path / "start")
    tuned = run.train.model_copy(
        update={
            "init_from": str(start),
            "freeze": ("encoder", "quant_conv", "quantize"),
            "steps": 2,
        }
    )
    train(run.model_copy(update={"train": tuned}), tmp_path / "run")
    before, after = (
        load_file(folder / "model.safetensors") for folder in (start, tmp_path / "run" / "model")
    )
    for name in before:
        moved = not torch.equal(before[name], after[name])
        assert moved == name.startswith(("decoder", "post_quant_conv")), name


def test_a_mistyped_prefix_to_freeze_is_named_with_those_there_are(tmp_path):
    run = autoencoder_run(tmp_path)
    wrong = run.train.model_copy(update={"freeze": ("encoders",)})
    with pytest.raises(UserError, match="'encoders'; they begin with encoder, decoder, quantize"):
        train(run.model_copy(update={"train": wrong}), tmp_path / "run")


def test_dead_codes_are_moved_onto_latents():
    torch.manual_seed(0)
    model, usage = VQGAN(VQGAN_TINY), CodeUsage(VQGAN_TINY.n_embed, initialised=True)
    x = torch.rand(1, 3, 32, 32)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        model.quantize.embedding.weight.fill_(1e3)
        model.quantize.embedding.weight[0] = 0
    usage.note(model(x)[1], x)
    logged = usage.after_step(model, 1, generator)
    assert logged["codes_used"] == 1 / VQGAN_TINY.n_embed
    assert logged["codes_revived"] == VQGAN_TINY.n_embed - 1
    assert model.quantize.embedding.weight.abs().max() < 1e2


def test_codes_are_idle_by_steps_whatever_a_step_accumulates():
    torch.manual_seed(0)
    model, usage = VQGAN(VQGAN_TINY), CodeUsage(VQGAN_TINY.n_embed, initialised=True)
    x, generator = torch.rand(1, 3, 32, 32), torch.Generator()
    with torch.no_grad():
        model.quantize.embedding.weight.fill_(1e3)
        model.quantize.embedding.weight[0] = 0
        for _ in range(3):
            usage.note(model(x)[1], x)
        usage.after_step(model, 200, generator)
    assert usage.idle.tolist() == [0] + [1] * (VQGAN_TINY.n_embed - 1)
    assert usage.after_step(model, 200, generator) == {}  # before quantisation begins


@pytest.mark.parametrize("kind", ["bicubic", "blind"])
def test_cached_latents_are_those_of_the_batch_and_the_pool_repeats(tmp_path, kind, monkeypatch):
    run = diffusion_run(tmp_path)
    run = run.model_copy(
        update={"data": DataConfig(**run.data.model_dump() | {"degradation": {"kind": kind}})}
    )
    degraded = []
    monkeypatch.setattr(
        windows,
        "degrade_as_planned",
        lambda *args: degraded.append(args[-1]) or degrade_as_planned(*args),
    )
    autoencoder = load_autoencoder(resolve_autoencoder(run.autoencoder))
    data = LatentDataset(PairDataset(run.data, run.scale, 0), autoencoder, 4, with_hr=True)
    visited = [data.batch(step, 2) for step in range(6)]
    for batch in visited:
        # kept in half precision
        torch.testing.assert_close(batch.z0, autoencoder.encode(batch.hr), atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(
            batch.z_lr, autoencoder.encode(upsample(batch.lr, (32, 32))), atol=1e-3, rtol=1e-3
        )
    # once each, as they are encoded once each
    assert sum(map(len, degraded)) == (4 if kind == "blind" else 0)
    rounds = [{draw for batch in visited[i : i + 2] for draw in batch.draws} for i in (0, 2, 4)]
    assert len(rounds[0]) == 4 and rounds[0] == rounds[1] == rounds[2]
    resumed = LatentDataset(
        PairDataset(run.data, run.scale, 0), autoencoder, 4, with_hr=True
    ).batch(5, 2)
    for name in ("hr", "lr", "z0", "z_lr"):
        assert torch.equal(getattr(resumed, name), getattr(visited[5], name))


@pytest.mark.parametrize("cached", [None, 4])
def test_bf16_trains_with_and_without_cached_latents(tmp_path, cached):
    run = diffusion_run(tmp_path)
    changes = {"data": {"cache_latents": cached}, "train": {"precision": "bf16", "steps": 2}}
    changes = {
        name: getattr(run, name).model_copy(update=update) for name, update in changes.items()
    }
    train(run.model_copy(update=changes), tmp_path / "run")
    rows = rows_of(tmp_path / "run")
    assert (
        all(math.isfinite(value) for row in rows for value in row.values())
        and rows[-1]["step"] == 2
    )


@pytest.mark.parametrize(("step", "want"), [(0, 0.1), (9, 1.0), (10, 1.0), (55, 0.6), (100, 0.2)])
def test_learning_rate_warms_up_and_follows_the_cosine(step, want):
    cfg = TrainConfig(steps=100, learning_rate=1.0, learning_rate_end=0.2, warmup_steps=10)
    assert learning_rate(cfg, step) == pytest.approx(want, abs=1e-9)


def test_the_best_step_is_the_first_with_the_best_figure():
    figures = [(1, 20.0, 0.3), (2, 21.0, 0.4), (3, 21.0, 0.2), (4, None, None)]
    rows = {step: {"val/psnr_y": psnr, "val/lpips": lpips} for step, psnr, lpips in figures}
    assert best_step(rows, "psnr_y") == 2 and best_step(rows, "lpips") == 3
    assert best_step({}, "psnr_y") is None


def test_a_distance_of_the_sets_is_validated_and_chooses_the_best(tmp_path):
    wanted = {"val_distance": "frechet_efficientnet_lite0", "best": "distance", "val_images": 3}
    run = diffusion_run(tmp_path, steps=4, val_every=2, **wanted)
    train(run, tmp_path / "run")
    found = {row["step"]: row for row in rows_of(tmp_path / "run") if "val/psnr_y" in row}
    assert list(found) == [2, 4] and all(row["val/distance"] > 0 for row in found.values())
    least = min(found, key=lambda step: found[step]["val/distance"])
    assert best_step(found, "distance") == least


def test_fid_without_its_weights_ends_before_a_run_begins(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "none"))
    run = diffusion_run(tmp_path, val_distance="fid", val_images=2)
    with pytest.raises(MetricUnavailable, match="put torch-fidelity's weights-inception"):
        train(run, tmp_path / "run")
    assert not (tmp_path / "run/checkpoints").exists()


@pytest.mark.parametrize(
    ("knobs", "says"),
    [
        ({"train": {"best": "distance"}}, "train.best=distance needs train.val_distance"),
        (
            {"train": {"val_distance": "fid", "val_images": 1}},
            "set train.val_images to 2 or more",
        ),
        ({"inception_weights": "x.pth"}, "has no effect without train.val_distance: fid"),
    ],
)
def test_a_distance_that_has_no_effect_or_is_missing_is_refused(knobs, says):
    with pytest.raises(ValueError, match=says):
        DiffusionRun.model_validate(knobs)


def test_logged_losses_are_means_over_all_micro_batches(tmp_path):
    """One row over two steps of two micro-batches is the mean of four rows of one."""
    rows = []
    for name, changes in (
        ("each", {"accumulate": 1, "steps": 4, "log_every": 1}),
        ("means", {"accumulate": 2, "steps": 2, "log_every": 2}),
    ):
        run = diffusion_run(tmp_path, learning_rate=1e-12, val_images=0, **changes)
        train(run, tmp_path / name)
        text = (tmp_path / name / "metrics.jsonl").read_text()
        rows.append([json.loads(line)["loss/network"] for line in text.splitlines()])
    each, means = rows
    assert len(each) == 4 and len(means) == 1 and len(set(each)) == 4
    assert means[0] == pytest.approx(sum(each) / 4, rel=1e-5)


def idm_run(tmp_path) -> DiffusionRun:
    """At any scale from 1 to 4, of LR patches of 8 pixels."""
    return DiffusionRun(
        prediction="eps",
        process={"kind": "ddpm", "num_timesteps": 10, "beta_end": 0.5},
        sampler={"kind": "ddim", "steps": 1},
        network={
            "kind": "idm", "image_size": 32, "model_channels": 8, "channel_mult": (1, 2), "num_res_blocks": 1,
            "attention_resolutions": (), "norm_groups": 4, "encoder_blocks": 1, "encoder_channels": 8, "max_scale": 4,
        },
        loss={"strength": 1.0},
        data={"train": (str(pictures(tmp_path / "hr")),), "patch": 32, "scales": (1, 4)},
        train={"steps": 6, "batch_size": 2, "precision": "fp32", "log_every": 1},
    )  # fmt: skip


def test_idm_is_told_in_training_what_it_is_told_in_upscaling(tmp_path, monkeypatch):
    told = set()  # (HR side, position of the scale between 1 and the largest)
    forward = ImplicitUNet.forward

    def listen(self, z_t, emb, picture, levels, position):
        told.add((z_t.shape[-1], position.item()))
        return forward(self, z_t, emb, picture, levels, position)

    monkeypatch.setattr(ImplicitUNet, "forward", listen)
    train(idm_run(tmp_path), tmp_path / "run")
    trained = set(told)
    assert len(trained) >= 4 and all(
        8 <= side <= 32 and 0 <= position <= 1 for side, position in trained
    )
    told.clear()
    upscaler = Upscaler.from_pretrained(tmp_path / "run" / "model", device="cpu")
    for side, _ in trained:
        assert upscaler(torch.zeros(3, 8, 8), scale=side / 8).shape == (3, side, side)
    assert told == trained


@pytest.mark.parametrize("kind", ["idm", "autoencoder"])  # idm: micro-batches of different sizes
def test_two_processes_train_as_one_that_accumulates_two_batches(tmp_path, kind):
    run = idm_run(tmp_path) if kind == "idm" else autoencoder_run(tmp_path)
    alone = run.model_copy(update={"train": run.train.model_copy(update={"accumulate": 2})})
    train(alone, tmp_path / "one")
    assert as_ranks(2, train, run, tmp_path / "two") == [0, 0]
    want, got = (
        load_file(tmp_path / name / "model" / "model.safetensors") for name in ("one", "two")
    )
    for name, value in want.items():
        torch.testing.assert_close(got[name], value, atol=1e-6, rtol=1e-5)
    rows = rows_of(tmp_path / "two")
    assert [row["step"] for row in rows if any(key.startswith("loss/") for key in row)] == [
        1,
        2,
        3,
        4,
        5,
        6,
    ]


FOLDED = {"patch": 4, "ch": 16, "ch_mult": (1,)}  # VQGAN_TINY's latents, made at their own size


def student_run(tmp_path, steps: int, **own) -> AutoencoderRun:
    start = autoencoder_folder(tmp_path / "teacher")
    run = autoencoder_run(
        tmp_path,
        codebook=0,
        commitment=0,
        teacher={"pretrained": str(start)},
        latent=4.0,
        frozen=True,
    )
    changes = {"steps": steps, "save_every": steps, "learning_rate": 1e-2}
    return run.model_copy(
        update={
            "autoencoder": VQGAN_TINY.model_copy(update=FOLDED | own),
            "train": run.train.model_copy(update=changes),
        }
    )


def test_a_student_learns_the_latents_of_its_teacher_on_its_codebook(tmp_path):
    run = student_run(tmp_path, steps=60)
    train(check_run(run, tmp_path / "run"), tmp_path / "run")
    rows = rows_of(tmp_path / "run")
    found = [row["latent"] for row in rows if "latent" in row]
    assert found[-1] < found[0] / 2
    theirs, own = (
        load_file(tmp_path / folder / "model.safetensors") for folder in ("teacher", "run/model")
    )
    assert torch.equal(own["quantize.embedding.weight"], theirs["quantize.embedding.weight"])


def test_a_student_has_latents_of_the_form_of_its_teachers(tmp_path):
    run = student_run(tmp_path, steps=1, latent_scale=2.0)
    with pytest.raises(UserError, match="has latent_scale=1.0, this autoencoder 2.0; set them"):
        check_run(run, tmp_path / "run")


def test_a_teacher_without_weight_is_refused():
    teacher = {"pretrained": "vq-f4-tiny"}
    with pytest.raises(ValueError, match="nor loss.teacher without loss.latent"):
        AutoencoderRun(loss={"teacher": teacher})
    with pytest.raises(ValueError, match="the codebook of loss.teacher stays"):
        AutoencoderRun(loss={"teacher": teacher, "latent": 1.0})
