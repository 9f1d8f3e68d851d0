"""LPIPS as a loss: of the whole patch, or of cuts that begin at random; by two networks."""

from importlib.util import find_spec

import pytest
import torch

from ldm_dream.config.run import AutoencoderRun, DiffusionRun, PerceptualConfig
from ldm_dream.errors import ConfigError, UserError
from ldm_dream.scoring.metrics import load_lpips
from ldm_dream.training.check import check_run
from ldm_dream.training.perceptual import Perceptual, load_networks
from vgg16 import vgg16_file


class Seen(torch.nn.Module):
    """Keeps what it is asked about."""

    def __init__(self):
        super().__init__()
        self.pairs = []

    def forward(self, made, wanted):
        self.pairs.append((made, wanted))
        return (made - wanted).abs().mean((1, 2, 3), keepdim=True)


def of_alexnet(network, shift: int = 0) -> Perceptual:
    return Perceptual(PerceptualConfig(lpips=1.0, lpips_shift=shift), {"lpips": network})


def test_without_a_shift_the_whole_patch_is_seen_and_nothing_is_drawn():
    lpips, generator = Seen(), torch.Generator().manual_seed(0)
    before = generator.get_state()
    a, b = torch.rand(2, 2, 3, 8, 8)
    weight, term = of_alexnet(lpips).terms(a, b, generator)["lpips"]
    assert weight == 1 and term == pytest.approx((a - b).abs().mean().item())
    assert torch.equal(lpips.pairs[0][0], a) and torch.equal(generator.get_state(), before)


def test_cuts_begin_at_all_places_and_lie_alike_in_both_pictures():
    lpips, generator = Seen(), torch.Generator().manual_seed(0)
    y, x = torch.meshgrid(torch.arange(12), torch.arange(10), indexing="ij")
    places = torch.stack([y, x, y]).float()[None]
    for _ in range(200):
        of_alexnet(lpips, 3).terms(places, places + 1, generator)
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

    def seen_by(loss: Perceptual) -> float:
        return loss.terms(made, wanted, generator)["lpips"][1].item()

    assert seen_by(of_alexnet(strided)) == 0
    seen = [seen_by(of_alexnet(strided, 3)) for _ in range(100)]
    assert 0.02 < sum(seen) / len(seen) < 0.12


def test_two_networks_see_the_same_cut_each_with_its_weight():
    cfg, first, second = PerceptualConfig(lpips=2.0, lpips_vgg=0.5, lpips_shift=3), Seen(), Seen()
    a, b = torch.rand(2, 2, 3, 40, 40)
    networks = {"lpips": first, "lpips_vgg": second}
    terms = Perceptual(cfg, networks).terms(a, b, torch.Generator().manual_seed(1))
    assert {name: weight for name, (weight, _) in terms.items()} == {"lpips": 2, "lpips_vgg": 0.5}
    assert torch.equal(first.pairs[0][0], second.pairs[0][0])
    only = Perceptual(PerceptualConfig(lpips_vgg=0.5), networks)
    assert list(only.terms(a, b, torch.Generator())) == ["lpips_vgg"]


@pytest.mark.skipif(find_spec("lpips") is None, reason="lpips (extra `eval`) is not installed")
@pytest.mark.parametrize("kind", [DiffusionRun, AutoencoderRun])
def test_vgg16_is_read_from_the_file_that_the_run_names(kind, tmp_path):
    file = vgg16_file(tmp_path)
    run = kind(loss={"lpips": 0, "lpips_vgg": 1}, vgg_weights=str(file))
    assert check_run(run, tmp_path / "run", starts=False).vgg_weights == str(file)
    (network,) = load_networks(run, torch.device("cpu")).values()
    a, b = torch.rand(2, 1, 3, 32, 32) * 2 - 1
    expected = load_lpips(file, "vgg")(a, b).mean()
    terms = Perceptual(run.loss, {"lpips_vgg": network}).terms(a, b, torch.Generator())
    assert terms["lpips_vgg"][1] == expected and expected > 0


@pytest.mark.parametrize("kind", [DiffusionRun, AutoencoderRun])
def test_vgg16_without_its_file_is_refused(kind, tmp_path):
    run = kind(loss={"lpips": 0, "lpips_vgg": 1})
    with pytest.raises(ConfigError, match=r"loss.lpips_vgg is set but vgg_weights is not: name a "):
        check_run(run, tmp_path)
    with pytest.raises(UserError, match=r"loss.lpips_vgg is set but vgg_weights is not"):
        Perceptual(run.loss, {})
    (tmp_path / "no.pth").write_text("no weights")
    broken = run.model_copy(update={"vgg_weights": str(tmp_path / "no.pth")})
    with pytest.raises(ConfigError, match=r"vgg_weights=.*no.pth: no file of weights"):
        check_run(broken, tmp_path / "run")
