"""Laws of the blocks that networks share."""

import math
from copy import deepcopy

import pytest
import torch
from torch import nn

from ldm_dream.networks.layers import WORTH_FOLDING, Dropout, GroupNorm, LayerNorm, Upsample


def test_dropout_is_off_in_evaluation():
    x = torch.randn(2, 3, 5, 7)
    assert Dropout(0.5).eval()(x) is x
    assert (Dropout(0.5)(x) == 0).any()


@pytest.mark.parametrize("gradient", [True, False])
@pytest.mark.parametrize("norm", [GroupNorm, LayerNorm])
def test_a_norm_with_scale_shift_and_activation_is_the_three_in_a_row(norm, gradient):
    x, (scale, shift) = torch.randn(2, 64, 6, 5), torch.randn(2, 2, 64)
    plain, whole = norm(64), norm(64, silu=True)
    want = nn.functional.silu(plain(x) * (1 + scale[:, :, None, None]) + shift[:, :, None, None])
    before = x.clone()
    with torch.set_grad_enabled(gradient):
        torch.testing.assert_close(whole(x, scale, shift), want)
        torch.testing.assert_close(whole(x), nn.functional.silu(plain(x)))
    assert torch.equal(x, before)


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (31, 33)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_doubling_without_gradient_is_the_one_with(size, layout, dtype):
    upsample = Upsample(8).to(dtype, memory_format=layout)
    x = torch.randn(2, 8, *size).to(dtype, memory_format=layout)
    with torch.no_grad():
        made = upsample(x)
    assert made.dtype == dtype and made.is_contiguous(memory_format=layout)
    want = upsample(x)
    exact = deepcopy(upsample).double()(x.double())
    least = 1e-6 if dtype == torch.float32 else 1e-14  # of the exact result's length
    assert (made - exact).norm() < 1.5 * (want - exact).norm() + least * exact.norm()


def test_a_doubling_under_autocast_is_the_one_with_gradient():
    upsample, x = Upsample(8), torch.randn(1, 8, 32, 32)
    with torch.autocast("cpu", torch.bfloat16):
        want = upsample(x)
        with torch.no_grad():
            made = upsample(x)
    assert made.dtype == want.dtype == torch.bfloat16
    torch.testing.assert_close(made, want, atol=0.03, rtol=0.03)


def test_a_doubling_is_folded_where_that_is_worth_it(monkeypatch):
    calls = []
    transposed = torch.nn.functional.conv_transpose2d
    monkeypatch.setattr(
        torch.nn.functional,
        "conv_transpose2d",
        lambda *a, **k: (calls.append(1), transposed(*a, **k))[1],
    )
    upsample, side = Upsample(4), math.isqrt(WORTH_FOLDING)
    with torch.no_grad():
        upsample(torch.zeros(1, 4, side, side - 1))
        assert not calls
        upsample(torch.zeros(1, 4, side, side))
    assert calls
