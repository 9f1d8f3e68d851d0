"""With kernels (interpreted where there is no GPU) training gives the losses of the reference,
sampling its pictures.
"""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import dream_kernels
from kernel_rules import DEVICE
from ldm_dream.config.process import DDPMConfig, ResidualShiftConfig, Sampling
from ldm_dream.config.run import DiffusionRun
from ldm_dream.data.pairs import Batch
from ldm_dream.denoiser import Inputs
from ldm_dream.networks.autoencoders import build_autoencoder
from ldm_dream.process import build_process
from ldm_dream.sampler import gaussian, sample
from ldm_dream.training.diffusion import DiffusionObjective
from runs import PlainDenoiser

NETWORK = {
    "kind": "resshift", "image_size": 8, "in_channels": 3, "out_channels": 3, "cond_channels": 3, "model_channels": 8,
    "channel_mult": (1, 2), "num_res_blocks": 1, "attention_resolutions": (), "swin_embed_dim": 8, "num_head_channels": 8,
    "window_size": 4, "norm": "layer", "dropout": 0.1,
}  # fmt: skip


class Called(TorchDispatchMode):
    """Names of the dream ops that ran."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "dream":
            self.names.add(func._schema.name.partition("::")[2])
        return func(*args, **(kwargs or {}))


def losses(mode: str, steps: int = 5, **options) -> tuple[list[float], set[str]]:
    """Of a few steps of the tiny objective from one seed."""
    process = options.pop("process", {"kind": "residual_shift", "num_timesteps": 4, "kappa": 1.0})
    run = DiffusionRun(network=NETWORK, process=process, condition=("z_lr",), scale=1, **options)
    torch.manual_seed(0)
    objective = DiffusionObjective(run, build_autoencoder(run.autoencoder))
    objective.trained.to(DEVICE)
    optimizer = torch.optim.SGD(objective.parts[0].parameters, lr=0.05)
    generator = torch.Generator(DEVICE).manual_seed(1)
    hr = torch.rand(4, 3, 16, 16, generator=generator, device=DEVICE) * 2 - 1
    found, called = [], Called()
    with dream_kernels.backend(mode), called:
        for step in range(steps):
            total, _ = objective.loss(Batch(hr, hr), step, generator)
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
            found.append(total.item())
    return found, called.names


@pytest.mark.parametrize(
    "options",
    [
        {"prediction": "z0", "loss": {"strength": 1.0}},
        {
            "prediction": "eps",
            "loss": {"strength": 0.7, "kind": "l2"},
            "process": {"kind": "ddpm", "num_timesteps": 20},
        },
        {
            "prediction": "v",
            "loss": {"strength": 1.0, "kind": "huber"},
            "process": {"kind": "flow", "num_timesteps": 9},
        },
    ],
    ids=lambda options: options["prediction"],
)
def test_kernels_and_reference_train_alike(options):
    by_reference, none = losses("reference", **options)
    by_kernels, called = losses("triton", **options)
    assert none == set()
    assert {"q_sample", "dream_rectify", "dream_loss"} <= called
    assert len(set(by_reference)) == len(by_reference), "the losses do not move"
    assert by_kernels == pytest.approx(by_reference, rel=2e-5)


@pytest.mark.parametrize(
    "process, kind",
    [
        (DDPMConfig(num_timesteps=20), "ancestral"),
        (DDPMConfig(num_timesteps=20), "dpm-solver++"),
        (DDPMConfig(num_timesteps=20), "ddim"),
        (ResidualShiftConfig(num_timesteps=4, kappa=2.0), "resshift"),
        (ResidualShiftConfig(num_timesteps=4, kappa=2.0), "ddim"),
    ],
)
def test_sampling_with_kernels_gives_the_reference_pictures(process, kind):
    z_lr = torch.linspace(-1, 1, 2 * 3 * 5 * 7, device=DEVICE).view(2, 3, 5, 7)

    def denoise(z_t, t, cond):
        return torch.tanh(0.4 * z_t + 0.01 * t[:, None, None, None] + 0.3 * cond)

    def run(mode):
        called = Called()
        with dream_kernels.backend(mode), called:
            denoiser = PlainDenoiser(denoise, build_process(process), "z0")
            noise = gaussian(z_lr, torch.Generator(DEVICE).manual_seed(0))
            sampling = Sampling(kind=kind, steps=4, eta=0.5)
            z0 = sample(denoiser, Inputs(z_lr, (z_lr,)), sampling, noise)
        return z0, called.names

    (by_reference, none), (by_kernels, called) = run("reference"), run("triton")
    assert none == set() and called == {"q_sample"}
    assert by_reference.std() > 0.1
    torch.testing.assert_close(by_kernels, by_reference, rtol=1e-5, atol=1e-5)
