"""Knobs of the data: folders, patches, augmentation, and how LR pictures are made of HR ones.
Imports no torch.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from ldm_dream.config.model import Strict


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


Positive = Annotated[float, Field(gt=0)]


NotNegative = Annotated[float, Field(ge=0)]


Sizes = Annotated[
    tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]],
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


class FirstOrder(Strict):
    """Blur, resize, noise and JPEG with the ranges of Real-ESRGAN's first order. Draws are uniform
    within [least, most].
    """

    blur_prob: Probability = 1.0
    kernel_size: Sizes = (7, 21)  # side of the blur kernel in pixels, odd
    kernel_weights: Weights6 = (
        0.45,
        0.25,
        0.12,
        0.03,
        0.12,
        0.03,
    )  # Gaussian, generalised, plateau: each isotropic, anisotropic
    sinc_prob: Probability = 0.1  # share of blurs by a sinc filter (ringing) instead of these
    sigma: Range = (
        0.2,
        3.0,
    )  # spread along each axis of the kernel (Gaussian: its standard deviation), pixels
    beta_generalized: RangeAroundOne = (
        0.5,
        4.0,
    )  # shape exponent, 1 = Gaussian; half of the draws below 1, half above
    beta_plateau: RangeAroundOne = (1.0, 2.0)  # likewise for the plateau kernel
    resize_weights: Weights3 = (0.2, 0.7, 0.1)  # up, down, keep
    resize: RangeAroundOne = (0.15, 1.5)  # factor: down within [first, 1], up within [1, second]
    gaussian_noise_prob: Probability = 0.5  # the rest gets Poisson noise
    gaussian_sigma: RangeFromZero = (1.0, 30.0)  # standard deviation, in grey levels of 255
    poisson_scale: RangeFromZero = (
        0.05,
        3.0,
    )  # factor on the shot noise of as many photons as there are grey levels
    gray_noise_prob: Probability = 0.4  # noise alike in the three channels
    jpeg_quality: Qualities = (30, 95)  # libjpeg's quality, 4:2:0


class SecondOrder(FirstOrder):
    """Likewise for the second order, as in ResShift (Real-ESRGAN: kernel_size up to 21). `resize`
    is a factor on the LR size.
    """

    blur_prob: Probability = 0.8
    kernel_size: Sizes = (7, 15)
    sigma: Range = (0.2, 1.5)
    resize_weights: Weights3 = (0.3, 0.4, 0.3)
    resize: RangeAroundOne = (0.3, 1.2)
    gaussian_sigma: RangeFromZero = (1.0, 25.0)
    poisson_scale: RangeFromZero = (0.05, 2.5)


class BlindConfig(Strict):
    """Degradation of unknown make: blur, resize, noise and JPEG, all at random, up to twice
    (Real-ESRGAN, arXiv 2107.10833).
    """

    kind: Literal["blind"] = "blind"
    first: FirstOrder = FirstOrder()
    second: SecondOrder = SecondOrder()
    # of blur, resize and noise a second time; the second JPEG is always there (Real-ESRGAN: 1)
    second_order_prob: Probability = 0.5
    final_sinc_prob: Probability = 0.8  # a sinc filter before or behind the last JPEG
    final_sinc_size: Sizes = (7, 21)  # its side in LR pixels, odd


DegradationConfig = Annotated[BicubicConfig | BlindConfig, Field(discriminator="kind")]


class DataConfig(Strict):
    train: tuple[
        str, ...
    ] = ()  # folders of HR pictures, searched recursively; relative to the working folder
    val: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()  # parts of a path that leave a picture out
    patch: int = Field(128, ge=8)  # HR pixels a side
    scales: Scales | None = (
        # IDM: a micro-batch has HR at a scale drawn from [least, most], at most `scale`; None =
        # `scale`
        None
    )
    augment: Literal["none", "hflip", "dihedral"] = (
        "dihedral"  # hflip: left and right swapped; dihedral: all 8 flips and turns
    )
    degradation: DegradationConfig = BicubicConfig()  # how LR pictures are made of HR ones
    max_bad_fraction: float = Field(0.1, ge=0, le=1)  # more unreadable files than this stop the run
    cache_latents: int = Field(
        0, ge=0
    )  # train on so many fixed patches, each encoded once and kept in memory; 0 = off
