"""Laws of the blocks that networks share."""

import pytest
import torch
from torch import nn

from ldm_dream.layers import Dropout, GroupNorm, LayerNorm

ALL_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def dropped(p: float, x: torch.Tensor, seed: int = 0) -> torch.Tensor:
    torch.manual_seed(seed)
    return Dropout(p)(x)


@pytest.mark.parametrize("dtype", ALL_DTYPES)
def test_dropout_drops_its_share_and_keeps_the_mean(dtype):
    y = dropped(0.2, torch.ones(4, 8, 101, 103, dtype=dtype))  # 332,904 + 8 values: the share's standard deviation is 7e-4
    assert y.dtype == dtype
    assert (y == 0).double().mean().item() == pytest.approx(0.2, abs=4e-3)
    assert torch.equal(y[y != 0].unique(), torch.tensor([1 / (1 - 13107 / 2**16)], dtype=dtype))


def test_dropout_is_independent_from_value_to_value():
    kept = (dropped(0.3, torch.ones(2**18)) != 0).double() - 0.7
    for distance in (1, 2, 3, 4, 128):  # four neighbours share a random number
        assert abs((kept[distance:] * kept[:-distance]).mean()) < 4 * 0.21 / 2**9


def test_dropout_follows_the_seed():
    x = torch.ones(2, 3, 5, 7)
    assert torch.equal(dropped(0.5, x), dropped(0.5, x))
    assert not torch.equal(dropped(0.5, x), dropped(0.5, x, seed=1))


def test_dropouts_gradient_passes_where_the_value_passed():
    x = torch.randn(2, 3, 5, 7).requires_grad_()
    y = dropped(0.5, x)
    y.sum().backward()
    assert torch.equal(x.grad, (y != 0) * 2.0)


@pytest.mark.parametrize("p", [0.0, 1e-9, 1 - 1e-9, 1.0])
def test_dropout_has_its_limits(p):
    y = dropped(p, torch.ones(1000))
    assert torch.equal(y, torch.ones(1000)) if p < 0.5 else (y != 0).sum() <= 1
    assert torch.equal(Dropout(p).eval()(y), y)


def test_dropout_keeps_the_layout_and_breaks_no_graph():
    x = torch.randn(2, 3, 5, 7).to(memory_format=torch.channels_last)
    for y in (dropped(0.5, x), dropped(0.5, x[..., ::2])):
        assert y.is_contiguous(memory_format=torch.channels_last)
    torch.manual_seed(0)
    compiled = torch.compile(Dropout(0.5), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), dropped(0.5, x))


@pytest.mark.parametrize("norm", [GroupNorm, LayerNorm])
def test_a_norm_with_scale_shift_and_activation_is_the_three_in_a_row(norm):
    x, (scale, shift) = torch.randn(2, 64, 6, 5), torch.randn(2, 2, 64)
    plain, whole = norm(64), norm(64, silu=True)
    want = nn.functional.silu(plain(x) * (1 + scale[:, :, None, None]) + shift[:, :, None, None])
    torch.testing.assert_close(whole(x, scale, shift), want)
