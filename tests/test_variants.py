"""Variants of DREAM's loss: those that are in the product give its loss, and each trains."""

from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import record, variants
from benchmarks.__main__ import build_parser
from benchmarks.choices import PLAIN
from benchmarks.choices import VARIANTS as NAMES
from benchmarks.trainings import diffusion_run
from benchmarks.variant_losses import VARIANTS, variant_loss
from benchmarks.variants_table import at_equal_psnr
from ldm_dream.config.process import Dream
from ldm_dream.denoiser import Denoiser
from ldm_dream.loss import diffusion_loss
from ldm_dream.networks import build_network
from ldm_dream.process import build_process
from tests.runs import pictures

TINY = [
    "network.model_channels=8",
    "network.swin_embed_dim=16",
    "network.num_head_channels=8",
    "network.num_res_blocks=[1,1]",
    "network.norm=layer",
]


@pytest.fixture(scope="module", params=["native-latent", "ddpm-latent"])
def setting(request):
    """A denoiser of a system, and a batch of every step that differs."""
    sizes = TINY + (["network.channel_mult=[1,2]"] if request.param == "ddpm-latent" else [])
    run = diffusion_run(f"configs/tiny/{request.param}.yaml", sizes)
    torch.manual_seed(0)
    process = build_process(run.process)
    denoiser = Denoiser(build_network(run.network), process, run.condition, run.prediction)
    for parameter in denoiser.network.parameters():  # the last layers begin at zero
        torch.nn.init.normal_(parameter, std=0.05)
    z0, z_lr, eps = torch.randn(3, 4, 8, 32, 32)
    t = torch.linspace(0, process.num_timesteps - 1, 4).round().long()
    return denoiser, z0, denoiser.prepare(torch.randn(4, 3, 32, 32), z_lr), t, eps


def loss_of(name, setting: Any, dream=None):
    torch.manual_seed(0)
    return variant_loss(VARIANTS[name], *setting, dream=dream or Dream())


@pytest.mark.parametrize(
    ("name", "dream"),
    [
        (PLAIN, Dream(strength=0.0)),
        ("DREAM", Dream(strength=1.0)),
        ("DREAM, p = 0", Dream(strength=1.0, p=0.0)),
    ],
)
def test_what_the_product_has_is_its_loss(setting: Any, name, dream):
    wanted = diffusion_loss(*setting, dream=dream)
    found = loss_of(name, setting, dream)
    torch.testing.assert_close(found.loss, wanted.loss, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.z0_hat, wanted.z0_hat, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_each_differs_from_the_plain_loss_and_gives_the_same_again(setting, name):
    found, again, plain = (loss_of(n, setting).loss for n in (name, name, PLAIN))
    assert found.isfinite().all() and torch.equal(found, again)
    assert not torch.equal(found, plain)
    found.mean().backward()
    gradients = [p.grad for p in setting[0].network.parameters() if p.grad is not None]
    assert gradients and all(gradient.isfinite().all() for gradient in gradients)


def test_the_share_of_noise_is_dreams_own_strength_for_ddpm():
    process = build_process(diffusion_run("configs/tiny/ddpm-latent.yaml", []).process)
    at = process.at(torch.arange(50))
    torch.testing.assert_close(at.s / (at.a**2 + at.s**2).sqrt(), at.weight)


def test_a_rollout_ends_where_the_sampler_has_been(setting):
    """At the last step nothing was sampled yet: the true z_t, and the plain loss."""
    denoiser, z0, inputs, t, eps = setting
    rolled, plain = (loss_of(name, setting).loss for name in ("rollout", PLAIN))
    assert torch.equal(rolled[-1], plain[-1]) and rolled[0] != plain[0]


def test_the_choices_are_what_there_is():
    assert tuple(VARIANTS) == (PLAIN, *NAMES)


def test_equal_psnr_is_found_on_the_curve():
    ones = np.ones((3, 5))
    curve = [(20 * ones, 0.2 * ones), (24 * ones, 0.4 * ones)]
    mean, low, high = at_equal_psnr(21 * ones, 0.2 * ones, curve)
    assert mean == pytest.approx(-0.05) and low == pytest.approx(high) == pytest.approx(-0.05)
    beyond = at_equal_psnr(25 * ones, 0.3 * ones, curve)
    assert beyond.mean == pytest.approx(-0.1), "the end of the curve, which has less PSNR"


def test_a_run_trains_each_once_for_equal_time(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(variants, "pace", lambda *_: {PLAIN: 1.0, "coin": 2.0})
    photos = pictures(tmp_path / "photos", 2, 64)
    words = ["variants", "--hr", str(photos), "--crop", "64", "--seeds", "0"]
    words += ["--variants", "coin", "--sampling", "1", "2", "--runs", str(tmp_path / "runs")]
    words += ["--json", str(tmp_path / "rows.jsonl")]
    knobs = [*TINY, f"data.train=[{photos}]", f"data.val=[{photos}]", "data.patch=64"]
    knobs += ["lpips_weights=null", "network.image_size=16", "train.steps=4"]
    args = build_parser().parse_args([*words, "--set", *knobs])
    variants.main(args)
    rows = record.read(tmp_path / "rows.jsonl")
    steps = {row["variant"]: row["metrics"]["training_steps"] for row in rows}
    assert steps == {PLAIN: 4, "coin": 2}
    assert all(len(row["metrics"]["psnr_y/2"]) == 2 for row in rows)
    assert "| coin " in capsys.readouterr().out
    variants.main(args)
    assert record.read(tmp_path / "rows.jsonl") == rows, "what is there is not made again"
