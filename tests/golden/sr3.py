"""Golden runners of SR3 (sr3_unet, sr3_sampling, sr3_dream_loss), from the case's configuration
alone.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dream_kernels import dream_loss, dream_rectify
from golden.reading import Case, watching
from ldm_dream.config.networks import SR3Config
from ldm_dream.config.process import Dream, Sampling
from ldm_dream.denoiser import Denoiser
from ldm_dream.interchange.published import translate
from ldm_dream.interchange.systems import SR3
from ldm_dream.loss import diffusion_loss, estimate
from ldm_dream.networks import build_network
from ldm_dream.process import DDPM
from ldm_dream.sampler import sample_steps
from ldm_dream.schedules import abar_of
from runs import predict

NAMES = {  # the official constructor's -> ours
    "image_size": "image_size",
    "inner_channel": "model_channels",
    "channel_mults": "channel_mult",
    "res_blocks": "num_res_blocks",
    "attn_res": "attention_resolutions",
    "norm_groups": "norm_groups",
    "dropout": "dropout",
}


def config(kwargs: Case) -> SR3Config:
    """Constructor arguments of the official class -> our config."""
    out = kwargs["out_channel"]
    return SR3Config(
        **{ours: kwargs[name] for name, ours in NAMES.items()},
        in_channels=out,
        out_channels=out,
        cond_channels=kwargs["in_channel"] - out,
    )


def network(kwargs: Case, weights: dict[str, Tensor]) -> nn.Module:
    model = build_network(config(kwargs))
    # the U-Net alone, without the diffusion around it
    if not any(key.startswith(SR3.prefix) for key in weights):
        weights = {SR3.prefix + key: value for key, value in weights.items()}
    model.load_state_dict(translate(SR3, weights), strict=True)
    return model


def run(case: Case, io: dict[str, Tensor], weights: dict[str, Tensor]) -> dict[str, Tensor]:
    if "in.x_T" in io:
        return sampling(case, io, weights)
    return dream_losses(case, io, weights) if "orders" in case else unet(case, io, weights)


def unet(case: Case, io: dict[str, Tensor], weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """-> eps_<i> for every item, and the intermediates of item 0."""
    case["construct"].only(**{"class": "UNet"})
    model = network(case["construct"]["kwargs"], weights).eval()
    watched = {
        "first_conv_0": model.downs[0],
        "downs_last_0": model.downs[-1],
        "mid0_0": model.mid[0],
        "mid1_0": model.mid[1],
        "noise_embedding_0": model.noise_level_mlp,
    }
    outputs: dict[str, Tensor] = {}
    for i in (int(name.rsplit("_", 1)[1]) for name in io if name.startswith("in.noise_level_")):
        level = io[f"in.noise_level_{i}"].flatten()
        z_t, cond = io[f"in.x_noisy_{i}"], io[f"in.condition_{i}"]
        with torch.no_grad(), watching(watched if i == 0 else {}) as seen:
            outputs[f"eps_{i}"] = predict(model, z_t, level, cond)
        outputs |= seen
    wanted = io["out.noise_embedding_0"]
    outputs["noise_embedding_0"] = outputs["noise_embedding_0"].reshape(wanted.shape)
    return outputs


def sampling(case: Case, io: dict[str, Tensor], weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Algorithm 2 with clipped estimates, step by step."""
    model = network(case["construct"]["unet_kwargs"], weights).eval()
    schedule = case["construct"]["schedule"]
    kind = {"quad": "sqrt_linear"}.get(schedule["schedule"], schedule["schedule"])
    ends = schedule["linear_start"], schedule["linear_end"]
    process = DDPM(abar_of(schedule["n_timestep"], *ends, kind))
    denoiser, x = Denoiser(model, process, ("z_lr",), "eps"), io["in.x"]
    noise = [io["in.x_T"], *io["in.step_noise"]]
    sampling = Sampling(kind="ancestral")
    steps = list(
        sample_steps(denoiser, denoiser.prepare(x, x), sampling, noise.__getitem__, clip=1.0)
    )
    levels = [process.model_t(torch.tensor([step.t]), noise_level=True) for step in steps]
    rows = torch.arange(-1, process.num_timesteps)
    return {
        "x_t": torch.stack([step.z_t for step in steps]),
        "x0_pred": torch.stack([step.z0_hat for step in steps]),
        "final": steps[-1].z_t,
        "returned_by_continous_False": steps[-1].z_t[-1],
        "noise_level": torch.stack([level[0] for level in levels]),
        "sched.sqrt_alphas_cumprod_prev_f64": process.a(rows, torch.float64).flatten(),
    }


def dream_losses(
    case: Case, io: dict[str, Tensor], weights: dict[str, Tensor]
) -> dict[str, Tensor]:
    """DREAM's loss and gradients for each exponent p. "inf" is the official standard branch, whose
    target is its own output.
    """
    model = network(case["construct"]["unet_kwargs"], weights).train(
        case["construct"]["train_mode"]
    )
    case["construct"].known("schedule", "dropout")  # levels are given; dropout is the network's
    case["construct"]["diffusion_kwargs"].only(conditional=True)
    case["construct"]["diffusion_kwargs"].known("channels", "image_size", "loss_type")
    hr, cond, eps = io["in.y0"], io["in.x"], io["in.noise"]
    process = DDPM(io["in.continuous_sqrt_alpha_cumprod"].double() ** 2)  # one step a sample
    t = torch.arange(len(hr))
    outputs: dict[str, Tensor] = {}

    denoiser = Denoiser(model, process, ("z_lr",), "eps")
    inputs = denoiser.prepare(cond, cond)

    for kind in case["losses"]:
        for order in case["orders"]:
            key = f"{kind}.order_{order}"
            if order == "inf":
                z_t = process.q_sample(hr, cond, eps, t)
                output = denoiser(z_t, t, inputs)
                total = (
                    dream_loss(output, z0=output, prediction="z0", kind=kind).sum() * hr[0].numel()
                )
                found = torch.autograd.grad(
                    total, [model.get_parameter(SR3.ours(name)) for name in case["grads"]]
                )
                outputs |= {
                    f"{key}.grad.{name}": value for name, value in zip(case["grads"], found)
                }
                outputs |= {
                    f"{key}.loss_sum": total,
                    f"{key}.loss_mean": total / hr.numel(),
                    f"{key}.noisy": z_t,
                }
                outputs |= dict.fromkeys(
                    (f"{key}.pred", f"{key}.target", f"{key}.target_is_own_prediction"), output
                )
                continue
            plain = order == "standard"
            setting = Dream(
                kind=kind, strength=0.0 if plain else 1.0, p=1.0 if plain else float(order)
            )
            model.zero_grad()
            loss = diffusion_loss(denoiser, hr, inputs, t, eps, setting).loss
            total = loss.sum() * hr[0].numel()
            total.backward()
            z_t = process.q_sample(hr, cond, eps, t)
            rectified, target = z_t, eps
            if not plain:
                eps_hat, lam = estimate(denoiser, z_t, t, inputs, setting)
                rectified = dream_rectify(z_t, eps, eps_hat, process.s(t), lam)
                target = eps + lam * (eps - eps_hat)
            with torch.no_grad():
                first, second = denoiser(z_t, t, inputs), denoiser(rectified, t, inputs)
            outputs |= {
                f"{key}.loss_sum": total,
                f"{key}.loss_mean": loss.mean(),
                f"{key}.target": target,
                f"{key}.pred": second,
            }
            outputs |= {f"{key}.noisy": z_t, f"{key}.rectified_noisy": rectified}
            outputs |= {f"{key}.first_pass_pred": first, f"{key}.second_pass_pred": second}
            gradients = dict(model.named_parameters())
            outputs |= {
                f"{key}.grad.{name}": gradients[SR3.ours(name)].grad.clone()
                for name in case["grads"]
            }
    return outputs
