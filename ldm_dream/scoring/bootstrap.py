"""How sure a difference of two methods is: a paired bootstrap over pictures, and over seeds of
training (Efron 1979).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ldm_dream.scoring.metrics import MetricError

RESAMPLES, SEED, COVERED = 10_000, 0, 0.95


class Interval(NamedTuple):
    """Mean difference of two methods, and the bounds that hold it with 95 % confidence."""

    mean: float
    low: float
    high: float

    def text(self, digits: int = 3) -> str:
        """`+0.100 (+0.050 to +0.150)`"""
        mean, low, high = (f"{x:+.{digits}f}" for x in self)
        return f"{mean} ({low} to {high})"


def paired_interval(a: Sequence[float], b: Sequence[float]) -> Interval:
    """Of the mean of a - b, by the percentiles of its values on pictures drawn with replacement.

    a, b: scores of two methods on the same pictures in the same order. The same input gives the
    same interval. One that holds 0 shows no difference. Raises MetricError for scores that are not
    pairs, for fewer than 2, or ones that are not finite.
    """
    return interval_over_seeds([a], [b])


def interval_over_seeds(a: Sequence[Sequence[float]], b: Sequence[Sequence[float]]) -> Interval:
    """Likewise of models trained with several seeds: a[s], b[s] are the scores with one seed, on
    the same pictures for all. Seeds and pictures are both drawn with replacement. Of few seeds the
    interval is too narrow: of three the drawn ones have two thirds of the variance.
    """
    counts = {len(scores) for scores in (*a, *b)}
    if len(a) != len(b) or len(counts) != 1 or min(counts) < 2:
        lengths = [", ".join(str(len(scores)) for scores in side) for side in (a, b)]
        raise MetricError(
            f"paired_interval: {lengths[0]} and {lengths[1]} scores; give as many of both, 2 or more."
        )
    differences = np.asarray(a, np.float64) - np.asarray(b, np.float64)  # [seeds, pictures]
    if not np.isfinite(differences).all():
        raise MetricError("paired_interval: a score is not finite; leave its picture out of both.")
    random, means = np.random.default_rng(SEED), []
    seeds, pictures = differences.shape
    for _ in range(RESAMPLES // 100):  # which bounds the memory
        columns = random.integers(pictures, size=(100, 1, pictures))
        rows = random.integers(seeds, size=(100, seeds, 1))
        means.append(differences[rows, columns].mean((1, 2)))
    tail = 50 * (1 - COVERED)
    low, high = np.percentile(means, [tail, 100 - tail])
    return Interval(float(differences.mean()), float(low), float(high))
