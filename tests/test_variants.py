"""Variants of DREAM's loss: what the product has gives its loss, the others do what they say, and a run
trains each with its own.
"""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import record, trainings, variants
from benchmarks.__main__ import build_parser
from benchmarks.choices import PLAIN
from benchmarks.choices import VARIANTS as NAMES
from benchmarks.trainings import diffusion_run
from benchmarks.variant_losses import LOSSES, MORE, Variant, rollout, variant_loss
from benchmarks.variants_table import at_equal_psnr, gained
from benchmarks.variants_table import variants as table
from ldm_dream.config.process import Dream
from ldm_dream.denoiser import Denoiser
from ldm_dream.errors import UserError
from ldm_dream.loss import diffusion_loss
from ldm_dream.model_folder import load_model
from ldm_dream.networks import build_network
from ldm_dream.process import build_process
from ldm_dream.sampler import sample_steps
from tests.runs import pictures

TINY = [
    "network.model_channels=8",
    "network.channel_mult=[1,2]",
    "network.swin_embed_dim=16",
    "network.num_head_channels=8",
    "network.num_res_blocks=[1,1]",
    "network.image_size=16",
    "network.norm=layer",
]
NATIVE, LATENT = "native-latent", "ddpm-latent"


def setting_of(name: str) -> Any:
    """Denoiser, z0, inputs, t, eps: a batch of four steps from the first to the last."""
    run = diffusion_run(f"configs/tiny/{name}.yaml", TINY)
    torch.manual_seed(0)
    process = build_process(run.process)
    denoiser = Denoiser(build_network(run.network), process, run.condition, run.prediction)
    for parameter in denoiser.network.parameters():  # the last layers begin at zero
        torch.nn.init.normal_(parameter, std=0.05)
    z0, z_lr, eps = torch.randn(3, 4, 8, 16, 16)
    t = torch.linspace(0, process.num_timesteps - 1, 4).round().long()
    return denoiser, z0, denoiser.prepare(torch.randn(4, 3, 16, 16), z_lr), t, eps


@pytest.fixture(params=[NATIVE, LATENT])
def setting(request) -> Any:
    return setting_of(request.param)


def loss_of(name: str, setting: Any):
    # as the training does, whose `loss.strength` is 0
    return variant_loss(LOSSES[name], *setting, dream=Dream(strength=0.0))


def rectified(name: str, setting: Any) -> torch.Tensor:
    """z_t' of a variant."""
    seen = []

    def spy(batch):
        seen.append(LOSSES[name].rectify(batch))
        return seen[0]

    variant_loss(Variant(spy), *setting, dream=Dream())
    return seen[0]


def noisy(setting: Any, z_t: torch.Tensor) -> torch.Tensor:
    """The unit noise that z_t and z0 imply."""
    denoiser, z0, inputs, t, _ = setting
    at = denoiser.numbers(t, z0)
    return (z_t - at.a * z0 - at.b * inputs.z_lr) / at.s


@pytest.mark.parametrize(
    ("name", "dream"),
    [
        (PLAIN, Dream(strength=0.0)),
        ("DREAM", Dream(strength=1.0, p=1.0)),
        ("DREAM, p = 0", Dream(strength=1.0, p=0.0)),
    ],
)
def test_what_the_product_has_is_its_loss(setting, name, dream):
    wanted, found = diffusion_loss(*setting, dream=dream), loss_of(name, setting)
    torch.testing.assert_close(found.loss, wanted.loss, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.z0_hat, wanted.z0_hat, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_each_is_a_function_of_the_batch_with_a_gradient(setting, name):
    found, again, plain = (loss_of(n, setting).loss for n in (name, name, PLAIN))
    assert found.isfinite().all() and torch.equal(found, again)
    assert not torch.equal(found, plain)
    found.mean().backward()
    gradients = [p.grad for p in setting[0].network.parameters() if p.grad is not None]
    assert gradients and all(gradient.isfinite().all() for gradient in gradients)


def test_the_share_of_noise_is_dreams_own_strength_for_ddpm():
    setting = setting_of(LATENT)
    torch.testing.assert_close(loss_of("share", setting).loss, loss_of("DREAM", setting).loss)
    setting = setting_of(NATIVE)
    assert not torch.allclose(rectified("share", setting), rectified("DREAM", setting))


def test_a_coin_moves_a_sample_the_whole_way_or_not_at_all(setting):
    whole, none, coin = (rectified(name, setting) for name in ("DREAM, p = 0", PLAIN, "coin"))
    sides = [
        torch.allclose(one, all_of_it, atol=1e-5) or torch.equal(one, nothing)
        for one, all_of_it, nothing in zip(coin, whole, none)
    ]
    assert all(sides)


def test_a_rollout_is_where_the_sampler_has_been(setting):
    denoiser, z0, inputs, t, eps = setting
    seeds, noises = [], [eps]

    def spy(batch):
        seeds.append(batch.generator.initial_seed())
        return rollout(batch)

    variant_loss(Variant(spy), *setting, dream=Dream())
    generator = torch.Generator().manual_seed(seeds[0])
    sampling = diffusion_run(f"configs/tiny/{LATENT}.yaml", []).sampler
    sampling = sampling.model_copy(update={"kind": denoiser.process.samplers[0]})
    noises += [
        torch.randn(z0.shape, generator=generator) for _ in range(denoiser.process.num_timesteps)
    ]
    denoiser.network.eval()
    last = denoiser.process.num_timesteps - 1
    been = {last: denoiser.process.prior(inputs.z_lr, eps)}
    for step in sample_steps(denoiser, inputs, sampling, lambda k: noises[k]):
        been[step.t - 1] = step.z_t
    wanted = torch.stack([been[int(index)][i] for i, index in enumerate(t)])
    torch.testing.assert_close(rectified("rollout", setting), wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["one step", "rollout"])
def test_a_network_that_knows_z0_is_led_to_the_true_distribution(name):
    denoiser, z0, inputs, t, eps = setting = setting_of(NATIVE)

    # what the network is asked about, in this order; at last the whole batch
    asked = [slice(0, 1), slice(1, 2), slice(2, 3)] if name == "one step" else map(slice, (3, 2, 1))
    said = iter([*(z0[samples] for samples in asked), z0])
    denoiser.call = lambda z, emb, *features: next(said)
    noise = noisy(setting, rectified(name, setting))[:3]
    assert noise.mean((1, 2, 3)).abs().max() < 0.1
    assert (noise.std((1, 2, 3)) - 1).abs().max() < 0.1
    assert not torch.allclose(noise, eps[:3])


def test_perturbed_has_more_noise_than_it_learns():
    denoiser, _, _, _, eps = setting = setting_of(LATENT)
    more = noisy(setting, rectified("perturbed", setting)) - eps
    assert abs(more.std() / MORE - 1) < 0.05
    denoiser.call = lambda z, emb, *features: eps
    assert loss_of("perturbed", setting).loss.abs().max() < 1e-6


def test_min_snr_weighs_the_steps_with_mean_one():
    setting = setting_of(NATIVE)  # a batch with each of its four steps once
    weights = loss_of("min-SNR", setting).loss / loss_of(PLAIN, setting).loss
    assert weights.mean().item() == pytest.approx(1, abs=1e-4)
    at = setting[0].numbers(setting[3], setting[1])
    snr = (at.a / at.s).square().flatten()
    torch.testing.assert_close(weights[1] / weights[0], (snr[1] / 5).sqrt().clamp(max=1))
    torch.testing.assert_close(weights[3] / weights[0], (snr[3] / 5).sqrt(), rtol=1e-3, atol=0)


def test_low_frequencies_are_means_of_four_places(setting):
    denoiser, z0, _, t, _ = setting
    with_them, without = (loss_of(name, setting) for name in ("DREAM, low frequencies", "DREAM"))
    error = denoiser.numbers(t, z0).a * (without.z0_hat - z0)
    means = error.unflatten(-1, (4, 4)).unflatten(-3, (4, 4)).mean((-3, -1))
    wanted = without.loss + means.abs().flatten(1).mean(1)
    torch.testing.assert_close(with_them.loss, wanted, rtol=1e-4, atol=1e-5)


def test_the_choices_are_what_there_is():
    assert tuple(LOSSES) == (PLAIN, *NAMES)


# ------------------------------------------------------------------------------------------ the table


def test_equal_psnr_is_found_on_the_curve():
    ones = np.ones((3, 5))
    curve = [(20 * ones, 0.2 * ones), (24 * ones, 0.4 * ones)]
    found = at_equal_psnr(21 * ones, 0.2 * ones, curve)
    assert found is not None and found == pytest.approx((-0.05, -0.05, -0.05))
    beyond = at_equal_psnr(25 * ones, 0.3 * ones, curve)
    assert beyond is not None and beyond.mean == pytest.approx(-0.1), "the end, with less PSNR"
    assert gained(19 * ones, 0.1 * ones, curve) == "less PSNR-Y than plain"


def test_the_interval_draws_seeds_and_pictures_as_pairs():
    pictures = np.array([[0.0, 1.0], [2.0, 3.0]])
    curve = [(pictures, pictures), (pictures + 1, pictures + 1)]
    same = at_equal_psnr(pictures + 0.5, pictures + 0.5, curve)
    assert same == pytest.approx((0, 0, 0)), "what varies alike in both is no uncertainty"
    other = at_equal_psnr(pictures + 0.5, pictures[::-1] + 0.5, curve)
    assert other is not None and other.low < -1 and other.high > 1


def row(variant: str, seed: int, level: float, **others) -> record.Row:
    asked = {"set": [], "seed": seed, "full": 9, "pictures": ["A"], "count": 2, "crop": 64}
    asked |= {"sampling": [1, 2], **others}
    metrics = {"step_seconds": 1.0, "training_steps": 9}
    for n in asked["sampling"]:
        metrics |= {f"psnr_y/{n}": [21.0 - n, 21.0 - n], f"lpips/{n}": [level, level]}
    machine = {"gpu": None}
    about = {"subject": "c", "variant": variant, "settings": asked, "date": str(level)}
    return {**about, "metrics": metrics, "machine": machine}


def test_only_rows_of_one_recipe_are_set_beside_each_other():
    rows = [row(PLAIN, 0, 0.4), row("coin", 0, 0.3), row("coin", 1, 0.3)]
    other = [row(PLAIN, 0, 0.2, sampling=[1]), row("coin", 0, 0.1, full=7)]
    head, plain, coin = table([*other, *rows])
    assert coin[:6] == ["coin", "1.000", "9", "1", "19.000", "0.300"]
    assert coin[6] == "-0.100 (-0.100 to -0.100)" and plain[6] == ""
    assert len(head) == len(coin) == 7, "a score that none has is no column"


# -------------------------------------------------------------------------------------------- the run


def arguments(tmp_path: Path, *words: str):
    photos = pictures(tmp_path / "photos", 2, 64)
    said = ["variants", "--hr", str(photos), "--crop", "64", "--seeds", "0", "--steps", "4"]
    said += ["--variants", "coin", "--sampling", "1", "2", "--runs", str(tmp_path / "runs")]
    said += ["--json", str(tmp_path / "rows.jsonl"), *words]
    knobs = [*TINY, f"data.train=[{photos}]", f"data.val=[{photos}]", "data.patch=64"]
    return build_parser().parse_args([*said, "--set", "lpips_weights=null", *knobs])


def test_a_run_trains_each_with_its_loss_and_once(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(variants, "pace", lambda *_: {PLAIN: 1.0, "coin": 1.0})
    args = arguments(tmp_path)
    variants.main(args)
    rows = record.read(tmp_path / "rows.jsonl")
    assert [row["variant"] for row in rows] == [PLAIN, "coin"]
    assert all(len(row["metrics"]["psnr_y/2"]) == 2 for row in rows)
    assert "| coin " in capsys.readouterr().out
    weights = [
        next(load_model(tmp_path / f"runs/{name}-0-4/model").network.parameters())
        for name in (PLAIN, "coin")
    ]
    assert not torch.equal(*weights)
    variants.main(args)
    assert record.read(tmp_path / "rows.jsonl") == rows, "what is there is not made again"


def test_each_takes_the_time_of_the_plain_loss(tmp_path, monkeypatch):
    commands = []

    def python(words):
        commands.append(words)
        place = Path(words[words.index("--run-dir") + 1])
        place.mkdir(parents=True, exist_ok=True)
        rate = 4.0 if words[2] == PLAIN else 2.0
        (place / "metrics.jsonl").write_text(4 * f'{{"steps_per_second": {rate}}}\n')

    monkeypatch.setattr(trainings, "python", python)
    model = SimpleNamespace(dtype=torch.float32)
    monkeypatch.setattr(variants.Upscaler, "from_pretrained", lambda folder: model)
    monkeypatch.setattr(variants, "enlarged", lambda *_, **how: [])
    monkeypatch.setattr(variants, "scores", lambda *_: {"psnr_y": [20.0, 21.0]})
    variants.main(arguments(tmp_path))
    plain, coin = commands[-2:]
    tool = ["-m", "benchmarks.variant_losses"]
    assert plain[:3] == [*tool, PLAIN] and "train.steps=4" in plain
    assert coin[:3] == [*tool, "coin"] and "train.steps=2" in coin
    with pytest.raises(UserError, match="was taken without share"):
        variants.main(arguments(tmp_path, "--variants", "share"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--set", "seed=3"], "sets seed itself"),
        (["--limit", "1"], "2 pictures"),
        (["--sampling", "9"], "steps=9"),
        (["--config", "configs/tiny/sr3-face.yaml"], "sample in latents"),
        (["--set", "prediction=residual"], "take eps, z0 or v"),
        (["--set", "sampler.kind=ddim"], "ancestral sampler"),
    ],
)
def test_what_cannot_work_is_said_before_the_hours(tmp_path, monkeypatch, words, said):
    monkeypatch.setattr(variants, "pace", lambda *_: pytest.fail("it trains"))
    args = arguments(tmp_path)
    others = build_parser().parse_args(["variants", "--hr", "x", *words])
    for name in ("limit", "sampling", "config"):
        if f"--{name}" in words:
            setattr(args, name, getattr(others, name))
    args.set = others.set if "--config" in words else [*args.set, *others.set]
    with pytest.raises(UserError, match=said):
        variants.main(args)
