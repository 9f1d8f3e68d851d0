"""Laws of the blocks that networks share."""

import pytest
import torch
from torch import nn

from ldm_dream.networks.layers import Dropout, GroupNorm, LayerNorm


def test_dropout_is_off_in_evaluation():
    x = torch.randn(2, 3, 5, 7)
    assert Dropout(0.5).eval()(x) is x
    assert (Dropout(0.5)(x) == 0).any()


@pytest.mark.parametrize("norm", [GroupNorm, LayerNorm])
def test_a_norm_with_scale_shift_and_activation_is_the_three_in_a_row(norm):
    x, (scale, shift) = torch.randn(2, 64, 6, 5), torch.randn(2, 2, 64)
    plain, whole = norm(64), norm(64, silu=True)
    want = nn.functional.silu(plain(x) * (1 + scale[:, :, None, None]) + shift[:, :, None, None])
    torch.testing.assert_close(whole(x, scale, shift), want)
