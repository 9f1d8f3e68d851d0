"""The interval of a mean difference over pictures."""

import math

import numpy as np
import pytest

from ldm_dream.scoring.bootstrap import interval_over_seeds, paired_interval
from ldm_dream.scoring.metrics import MetricError


def test_it_is_that_of_pairs_and_says_what_shows_a_difference():
    random = np.random.default_rng(0)
    hard = random.normal(25, 4, 40)  # pictures differ far more than methods do
    better = hard + 0.3 + random.normal(0, 0.2, 40)
    found = paired_interval(better, hard)
    spread = (better - hard).std() / math.sqrt(40)
    assert found.mean == pytest.approx((better - hard).mean())
    assert found.low == pytest.approx(found.mean - 1.96 * spread, abs=0.2 * spread)
    assert found.high == pytest.approx(found.mean + 1.96 * spread, abs=0.2 * spread)
    assert found.low > 0 and paired_interval(better, hard) == found
    like = paired_interval(hard + random.normal(0, 0.2, 40), hard)
    assert like.low < 0 < like.high


def test_it_holds_the_true_difference_in_most_cases():
    held = 0
    for seed in range(40):
        a, b = np.random.default_rng(seed).exponential(1, (2, 30))
        low, high = paired_interval(a, b)[1:]
        held += low <= 0 <= high
    assert 34 <= held <= 40


def test_what_makes_no_pairs_is_refused():
    for a, b in (([1.0], [1.0]), ([1.0, 2.0], [1.0])):
        with pytest.raises(MetricError, match="give as many of both, 2 or more"):
            paired_interval(a, b)
    with pytest.raises(MetricError, match="not finite"):
        paired_interval([1.0, math.inf], [1.0, 2.0])


def test_seeds_that_differ_widen_the_interval():
    random = np.random.default_rng(0)
    plain = random.normal(25, 1, (3, 20))
    alike = plain + 0.3 + random.normal(0, 0.1, (3, 20))
    apart = alike + np.array([[-0.3], [0.0], [0.3]])
    found = interval_over_seeds(list(alike), list(plain))
    wider = interval_over_seeds(list(apart), list(plain))
    assert wider.mean == pytest.approx(found.mean) == pytest.approx((alike - plain).mean())
    assert wider.low < 0.15 < found.low and found.high < wider.high
    with pytest.raises(MetricError, match="20 and 20, 20 scores"):
        interval_over_seeds([plain[0]], list(plain[:2]))
