"""Noise by number: the published generator, standard normal, and the same whatever is drawn."""

import pytest
import torch

from ldm_dream.noise import LARGEST_SEED, philox, seeded

# Random123's kat_vectors, philox4x32 with 10 rounds: counter, key, result
KNOWN = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]  # fmt: skip


@pytest.mark.parametrize(("counter", "key", "result"), KNOWN)
def test_the_generator_gives_its_published_answers(counter, key, result):
    counter, key, result = (
        [int(word, 16) for word in words.split()] for words in (counter, key, result)
    )
    assert [word.item() for word in philox(*torch.tensor(counter).split(1), tuple(key))] == result


def test_noise_depends_on_seed_and_step_alone():
    like = torch.zeros(2, 3, 8, 8)
    field = seeded(5, like)
    assert torch.equal(field(1), seeded(5, like.double()[:1])(1).float().expand_as(like))
    assert torch.equal(field(1)[0], field(1)[1])
    seeds = 0, 1, 2**32, 2**32 + 1, LARGEST_SEED
    fields = [seeded(seed, like)(k) for seed in seeds for k in (0, 1)]
    assert all(not torch.equal(a, b) for i, a in enumerate(fields) for b in fields[:i])


def test_noise_is_standard_normal():
    """Moments within four standard errors, and the share of values beyond 1, 2 and 3."""
    x = torch.cat([seeded(seed, torch.zeros(1, 4, 128, 128))(3).flatten() for seed in range(8)])
    n = len(x)
    for power, moment, spread in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((x.double() ** power).mean() - moment) < 4 * (spread / n) ** 0.5
    for bound, share in ((1, 0.317311), (2, 0.0455003), (3, 0.0026998)):
        assert abs((x.abs() > bound).double().mean() - share) < 4 * (share / n) ** 0.5
    assert x.isfinite().all() and x.abs().max() < 6.8


def test_noise_of_neighbours_steps_and_seeds_is_independent():
    """Products of values and of squares; the four numbers of a counter are among the neighbours."""
    like = torch.zeros(1, 4, 128, 128)
    x = seeded(0, like)(0)[0]
    pairs = [(x[..., :-step], x[..., step:]) for step in (1, 2, 3, 4)]
    pairs += [(x[:, :-1], x[:, 1:]), (x[:-1], x[1:]), (x, seeded(0, like)(1)[0])]
    pairs += [(x, seeded(seed, like)(0)[0]) for seed in (1, 2**32)]
    for a, b in pairs:
        assert abs((a * b).mean()) < 4 / a.numel() ** 0.5
        assert abs(((a * a - 1) * (b * b - 1)).mean()) < 8 / a.numel() ** 0.5


@pytest.mark.parametrize("width", [8, 13])
def test_noise_of_a_part_is_that_part_of_the_noise(width):
    like = torch.zeros(1, 3, 20, width)
    part = seeded(5, like[..., 4:11, :], top=4)
    assert torch.equal(seeded(5, like)(2)[..., 4:11, :], part(2))
    assert torch.equal(seeded(5, like)(2)[..., :5], seeded(5, like[..., :5])(2))
