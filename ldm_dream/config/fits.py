"""Whether the parts of a run fit each other, by arithmetic alone. Each function raises ValueError,
with the keys it is about. Imports no torch.

run: a DiffusionRun or AutoencoderRun, whose file imports this one.
"""

from __future__ import annotations

from typing import Any

from ldm_dream.config.autoencoder import AutoencoderConfig

MOST_PIXELS = 2**31  # of HR in one step on one device: 24 GB as float32
MOST_CACHE = 2**40  # bytes of cached latents
UNIT = 8  # LR pixels, of which a validation picture has a whole number a side


def patches(run: Any) -> None:
    """Patches and validation pictures can be cut, and a step's fit into some machine."""
    patch, scale, train = run.data.patch, run.scale, run.train
    if run.data.train and patch % scale:
        raise ValueError(
            f"data.patch={patch} is not a multiple of scale={scale}; set it to {patch // scale * scale or scale}"
        )
    samples = train.batch_size * train.accumulate
    if samples * patch**2 > MOST_PIXELS:
        raise ValueError(
            f"train.batch_size x train.accumulate = {samples} patches of {patch} pixels a side are more "
            f"than {MOST_PIXELS:.2g} pixels in a step; lower one of them"
        )
    crop = train.val_crop
    if run.data.has_validation and train.val_images and crop is not None and crop < UNIT * scale:
        raise ValueError(
            f"train.val_crop={crop} is less than {UNIT * scale} pixels, the least for validation at scale {scale}"
        )


def condition(run: Any) -> None:
    """The network sees something of the LR picture, and nothing twice."""
    if len(set(run.condition)) < len(run.condition):
        raise ValueError(f"condition={list(run.condition)} names a part twice; leave one out")
    if not run.condition and run.process.kind in ("ddpm", "flow"):
        raise ValueError(
            f"condition=[] shows the network nothing of the LR picture, and process.kind={run.process.kind} "
            "starts from noise alone; set condition to [lr], [z_lr] or both"
        )


def cache(run: Any) -> None:
    """There are latents to cache, and not too many."""
    cached = run.data.cache_latents
    if cached and run.autoencoder.kind == "pixel":
        raise ValueError(
            "data.cache_latents has no effect with autoencoder.kind=pixel, which encodes nothing; leave it out"
        )
    if cached * (1000 + 3 * (run.data.patch // run.scale) ** 2) > MOST_CACHE:
        raise ValueError(
            f"data.cache_latents={cached} takes more than {MOST_CACHE:.2g} bytes of memory; give fewer"
        )


def autoencoder(run: Any) -> None:
    """An autoencoder is trained from its own knobs."""
    if run.autoencoder.pretrained:
        raise ValueError(
            "autoencoder.pretrained has no effect where the autoencoder is trained; "
            "set train.init_from to begin from its weights"
        )


def prediction(run: Any) -> None:
    """The process gives z0 and noise back from what is predicted, and the loss can be taken there."""
    process, kind = run.process, run.prediction
    if kind not in process.predictions:
        options = " or ".join(process.predictions)
        raise ValueError(
            f"prediction={kind} does not fit process.kind={process.kind}; set it to {options}"
        )
    if kind == "eps" and process.ends_in_noise:
        raise ValueError(
            "prediction=eps does not fit process.schedule=jsd, whose last step is pure noise; set it "
            "to z0 or v"
        )
    if run.loss.kind == "huber" and kind in ("eps_scale", "flow"):
        raise ValueError(f"loss.kind=huber does not fit prediction={kind}; use l1 or l2")
    if run.loss.strength and not process.has_noise:
        raise ValueError(
            f"process.kind={process.kind} has no noise for DREAM to rectify; set loss.strength: 0"
        )


def sampler(run: Any) -> None:
    """The process has the sampler, and as many steps."""
    process, given = run.process, run.sampler
    if given.kind not in process.samplers:
        options = " or ".join(process.samplers)
        raise ValueError(
            f"sampler.kind={given.kind} does not fit process.kind={process.kind}; set it to {options}"
        )
    if given.needs > process.steps:
        raise ValueError(
            f"sampler.steps={given.steps} is more than the {process.steps} of the process; "
            f"set at most {process.steps}"
        )


def critic(run: Any) -> None:
    """The PatchGAN has patches that it can judge, beside terms by which it is weighed."""
    loss = run.loss
    if not loss.adversarial:
        return
    least = 3 * 2**loss.discriminator_layers
    if run.data.patch < least:
        raise ValueError(
            f"data.patch={run.data.patch} is too small for loss.adversarial, whose PatchGAN of "
            f"{loss.discriminator_layers} layers wants {least}"
        )
    pixels = "pixel" if run.task == "diffusion" else "l1"
    if not (getattr(loss, pixels) or loss.perceptual):
        raise ValueError(
            f"loss.adversarial is weighed against loss.{pixels}, loss.lpips and loss.lpips_vgg, which "
            "are all 0; set one of them"
        )


def perceptual(run: Any) -> None:
    """LPIPS sees what is left of a patch."""
    loss = run.loss
    if loss.lpips_shift and not loss.perceptual:
        raise ValueError(
            "loss.lpips_shift has no effect where loss.lpips and loss.lpips_vgg are 0; leave it out"
        )
    # pixels that still reach the last layer of AlexNet, or of VGG16
    least = max(({"lpips": 31, "lpips_vgg": 16}[name] for name in loss.perceptual), default=0)
    if loss.lpips_shift and run.data.patch - loss.lpips_shift < least:
        raise ValueError(
            f"data.patch={run.data.patch} with loss.lpips_shift={loss.lpips_shift} leaves LPIPS less "
            f"than {least} pixels a side; give larger patches"
        )


def latent(run: Any, autoencoder: AutoencoderConfig) -> None:
    """Pictures can be encoded, and the network has the channels of the latents. autoencoder: with
    the architecture of its `pretrained`.
    """
    factor, channels = autoencoder.factor, autoencoder.channels
    if run.data.train and run.data.patch % factor:
        raise ValueError(
            f"data.patch={run.data.patch} is not a multiple of {factor}, by which the latent is smaller"
        )
    if run.data.has_validation and UNIT * run.scale % factor:
        raise ValueError(
            f"validation pictures are cut to multiples of {UNIT * run.scale} pixels, no multiple of the {factor} "
            "by which the latent is smaller; set data.val=[] and data.val_fraction=0, or use fewer levels"
        )
    if run.task == "autoencoder":
        return
    sees = sum({"lr": 3, "z_lr": channels}[part] for part in run.condition)
    for knob, wanted, why in (
        ("in_channels", channels, "a latent has"),
        ("out_channels", channels, "a latent has"),
        ("cond_channels", sees, f"condition={list(run.condition)} has"),
    ):
        if (given := getattr(run.network, knob)) != wanted:
            raise ValueError(f"network.{knob}={given}, but {why} {wanted}; set it to {wanted}")
