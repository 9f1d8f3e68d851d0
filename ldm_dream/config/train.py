"""Knobs of the training itself: optimizer, length, precision, and what is written when. Imports no
torch.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ldm_dream.config.strict import Name, Strict

Decay = Annotated[float, Field(ge=0, lt=1)]


class TrainConfig(Strict):
    """Optimizer, length, precision, and what is written when."""

    steps: int = Field(default=10_000, ge=1, description="Steps of the optimizer.")
    batch_size: int = Field(
        default=16,
        ge=1,
        description="Samples of one micro-batch on one device. A step sees batch_size x accumulate x "
        "processes of them.",
    )
    accumulate: int = Field(
        default=1, ge=1, description="Micro-batches per step, whose gradients are averaged."
    )
    optimizer: Literal["adamw", "adam"] = Field(default="adamw", description="The optimizer.")
    learning_rate: float = Field(
        default=5e-5, gt=0, le=1000, description="Learning rate after the warm-up."
    )
    betas: tuple[Decay, Decay] = Field(default=(0.9, 0.999), description="Adam's two decay rates.")
    weight_decay: float = Field(
        default=0.0, ge=0, le=100, description="Weight decay of the optimizer."
    )
    warmup_steps: int = Field(
        default=0,
        ge=0,
        description="Steps over which the learning rate rises from 0 in a straight line.",
    )
    decay: Literal["none", "cosine"] = Field(
        default="cosine",
        description="Learning rate after the warm-up: constant, or a half cosine down to "
        "learning_rate_end.",
    )
    learning_rate_end: float = Field(
        default=0.0, ge=0, le=1000, description="Learning rate at the last step of a cosine."
    )
    clip_grad: float | None = Field(
        default=1.0,
        gt=0,
        description="Largest norm of the gradient, to which longer ones are cut; null: any.",
    )
    ema: float = Field(
        default=0.999,
        ge=0,
        lt=1,
        description="Decay per step of the averaged weights, which the model folder gets; smaller in "
        "the first steps.",
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        default="auto",
        description="bf16 and fp16 are autocast, the weights stay in fp32; fp16, for GPUs without "
        "bf16, scales the loss; auto: the fastest that the device has in hardware, a CPU is measured.",
    )
    tf32: bool = Field(
        default=True,
        description="On CUDA fp32 products may round their factors to TF32's 10 bits.",
    )
    gradient_checkpointing: bool = Field(
        default=False,
        description="The network's repeated blocks are computed again in the backward pass: less "
        "memory, about a third more time.",
    )
    channels_last: bool = Field(
        default=True, description="Memory format of tensors, which makes convolutions faster."
    )
    compile: bool | None = Field(
        default=None,
        description="torch.compile of a network's repeated blocks; null: on CUDA, unless data.scales is set.",
    )
    workers: int | None = Field(
        default=None,
        ge=0,
        le=256,
        description="Processes per device that read and cut pictures ahead; 0: the training process "
        "does it; null: 1 on a CPU, else as many as there are free cores, 8 at most. No batch "
        "depends on it.",
    )
    prefetch: int = Field(
        default=2, ge=1, le=64, description="Micro-batches that each of them has ready."
    )
    log_every: int = Field(
        default=50, ge=1, description="Steps between two lines of metrics.jsonl."
    )
    val_every: int = Field(default=1000, ge=1, description="Steps between two validations.")
    val_images: int = Field(
        default=8, ge=0, description="Validation pictures, spread evenly over all there are."
    )
    val_crop: int | None = Field(
        default=256,
        ge=16,
        description="Largest side of their centre crop in HR pixels; null: whole pictures.",
    )
    val_distance: Literal["fid", "frechet_efficientnet_lite0"] | None = Field(
        default=None,
        description="Frechet distance of all results of a validation from the originals: FID (see "
        "inception_weights), or a stand-in that needs only the extra `eval`; null: none.",
    )
    best: Literal["psnr_y", "ssim_y", "lpips", "distance"] = Field(
        default="psnr_y",
        description="Validation figure by which `model-best` is chosen; lpips needs lpips_weights, "
        "distance needs val_distance.",
    )
    patience: int | None = Field(
        default=None,
        ge=1,
        description="Validations without a better `best` figure after which the run ends; null: it "
        "goes to its last step.",
    )
    tracker: Literal["tensorboard", "wandb", "trackio"] | None = Field(
        default=None,
        description="Live curves beside metrics.jsonl: TensorBoard files in the run folder, or one of "
        "these services; null: none.",
    )
    save_every: int = Field(default=500, ge=1, description="Steps between two checkpoints.")
    keep_checkpoints: int = Field(default=2, ge=1, description="Newest checkpoints that are kept.")
    keep_every: int | None = Field(
        default=None,
        ge=1,
        description="Checkpoints at multiples of so many steps are kept for good, beside the newest; "
        "null: none.",
    )
    init_from: Name | None = Field(
        default=None,
        description="A bundled name, a model folder or `hf:owner/name`, whose weights start the run "
        "(fine-tuning).",
    )
    freeze: tuple[Name, ...] = Field(
        default=(),
        description="Parameters whose names begin with one of these texts stay as they are.",
    )
