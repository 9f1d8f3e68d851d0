"""Knobs of the data: where pictures are, patches, augmentation, and how LR pictures are made of HR
ones. Imports no torch.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from ldm_dream.config.places import Entry
from ldm_dream.config.strict import Name, Strict


def _ordered(pair: tuple) -> tuple:
    if pair[0] > pair[1]:
        raise ValueError(f"{list(pair)} runs backwards; give [least, most]")
    return pair


def _odd(pair: tuple[int, int]) -> tuple[int, int]:
    if not (pair[0] % 2 and pair[1] % 2):
        raise ValueError(
            f"{list(pair)} has an even number; a kernel has a middle, so give odd ones"
        )
    return pair


def _around_one(pair: tuple[float, float]) -> tuple[float, float]:
    if not pair[0] <= 1 <= pair[1]:
        raise ValueError(f"{list(pair)} leaves out 1; give [at most 1, at least 1]")
    return pair


def _not_all_zero(weights: tuple[float, ...]) -> tuple[float, ...]:
    if sum(weights) == 0:
        raise ValueError("all weights are 0; give at least one above 0")
    return weights


Probability = Annotated[float, Field(ge=0, le=1)]


Positive = Annotated[float, Field(ge=0.01, le=100)]  # pixels, exponents


NotNegative = Annotated[float, Field(ge=0, le=1000)]  # grey levels, factors, shares


Factor = Annotated[float, Field(ge=0.01, le=16)]  # of a size


KernelSide = Annotated[int, Field(ge=1, le=255)]


Sizes = Annotated[
    tuple[KernelSide, KernelSide],
    AfterValidator(_ordered),
    AfterValidator(_odd),
]


Qualities = Annotated[
    tuple[Annotated[int, Field(ge=1, le=100)], Annotated[int, Field(ge=1, le=100)]],
    AfterValidator(_ordered),
]


Range = Annotated[tuple[Positive, Positive], AfterValidator(_ordered)]


RangeFromZero = Annotated[tuple[NotNegative, NotNegative], AfterValidator(_ordered)]


RangeAroundOne = Annotated[tuple[Positive, Positive], AfterValidator(_around_one)]


Factors = Annotated[tuple[Factor, Factor], AfterValidator(_around_one)]


Scales = Annotated[
    tuple[Annotated[float, Field(ge=1)], Annotated[float, Field(ge=1)]], AfterValidator(_ordered)
]


Weights3 = Annotated[tuple[NotNegative, NotNegative, NotNegative], AfterValidator(_not_all_zero)]


Weights6 = Annotated[
    tuple[NotNegative, NotNegative, NotNegative, NotNegative, NotNegative, NotNegative],
    AfterValidator(_not_all_zero),
]


class BicubicConfig(Strict):
    """LR pictures are made by MATLAB's bicubic imresize and rounded to 8 bits, as for the classical
    benchmarks.
    """

    kind: Literal["bicubic"] = "bicubic"


Resizer = Literal[
    "area",
    "bilinear",
    "bicubic",
    "matlab_bicubic",
    "pillow_box",
    "pillow_bilinear",
    "pillow_bicubic",
    "pillow_lanczos",
]


Resizers = Annotated[tuple[Resizer, ...], Field(min_length=1)]


class FirstOrder(Strict):
    """Blur, resize, noise and JPEG with the ranges of Real-ESRGAN's first order. A value is drawn
    uniformly from [least, most].
    """

    blur_prob: Probability = Field(default=1.0, description="Probability of a blur.")
    kernel_size: Sizes = Field(
        default=(7, 21),
        description="Side of the blur kernel in pixels, an odd number from [least, most].",
    )
    kernel_weights: Weights6 = Field(
        default=(0.45, 0.25, 0.12, 0.03, 0.12, 0.03),
        description="Relative frequency of six kernels: Gaussian, generalised Gaussian and plateau, "
        "each isotropic and then anisotropic.",
    )
    sinc_prob: Probability = Field(
        default=0.1,
        description="Share of the blurs that use a sinc filter, which rings, in their place.",
    )
    sigma: Range = Field(
        default=(0.2, 3.0),
        description="Spread along each axis of the kernel in pixels; of a Gaussian its standard "
        "deviation.",
    )
    beta_generalized: RangeAroundOne = Field(
        default=(0.5, 4.0),
        description="Shape exponent of the generalised Gaussian, where 1 is the Gaussian; half of "
        "the draws lie in [first, 1], half in [1, second].",
    )
    beta_plateau: RangeAroundOne = Field(
        default=(1.0, 2.0), description="Shape exponent of the plateau kernel, drawn likewise."
    )
    resize_weights: Weights3 = Field(
        default=(0.2, 0.7, 0.1), description="Relative frequency of: larger, smaller, same size."
    )
    resize: Factors = Field(
        default=(0.15, 1.5),
        description="Factor on the HR size: smaller draws from [first, 1], larger from [1, second].",
    )
    gaussian_noise_prob: Probability = Field(
        default=0.5,
        description="Share of the samples with Gaussian noise; the others get Poisson noise.",
    )
    gaussian_sigma: RangeFromZero = Field(
        default=(1.0, 30.0),
        description="Standard deviation of the Gaussian noise, in grey levels of 255.",
    )
    poisson_scale: RangeFromZero = Field(
        default=(0.05, 3.0),
        description="Factor on the shot noise of as many photons as there are grey levels.",
    )
    gray_noise_prob: Probability = Field(
        default=0.4, description="Probability that the noise is the same in the three channels."
    )
    jpeg_quality: Qualities = Field(
        default=(30, 95),
        description="Quality of libjpeg, from 1 (worst) to 100, with 4:2:0 colour.",
    )
    noise_prob: Probability = Field(default=1.0, description="Probability of noise at all.")
    jpeg_prob: Probability = Field(
        default=1.0,
        description="Probability of the compression; that of `second` is the last one.",
    )
    webp_prob: Probability = Field(
        default=0.0, description="Share of the compressions that are WebP of the same quality."
    )


def _again(knob: str, default: Any) -> Any:
    """A knob of FirstOrder with another default."""
    return Field(default=default, description=FirstOrder.model_fields[knob].description)


class SecondOrder(FirstOrder):
    """The same steps a second time, with ResShift's ranges (Real-ESRGAN: kernel_size up to 21)."""

    blur_prob: Probability = _again("blur_prob", 0.8)
    kernel_size: Sizes = _again("kernel_size", (7, 15))
    sigma: Range = _again("sigma", (0.2, 1.5))
    resize_weights: Weights3 = _again("resize_weights", (0.3, 0.4, 0.3))
    resize: Factors = Field(
        default=(0.3, 1.2),
        description="Factor on the LR size: smaller draws from [first, 1], larger from [1, second].",
    )
    gaussian_sigma: RangeFromZero = _again("gaussian_sigma", (1.0, 25.0))
    poisson_scale: RangeFromZero = _again("poisson_scale", (0.05, 2.5))


class BlindConfig(Strict):
    """Degradation of unknown make: blur, resize, noise and JPEG, all at random, up to twice
    (Real-ESRGAN, arXiv 2107.10833).
    """

    kind: Literal["blind"] = "blind"
    first: FirstOrder = Field(default=FirstOrder(), description="Ranges of the first time.")
    second: SecondOrder = Field(default=SecondOrder(), description="Ranges of the second time.")
    second_order_prob: Probability = Field(
        default=0.5,
        description="Probability of blur, resize and noise a second time (Real-ESRGAN: 1), before "
        "the second JPEG.",
    )
    final_sinc_prob: Probability = Field(
        default=0.8, description="Probability of a sinc filter before or behind the last JPEG."
    )
    final_sinc_size: Sizes = Field(
        default=(7, 21),
        description="Side of that filter in LR pixels, an odd number from [least, most].",
    )
    final_resize: Resizers = Field(
        default=("area", "bilinear", "bicubic"),
        description="Ways to shrink to the LR size, drawn evenly. bilinear and bicubic do not "
        "antialias, as published; matlab_bicubic and pillow_* do.",
    )
    sharpen_prob: Probability = Field(
        default=0.0, description="Probability of an unsharp mask behind that shrinking."
    )
    sharpen_amount: RangeFromZero = Field(
        default=(0.3, 1.5),
        description="Factor on what the mask adds, the picture less its blurred self.",
    )
    sharpen_sigma: Range = Field(
        default=(0.5, 1.5),
        description="Standard deviation of the mask's Gaussian, in LR pixels.",
    )
    again_prob: Probability = Field(
        default=0.0,
        description="Probability of one more compression at the very end, with the knobs of "
        "`second`.",
    )
    clean_prob: Probability = Field(
        default=0.0,
        description="Share of the samples that are only shrunk, by one of `clean_resize`.",
    )
    clean_resize: Resizers = Field(
        default=(
            "matlab_bicubic",
            "pillow_box",
            "pillow_bilinear",
            "pillow_bicubic",
            "pillow_lanczos",
        ),
        description="Ways to shrink clean samples, drawn evenly; a name given twice counts twice.",
    )


DegradationConfig = Annotated[BicubicConfig | BlindConfig, Field(discriminator="kind")]


class DataConfig(Strict):
    """Pictures, and the pairs of patches that are made of them."""

    train: tuple[Entry, ...] = Field(
        default=(),
        description="HR pictures for training: folders, searched recursively, pictures, lists (.txt, "
        ".lst) and LMDB folders, relative to the working folder; `A/{}_HR`: those of such names.",
    )
    val: tuple[Entry, ...] = Field(
        default=(), description="HR pictures for validation, named likewise."
    )
    val_fraction: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Share of the pictures of data.train that validates and is not trained on, "
        "chosen by the digest of each name; instead of data.val.",
    )
    lr: tuple[Entry, ...] = Field(
        default=(),
        description="Given LR pictures: for each place of data.train one with the same names; "
        "`A/{}x4` where they differ, with the HR picture's name for `{}`.",
    )
    val_lr: tuple[Entry, ...] = Field(
        default=(), description="Given LR pictures of data.val, named likewise."
    )
    license: str | None = Field(
        default=None,
        description="Licence of the training pictures, for the model card, as the hub names it "
        "(`cc0-1.0`) or in words; null: not given.",
    )
    exclude: tuple[Name, ...] = Field(
        default=(), description="A picture is left out if its path contains one of these texts."
    )
    degrade_on: Literal["workers", "device"] | None = Field(
        default=None,
        description="Where blind degradation is computed; its noise differs. null: on a GPU where a "
        "training process has fewer than 8 cores, else in the workers, which are free.",
    )
    patch: int = Field(
        default=128,
        ge=8,
        le=65_536,
        description="Side of a training patch in HR pixels, a multiple of `scale`.",
    )
    scales: Scales | None = Field(
        default=None,
        description="For IDM: each micro-batch has HR at a scale drawn from [least, most], at most "
        "`scale`; null: always `scale`.",
    )
    augment: Literal["none", "hflip", "dihedral"] = Field(
        default="dihedral",
        description="How patches are turned at random: hflip swaps left and right, dihedral takes "
        "all 8 flips and turns.",
    )
    degradation: DegradationConfig = Field(
        default=BicubicConfig(), description="How LR pictures are made of HR ones."
    )
    max_bad_fraction: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="A larger share of unreadable files than this stops the run.",
    )
    keep_gib: float | None = Field(
        default=None,
        ge=0,
        le=65_536,
        description="GiB of a machine's memory in which decoded training pictures are kept, shared out "
        "to its training processes, each with its own copies. null: a quarter of what is free.",
    )
    cache_latents: int = Field(
        default=0,
        ge=0,
        description="Train on so many fixed patches, each encoded once and kept in memory; 0: new "
        "patches all the time.",
    )

    @model_validator(mode="after")
    def _places_fit(self):
        for hr, lr in (("train", "lr"), ("val", "val_lr")):
            wanted, given = len(getattr(self, hr)), len(getattr(self, lr))
            if given and given != wanted:
                raise ValueError(
                    f"data.{lr} names {given} places and data.{hr} {wanted}; give one for each, in the same order"
                )
        if self.val and self.val_fraction:
            raise ValueError(
                f"data.val and data.val_fraction={self.val_fraction} both say what validates; leave out one of them"
            )
        if self.lr and self.val and not self.val_lr:
            raise ValueError(
                "data.lr gives LR pictures for data.train and nothing those of data.val; set data.val_lr, or data.val=[]"
            )
        return self

    @model_validator(mode="after")
    def _given_lr_is_taken_as_it_is(self):
        for knob in ("degradation", "scales"):
            if self.lr and getattr(self, knob) != DataConfig.model_fields[knob].default:
                raise ValueError(
                    f"data.{knob} has no effect on LR pictures that data.lr gives; leave out one of them"
                )
        return self

    @model_validator(mode="after")
    def _degrade_on_has_something_to_do(self):
        if self.degrade_on and not isinstance(self.degradation, BlindConfig):
            raise ValueError(
                f"data.degrade_on={self.degrade_on} has no effect without data.degradation.kind=blind; leave it out"
            )
        return self

    @model_validator(mode="after")
    def _webp_is_for_workers(self):
        if self.degrade_on == "device" and self.has_webp:
            raise ValueError(
                "data.degrade_on=device cannot compress as WebP, which webp_prob asks for; leave it out"
            )
        return self

    @property
    def has_webp(self) -> bool:
        """Whether the degradation compresses as WebP, which no device can."""
        how = self.degradation
        return isinstance(how, BlindConfig) and (how.first.webp_prob + how.second.webp_prob) > 0

    @property
    def has_validation(self) -> bool:
        return bool(self.val or self.val_fraction)
