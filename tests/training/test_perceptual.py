"""LPIPS as a loss: of the whole patch, or of cuts that begin at random."""

import pytest
import torch

from ldm_dream.config.run import AutoencoderRun, DiffusionRun
from ldm_dream.training.perceptual import lpips_loss


class Seen(torch.nn.Module):
    """Keeps what it is asked about."""

    def __init__(self):
        super().__init__()
        self.pairs = []

    def forward(self, made, wanted):
        self.pairs.append((made, wanted))
        return (made - wanted).abs().mean((1, 2, 3), keepdim=True)


def test_without_a_shift_the_whole_patch_is_seen_and_nothing_is_drawn():
    lpips, generator = Seen(), torch.Generator().manual_seed(0)
    before = generator.get_state()
    a, b = torch.rand(2, 2, 3, 8, 8)
    assert lpips_loss(lpips, a, b, 0, generator) == pytest.approx((a - b).abs().mean().item())
    assert torch.equal(lpips.pairs[0][0], a) and torch.equal(generator.get_state(), before)


def test_cuts_begin_at_all_places_and_lie_alike_in_both_pictures():
    lpips, generator = Seen(), torch.Generator().manual_seed(0)
    y, x = torch.meshgrid(torch.arange(12), torch.arange(10), indexing="ij")
    places = torch.stack([y, x, y]).float()[None]
    for _ in range(200):
        lpips_loss(lpips, places, places + 1, 3, generator)
    assert all(made.shape[-2:] == (9, 7) for made, _ in lpips.pairs)
    assert all(torch.equal(made + 1, wanted) for made, wanted in lpips.pairs)
    begins = {(int(made[0, 0, 0, 0]), int(made[0, 1, 0, 0])) for made, _ in lpips.pairs}
    assert begins == {(top, left) for top in range(4) for left in range(4)}


@pytest.mark.parametrize("run", [DiffusionRun, AutoencoderRun])
def test_a_shift_without_lpips_is_refused(run):
    with pytest.raises(ValueError, match="lpips_shift has no effect"):
        run(loss={"lpips_shift": 3, "lpips": 0})
    assert run(loss={"lpips_shift": 3, "lpips": 1}).loss.lpips_shift == 3
    with pytest.raises(ValueError, match="data.patch=32 with loss.lpips_shift=3 leaves LPIPS less"):
        run(loss={"lpips_shift": 3, "lpips": 1}, data={"patch": 32})


def test_a_pattern_of_four_pixels_is_seen_by_cuts_that_begin_at_random():
    """A stride of four at a fixed place sees one pixel in sixteen."""

    def strided(made, wanted):
        return (made - wanted)[..., ::4, ::4].abs().mean((1, 2, 3), keepdim=True)

    wanted = torch.zeros(1, 3, 35, 35)
    made = wanted.clone()
    made[..., 1::4, 2::4] = 1
    generator = torch.Generator().manual_seed(0)
    assert lpips_loss(strided, made, wanted, 0, generator) == 0
    seen = [lpips_loss(strided, made, wanted, 3, generator).item() for _ in range(100)]
    assert 0.02 < sum(seen) / len(seen) < 0.12
