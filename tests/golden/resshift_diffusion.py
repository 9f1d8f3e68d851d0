"""Golden runner of ResShift's process: schedules, forward, posterior, training loss and sampling
loops of every item.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from golden.closed_form import stand_in
from golden.reading import Case
from ldm_dream.config.process import Dream, Sampling
from ldm_dream.denoiser import Inputs
from ldm_dream.loss import diffusion_loss
from ldm_dream.process import ResidualShift
from ldm_dream.sampler import sample_steps
from ldm_dream.schedules import exponential_sqrt_eta, respaced
from runs import PlainDenoiser

MASTER_CAP = math.sqrt(0.001)  # of the first sqrt(eta), on the master branch only
PREDICTION = {
    "xstart": "z0",
    "residual": "residual",
    "epsilon": "eps",
    "epsilon_scale": "eps_scale",
}


def run(case: Case, io: dict[str, Tensor], weights: dict[str, Tensor]) -> dict[str, Tensor]:
    outputs = {}
    for item in case["construct"]["items"]:
        computed = Item(item, case["dummy"], io)
        for part in (
            computed.schedule(),
            computed.forward(),
            computed.train(),
            computed.loop(True),
            computed.loop(False),
        ):
            outputs |= {f"{item['name']}.{name}": value for name, value in part.items()}
    return outputs


class Item:
    """One configuration. weighted_mse is the official code's, not the library's."""

    def __init__(self, item: Case, dummy: list[float], io: dict[str, Tensor]):
        self.kwargs = kwargs = item["kwargs"]
        kwargs.only(schedule_name="exponential")
        kwargs.known("scale_factor")  # of an autoencoder's latents, and there is none
        self.master = "master" in item["branch"]
        self.prediction = PREDICTION[kwargs["predict_type"]]
        start = min(kwargs["min_noise_level"] / kwargs["kappa"], kwargs["min_noise_level"])
        start = min(start, MASTER_CAP) if self.master else start
        steps, power = kwargs["steps"], kwargs["schedule_kwargs"]["power"]
        kept = respaced(steps, int(kwargs["timestep_respacing"] or steps))
        sqrt_eta = exponential_sqrt_eta(steps, start, kwargs["etas_end"], power)[kept]
        scaled = kwargs["normalize_input"], kept, kwargs["latent_flag"]
        self.process = ResidualShift(sqrt_eta, kwargs["kappa"], *scaled)

        self.z0, self.eps, self.lq = io["in.x0"], io["in.noise"], io["in.lq"]
        self.step_noise = io["in.step_noise"]
        self.z_lr = F.interpolate(io["in.y"], scale_factor=kwargs["sf"], mode="bicubic")
        self.t = io[f"out.{item['name']}.t"]
        self.network = stand_in(dummy, unit=10)
        self.denoiser = PlainDenoiser(self.denoise, self.process, self.prediction)
        self.inputs = Inputs(self.z_lr, (self.lq,))

    def denoise(self, z_t: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        return self.network(self.process.model_input(z_t, t), self.process.model_t(t), cond)

    def schedule(self) -> dict[str, Tensor]:
        process, f64 = self.process, torch.float64
        t = torch.arange(process.num_timesteps)
        t_prev = t - 1
        variance = process.posterior_variance(t, t_prev).flatten()
        clipped = torch.cat([variance[1:2], variance[1:]])
        on_z0, on_zt = (factor.flatten() for factor in process.posterior_factors(t, t_prev))
        # d z0 / d output: the weight is that of the posterior's KL divergence
        of_noise = self.prediction in ("eps", "eps_scale")
        slope = (process.s(t, f64) / process.a(t, f64)).flatten() if of_noise else 1
        return {
            "sqrt_etas": process.weight(t, f64).flatten(),
            "etas": process.b(t, f64).flatten(),
            "etas_prev": process.b(t_prev, f64).flatten(),
            "alpha": (process.b(t, f64) - process.b(t_prev, f64)).flatten(),
            "posterior_variance": variance,
            "posterior_variance_clipped": clipped,
            "posterior_log_variance_clipped": clipped.log(),
            "posterior_mean_coef1": on_zt,
            "posterior_mean_coef2": on_z0,
            "weight_loss_mse": 0.5 / clipped * (on_z0 * slope) ** 2,
            "timestep_map": process.model_t(t),
        }

    def forward(self) -> dict[str, Tensor]:
        process, t, z0, z_lr = self.process, self.t, self.z0, self.z_lr
        z_t = process.q_sample(z0, z_lr, self.eps, t)
        mean, variance = process.posterior(z0, z_t, t, t - 1)
        return {
            "z_y": z_lr,
            "t": t,
            "q_sample": z_t,
            "q_mean": process.q_sample(z0, z_lr, torch.zeros_like(z0), t),
            "q_variance": process.s(t).flatten() ** 2,
            "q_posterior_mean": mean,
            "q_posterior_variance": variance.flatten(),
            "q_posterior_log_variance_clipped": self.schedule()["posterior_log_variance_clipped"][
                t
            ].float(),
            "scale_input": process.model_input(z_t, t),
            "prior_sample": process.prior(z_lr, self.eps),
        }

    def train(self) -> dict[str, Tensor]:
        loss = diffusion_loss(
            self.denoiser, self.z0, self.inputs, self.t, self.eps, Dream(kind="l2")
        )
        weight = (
            self.schedule()["weight_loss_mse"][self.t].float() if self.kwargs["weighted_mse"] else 1
        )
        # the journal branch weights `mse` in place and has no `loss`
        mse = loss.loss if self.master else weight * loss.loss
        return {
            "train.mse": mse,
            "train.loss": weight * loss.loss,
            "train.pred_zstart": loss.z0_hat,
        }

    def loop(self, clip: bool) -> dict[str, Tensor]:
        noise = [self.eps, *self.step_noise]
        process, z_t, steps, means = self.process, self.process.prior(self.z_lr, self.eps), [], []
        for step in sample_steps(
            self.denoiser,
            self.inputs,
            Sampling(kind="resshift"),
            noise.__getitem__,
            clip=1.0 if clip else None,
        ):
            t = torch.tensor([step.t])
            means.append(process.posterior(step.z0_hat, z_t, t, t - 1)[0])
            steps.append(step)
            z_t = step.z_t
        return {
            f"loop_clip_{clip}.samples": torch.stack([step.z_t for step in steps]),
            f"loop_clip_{clip}.pred_xstart": torch.stack([step.z0_hat for step in steps]),
            f"loop_clip_{clip}.mean": torch.stack(means),
        }
