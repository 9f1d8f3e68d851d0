"""The critic beside a diffusion model, and the steps of its sampler in training."""

from importlib.util import find_spec

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from ldm_dream.config.process import Sampling
from ldm_dream.config.run import AdversarialConfig, AutoencoderRun, DiffusionRun
from ldm_dream.model_folder import load_autoencoder
from ldm_dream.training.critic import Critic
from ldm_dream.training.diffusion import DiffusionObjective
from ldm_dream.training.release import release
from ldm_dream.training.train import train
from runs import diffusion_run, rows_of

taming = pytest.mark.skipif(
    find_spec("taming") is None,
    reason="taming-transformers (extra `train`) is not installed",
)
SMALL = {"adversarial": 0.5, "discriminator_channels": 4, "discriminator_layers": 2}


def judged_run(tmp_path, **train) -> DiffusionRun:
    run = diffusion_run(tmp_path, **train)
    loss = {"strength": 1.0, "pixel": 1.0, "decode_samples": 2, "adversarial_start": 2, **SMALL}
    return DiffusionRun.model_validate(run.model_dump() | {"loss": loss})


@taming
def test_a_critic_begins_at_its_step_and_resumes_bit_for_bit(tmp_path):
    run = judged_run(tmp_path, decay="none")
    train(run, tmp_path / "whole")
    half = run.train.model_copy(update={"steps": 3})
    train(run.model_copy(update={"train": half}), tmp_path / "cut")
    train(run, tmp_path / "cut")
    rows = [row for row in rows_of(tmp_path / "whole") if "loss/network" in row]
    assert ["hinge" in row for row in rows] == [False, False, True, True, True, True]
    assert rows[2]["grad_norm/discriminator"] > 0 and rows[2]["adversarial"] != 0
    name = "checkpoints/step-00000006/state.safetensors"
    whole, cut = (load_file(tmp_path / folder / name) for folder in ("whole", "cut"))
    assert any(key.startswith("trained.discriminator") for key in whole)
    assert whole.keys() == cut.keys() and all(torch.equal(whole[key], cut[key]) for key in whole)
    release(tmp_path / "whole" / "checkpoints" / "step-00000006", tmp_path / "released")
    models = [
        load_file(tmp_path / folder / "model.safetensors") for folder in ("whole/model", "released")
    ]
    assert not any("discriminator" in key for key in models[0])
    assert models[0].keys() == models[1].keys()
    assert all(torch.equal(models[0][key], models[1][key]) for key in models[0])


@taming
def test_the_critics_gradient_is_a_share_of_the_reconstructions():
    torch.manual_seed(0)
    critic = Critic(AdversarialConfig(**SMALL))
    at = torch.rand(2, 3, 32, 32, requires_grad=True)
    real, fake = torch.rand(2, 3, 32, 32), at * 2 - 1
    reconstruction = (fake - real).abs().mean()
    wanted = torch.autograd.grad(reconstruction, at, retain_graph=True)[0]
    wanted = wanted.detach()
    joined, adversarial = critic.joined(real, fake, reconstruction, at)
    joined.backward()
    assert at.grad is not None
    share = (at.grad - wanted).norm() / wanted.norm()
    torch.testing.assert_close(share, torch.tensor(0.5), rtol=0.02, atol=0)
    weight = (joined - reconstruction) / adversarial
    again = at * 2 - 1
    by_hand = (again - real).abs().mean() - weight.detach() * critic.discriminator(again).mean()
    (expected,) = torch.autograd.grad(by_hand, at)
    torch.testing.assert_close(at.grad, expected)
    assert all(p.grad is None for p in critic.discriminator.parameters())
    hinge, logged = critic.loss(None, 0, torch.Generator())  # type: ignore  # of the pair above
    hinge.backward()
    assert logged["hinge"] == hinge.detach()
    assert all(p.grad is not None for p in critic.discriminator.parameters())


@taming
def test_the_critic_sees_pictures_of_the_decoder_on_both_sides(tmp_path):
    run = judged_run(tmp_path)
    autoencoder = load_autoencoder(run.autoencoder)
    objective, seen = DiffusionObjective(run, autoencoder), []
    assert objective.critic is not None
    objective.critic.joined = lambda *given: seen.extend(given) or given[2:]
    hr, z0, z0_hat = torch.rand(3, 3, 32, 32), torch.rand(3, 4, 8, 8), torch.rand(3, 4, 8, 8)
    objective.picture_loss(hr, z0, z0_hat.requires_grad_(), 2, torch.Generator())
    real, fake = (autoencoder.decode(z[:2]) for z in (z0, z0_hat))
    assert torch.equal(seen[0], real) and torch.equal(seen[1], fake)


def test_lpips_of_a_decoded_estimate_is_of_a_cut_that_the_config_names(tmp_path):
    run = diffusion_run(tmp_path)
    loss = run.loss.model_copy(update={"lpips": 1.0, "lpips_shift": 3})
    seen = []

    def lpips(made, wanted):
        seen.append((made.shape[-1], wanted.shape[-1]))
        return (made - wanted).abs().mean()

    autoencoder = load_autoencoder(run.autoencoder)
    run = run.model_copy(update={"loss": loss})
    objective = DiffusionObjective(run, autoencoder, {"lpips": lpips})  # type: ignore
    hr, z0 = torch.rand(2, 3, 32, 32), torch.rand(2, 4, 8, 8)
    objective.picture_loss(hr, z0, z0, 0, torch.Generator())
    assert seen == [(29, 29)]


@pytest.mark.parametrize("steps, visited", [(1, [3]), (2, [0, 3])])
def test_the_first_samples_are_at_the_samplers_steps(steps, visited, tmp_path):
    run = diffusion_run(tmp_path)
    loss = run.loss.model_copy(update={"sampler_share": 0.5})
    run = run.model_copy(update={"loss": loss, "sampler": Sampling(kind="resshift", steps=steps)})
    objective = DiffusionObjective(run, load_autoencoder(run.autoencoder))
    t = objective.steps(64, torch.Generator().manual_seed(0))
    assert sorted(set(t[:32].tolist())) == visited
    assert sorted(set(t[32:].tolist())) == [0, 1, 2, 3]


def test_without_a_share_steps_are_as_the_process_draws_them(tmp_path):
    run = diffusion_run(tmp_path)
    objective = DiffusionObjective(run, load_autoencoder(run.autoencoder))
    seeds = [torch.Generator().manual_seed(0) for _ in range(2)]
    assert torch.equal(objective.steps(9, seeds[0]), objective.process.draw(9, seeds[1]))
    assert torch.equal(seeds[0].get_state(), seeds[1].get_state())


@pytest.mark.parametrize("make", [AutoencoderRun, DiffusionRun])
def test_a_critic_wants_large_patches_and_a_term_to_be_weighed_by(make):
    terms = {"l1": 1.0} if make is AutoencoderRun else {"pixel": 1.0}
    none = dict.fromkeys(terms, 0.0) | {"lpips": 0.0}
    with pytest.raises(ValidationError, match="PatchGAN of 2 layers wants 12"):
        make.model_validate({"loss": SMALL | none | terms, "data": {"patch": 8}})
    with pytest.raises(ValidationError, match="which are all 0"):
        make.model_validate({"loss": SMALL | none, "data": {"patch": 64}})
