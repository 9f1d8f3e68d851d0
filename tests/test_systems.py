"""DREAM on every system, end to end: five steps with known losses, and a gradient against the
formula written out in float64.
"""

import json
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

from ldm_dream.config.run import DiffusionRun
from ldm_dream.data.pairs import Batch
from ldm_dream.networks.autoencoders import build_autoencoder
from ldm_dream.training.diffusion import DiffusionObjective
from runs import VQGAN_TINY, predict

RESSHIFT = {
    "kind": "resshift", "image_size": 8, "in_channels": 4, "out_channels": 4, "cond_channels": 7, "model_channels": 16,
    "channel_mult": [1, 2], "num_res_blocks": 1, "attention_resolutions": [8], "swin_embed_dim": 16, "num_head_channels": 8,
    "window_size": 4, "norm": "layer",
}  # fmt: skip
PIXEL_NET = {
    "image_size": 32, "model_channels": 8, "channel_mult": [1, 2], "num_res_blocks": 1, "attention_resolutions": [16],
    "norm_groups": 4, "dropout": 0.0,
}  # fmt: skip
LATENT = {"autoencoder": VQGAN_TINY, "network": RESSHIFT, "condition": ["lr", "z_lr"]}
DDPM = {"kind": "ddpm", "num_timesteps": 2000}
SYSTEMS = {
    "sr3": {"network": {"kind": "sr3", **PIXEL_NET}, "process": {**DDPM, "continuous": True}, "prediction": "eps",
            "condition": ["z_lr"]},
    "idm": {"network": {"kind": "idm", "encoder_blocks": 1, "encoder_channels": 8, **PIXEL_NET}, "process": DDPM,
            "prediction": "eps", "condition": ["lr"]},
    "resshift-ddpm": {**LATENT, "process": {**DDPM, "respace": 50}, "prediction": "eps"},
    "resshift-native": {**LATENT, "process": {"kind": "residual_shift", "num_timesteps": 4}, "prediction": "z0"},
    "flow": {**LATENT, "process": {"kind": "flow", "num_timesteps": 100}, "prediction": "v"},
}  # fmt: skip
LOSSES = Path(__file__).with_name("system_losses.json")  # made by: python tests/test_systems.py


def objective(name: str) -> tuple[DiffusionObjective, Batch]:
    """A system with weights that are nowhere zero, and a batch of two smooth pictures of 32 pixels."""
    torch.manual_seed(0)
    run = DiffusionRun(loss={"strength": 1.0, "p": 1.0}, **SYSTEMS[name])
    system = DiffusionObjective(run, build_autoencoder(run.autoencoder).requires_grad_(False))
    torch.manual_seed(0)  # how many numbers the first weights took depends on torch's version
    for parameter in system.model.parameters():
        torch.nn.init.normal_(
            parameter, std=0.1 if parameter.ndim == 1 else parameter[0].numel() ** -0.5
        )
    hr = torch.nn.functional.interpolate(
        torch.rand(2, 3, 4, 4) * 2 - 1, size=32, mode="bicubic"
    ).clamp(-1, 1)
    return system, Batch(hr, torch.nn.functional.avg_pool2d(hr, 4))


def five_losses(name: str) -> list[float]:
    system, batch = objective(name)
    optimizer = torch.optim.AdamW(system.model.parameters(), lr=1e-3)
    losses = []
    for step in range(5):
        loss, _ = system.loss(batch, step, torch.Generator().manual_seed(step))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("name", SYSTEMS)
def test_five_steps_of_dream_give_the_losses_they_gave(name):
    assert five_losses(name) == pytest.approx(json.loads(LOSSES.read_text())[name], rel=2e-4)


@pytest.mark.parametrize("name", SYSTEMS)
def test_the_gradient_is_that_of_the_formula_in_float64(name):
    system, batch = objective(name)
    loss, _ = system.loss(batch, 0, torch.Generator().manual_seed(0))
    loss.backward()
    got = {key: p.grad.double() for key, p in system.model.named_parameters()}

    run, process = system.run, system.process
    z0, z_lr = (z.double() for z in system.latents(batch))
    generator = torch.Generator().manual_seed(0)
    t, eps = process.draw(2, generator), torch.randn(z0.shape, generator=generator).double()
    system.model.double().zero_grad()
    a, b, s, weight = (
        factor(t, torch.float64) for factor in (process.a, process.b, process.s, process.weight)
    )
    lr = batch.lr.double()  # x4 behind 4x down: as large as the latent
    cond = {"sr3": [z_lr], "idm": [lr]}.get(name, [lr, z_lr])
    told = a.flatten() if name in ("sr3", "idm") else process.timesteps[t]
    scale = (1 + s**2).sqrt() if name == "resshift-native" else 1.0  # ResShift's normalised input

    def network(z_t: torch.Tensor) -> torch.Tensor:
        return predict(system.model, z_t / scale, told, torch.cat(cond, 1))

    z_t = a * z0 + b * z_lr + s * eps
    with torch.no_grad():
        first = network(z_t)
    if run.prediction == "z0":
        eps_hat = (z_t - a * first - b * z_lr) / s
    elif run.prediction == "v":
        eps_hat = (s * z_t + a * first) / (a**2 + s**2)
    else:
        eps_hat = first
    delta = weight * (eps - eps_hat)
    target = {"eps": eps + delta, "z0": z0, "v": a * (eps + delta) - s * z0}[run.prediction]
    (network(z_t + s * delta) - target).abs().mean().backward()
    for key, parameter in system.model.named_parameters():
        error = (got[key] - parameter.grad).norm() / parameter.grad.norm()
        assert error < 2e-3, f"{key}: {error:.1e}"


@pytest.mark.parametrize("name", SYSTEMS)
def test_an_estimate_in_bf16_changes_the_loss_by_its_rounding(name):
    """The stated bound of loss.estimate_precision: eps_hat off by 2 % of its root mean square, the
    loss by 2 %.
    """
    system, batch = objective(name)
    losses, estimates = [], []
    for change in ({}, {"estimate_precision": "bf16"}, {"min_lam": 1.0}):
        loss = system.run.loss.model_copy(update=change)
        system.run = system.run.model_copy(update={"loss": loss})
        outputs = []
        system.denoiser.call = lambda *x, to=outputs: to.append(system.model(*x)) or to[-1]
        losses.append(system.loss(batch, 0, torch.Generator().manual_seed(0))[0].item())
        estimates.append([output.float() for output in outputs[:-1]])  # the last one is trained
    (exact,), (rounded,), none = estimates
    assert 0 < (rounded - exact).square().mean().sqrt() < 0.02 * exact.square().mean().sqrt()
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    assert none == [] and losses[2] != losses[1]


@pytest.mark.parametrize("name", SYSTEMS)
def test_what_does_not_depend_on_z_t_is_made_once_for_both_passes(name, monkeypatch):
    system, batch = objective(name)
    spies = {
        method: Mock(wraps=getattr(system.model, method))
        for method in ("forward", "embed", "prepare")
    }
    for method, spy in spies.items():
        monkeypatch.setattr(system.model, method, spy)
    system.loss(batch, 0, torch.Generator().manual_seed(0))
    assert {method: spy.call_count for method, spy in spies.items()} == dict.fromkeys(spies, 1) | {
        "forward": 2
    }


if __name__ == "__main__":
    LOSSES.write_text(json.dumps({name: five_losses(name) for name in SYSTEMS}, indent=1) + "\n")
