"""The discrepancy of training and sampling (DREAM, arXiv 2312.00210, Fig. 3): how far the network's
estimate of z0 is from the truth at each step, once where z_t is made of the truth, as in training,
and once where it is what sampling has led to.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from dream_kernels import q_sample
from ldm_dream.data.images import from_tensor
from ldm_dream.data.resize import upsample
from ldm_dream.denoiser import Denoiser
from ldm_dream.model_folder import LoadedModel
from ldm_dream.sampler import plan, sample_steps, seeded

from .peer_scores import Score
from .scored import Pairs, batches

PLACES = 10  # steps of the path that are looked at, spread evenly
TRAINING, SAMPLING = "training", "sampling"


def discrepancies(
    model: LoadedModel, pairs: Pairs, steps: int, lpips: Score | None, device: str = "cpu"
) -> dict[str, list[float]]:
    """Squared error of z0 in the latents' units, and LPIPS of the decoded estimate, by names like
    `mse/training/T`, T being an index of the process: a value a picture. All are of one size.
    """
    for module in model.modules:
        module.to(device)
    found: dict[str, list[float]] = {}
    for few in batches(pairs):
        for name, values in _of_batch(model, few, steps, lpips, device).items():
            found.setdefault(name, []).extend(values)
    return found


@torch.no_grad()
def _of_batch(
    model: LoadedModel, pairs: Pairs, steps: int, lpips: Score | None, device: str
) -> dict[str, list[float]]:
    hr = torch.cat([hr for _, hr, _ in pairs]).to(device)
    lr = torch.cat([lr for _, _, lr in pairs]).to(device)
    denoiser = Denoiser(model.network, model.process, model.run.condition, model.run.prediction)
    z0 = model.autoencoder.encode(hr)
    z_lr = model.autoencoder.encode(upsample(lr, (hr.shape[-2], hr.shape[-1])))
    sampling = model.run.sampler.model_copy(update={"steps": steps})
    path = plan(model.process, sampling)
    places = {path[round(i)] for i in np.linspace(0, len(path) - 1, min(PLACES, len(path)))}
    inputs = denoiser.prepare(lr, z_lr)
    noise, bound = seeded(0, z_lr), model.autoencoder.bound
    found: dict[str, list[float]] = {}
    for step in sample_steps(denoiser, inputs, sampling, noise, bound):
        if step.t not in places:
            continue
        t = torch.full((len(z0),), step.t, device=z0.device)
        at = denoiser.numbers(t, z0)
        z_t = q_sample(z0, z_lr, noise(0).expand_as(z0), at.a, at.b, at.s)
        output = denoiser(z_t, t, inputs)
        of_truth = model.process.to_z0(output, z_t, z_lr, at, model.run.prediction)
        if bound is not None:  # as sampling has it
            of_truth = of_truth.clamp(-bound, bound)
        for name, z0_hat in ((TRAINING, of_truth), (SAMPLING, step.z0_hat)):
            found[f"mse/{name}/{step.t}"] = (z0_hat - z0).square().mean((1, 2, 3)).tolist()
            if lpips:
                found[f"lpips/{name}/{step.t}"] = list(_lpips(model, z0_hat, pairs, lpips))
    return found


def _lpips(model: LoadedModel, z0_hat: Tensor, pairs: Pairs, lpips: Score) -> Iterator[float]:
    pictures = model.autoencoder.decode(z0_hat).clamp(-1, 1).cpu()
    for made, (_, hr, lr) in zip(pictures, pairs):
        yield lpips(*(from_tensor(x) for x in (made[None], hr, lr)))
