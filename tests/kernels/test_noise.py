"""Laws of the noise that is made where it is used: known answers, one field for all tiles, the same
in kernel and reference.
"""

import math

import pytest
import torch

from dream_kernels import dream_rectify, noise_key, reference
from kernel_rules import DEVICE, LAYOUTS, run_kernel

# Random123 1.14, kat_vectors, philox4x32 with 10 rounds: counter, key -> words
KNOWN = [
    ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]


def field(key, shape, dtype=torch.float32):
    return reference.normal(key, torch.empty(shape, dtype=dtype))


def kernel_field(key, shape, layout="contiguous"):
    """The field out of a kernel: dream_rectify's target with lam = 0."""
    zero = LAYOUTS[layout](torch.zeros(shape, device=DEVICE))
    factor = torch.zeros(len(key), 1, 1, 1, device=DEVICE)
    return run_kernel(dream_rectify, zero, key.to(DEVICE), zero, factor, factor)[1].cpu()


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_philox_gives_the_published_answers(counter, key, words):
    got = reference.philox([torch.tensor(x) for x in counter], [torch.tensor(x) for x in key])
    assert [int(x) for x in got] == words


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("shape", [(2, 3, 7, 5), (1, 5, 33, 17), (1, 1, 1, 2500), (1, 2500, 1, 1)])
def test_kernel_and_reference_make_the_same_noise(shape, layout):
    seed = torch.tensor([7, -(2**40) - 5])[: shape[0]]
    key = noise_key(seed, draw=3, row=2**31 - 2, column=2**32 - 3)
    torch.testing.assert_close(
        kernel_field(key, shape, layout), field(key, shape), rtol=0, atol=4e-6
    )


def test_a_tile_has_its_part_of_the_whole_field():
    seed = torch.tensor([11, 12])
    whole, rows, columns = (
        field(noise_key(seed, draw=2), (2, 3, 24, 40)),
        slice(5, 14),
        slice(9, 32),
    )
    key = noise_key(seed, draw=2, row=5, column=9)
    assert torch.equal(field(key, (2, 3, 9, 23)), whole[:, :, rows, columns])
    torch.testing.assert_close(
        kernel_field(key, (2, 3, 9, 23)), whole[:, :, rows, columns], rtol=0, atol=4e-6
    )


def test_tiles_of_one_batch_stand_where_they_say():
    whole = field(noise_key(torch.tensor([5])), (1, 2, 8, 8))
    key = noise_key(torch.tensor([5, 5]), row=torch.tensor([0, 4]), column=torch.tensor([4, 2]))
    tiles = field(key, (2, 2, 4, 4))
    assert torch.equal(tiles, torch.cat([whole[..., 0:4, 4:8], whole[..., 4:8, 2:6]]))


def test_seed_draw_and_channel_give_other_noise():
    shape = (1, 2, 16, 16)
    fields = [
        field(noise_key(torch.tensor([seed]), draw), shape)
        for seed, draw in ((1, 0), (2, 0), (2**33, 0), (1, 1))
    ]
    values = torch.cat([x.reshape(2, -1) for x in fields])
    assert (
        torch.corrcoef(values) - torch.eye(8)
    ).abs().max() < 0.25  # 256 values each: 4 standard deviations


def test_noise_is_standard_normal():
    x = field(noise_key(torch.tensor([3])), (1, 4, 512, 512), torch.float64).flatten()
    n = x.numel()
    assert x.mean().abs() < 4 / math.sqrt(n)
    assert (x.var() - 1).abs() < 4 * math.sqrt(2 / n)
    cumulative = 0.5 * (1 + torch.erf(x.sort().values / math.sqrt(2)))
    steps = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    assert (cumulative - steps).abs().max() < 1.95 / math.sqrt(n)  # Kolmogorov-Smirnov at 0.1 %


def test_float32_noise_is_float64_noise_rounded():
    key = noise_key(torch.tensor([3]))
    torch.testing.assert_close(
        field(key, (1, 4, 64, 64)).double(),
        field(key, (1, 4, 64, 64), torch.float64),
        rtol=0,
        atol=4e-6,
    )


def test_nothing_extreme_is_not_finite():
    """The largest and smallest words, through the formula of `normal`."""
    u = torch.tensor([0.5, 2**23 - 0.5]) * 2**-23
    assert u.min() > 0
    assert u.max() < 1
    assert (-2 * u.log()).sqrt().max() < 5.8
