import mmap
import re
import subprocess
import sys
from functools import cache
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest
import torch
from pydantic import TypeAdapter
from torch.utils._python_dispatch import TorchDispatchMode

from ldm_dream.config.autoencoder import PixelConfig, VQGANConfig
from ldm_dream.config.networks import IDMConfig, NetworkConfig, ResShiftNetConfig, SR3Config
from ldm_dream.config.process import DDPMConfig, ResidualShiftConfig, Sampling
from ldm_dream.config.run import DiffusionRun
from ldm_dream.data import scratch
from ldm_dream.data.images import Image, ImageError
from ldm_dream.data.resize import imresize_to, upsample
from ldm_dream.denoiser import Denoiser
from ldm_dream.errors import UserError
from ldm_dream.model_folder import LoadedModel
from ldm_dream.networks import build_network
from ldm_dream.networks.autoencoders import build_autoencoder
from ldm_dream.networks.layers import LastConv2d
from ldm_dream.process import build_process
from ldm_dream.sampler import SamplerError
from ldm_dream.upscaling import colors as colors_module
from ldm_dream.upscaling import layout as layout_module
from ldm_dream.upscaling import pictures as pictures_module
from ldm_dream.upscaling.devices import TooLittleMemory, placed
from ldm_dream.upscaling.engine import Options
from ldm_dream.upscaling.layout import first_layout
from ldm_dream.upscaling.pictures import unpack
from ldm_dream.upscaling.sizes import Size
from ldm_dream.upscaling.upscaler import DEFAULT_MODEL, UpscaleError, Upscaler

LATENT = VQGANConfig(
    ch=4,
    ch_mult=(1, 1, 1),
    num_res_blocks=1,
    norm="none",
    mid_attention=False,
    n_embed=16,
    quantize=False,
)


def make(scale: int = 4, autoencoder=LATENT, condition=("lr",), cond_factor: int = 1) -> Upscaler:
    """Random weights, large enough that output depends on noise, step and condition; local norms,
    windows of 4 at two levels.
    """
    run = DiffusionRun(
        scale=scale,
        autoencoder=autoencoder,
        condition=condition,
        process=ResidualShiftConfig(num_timesteps=3),
        network=ResShiftNetConfig(
            image_size=16,
            cond_channels=3 * len(condition),
            cond_factor=cond_factor,
            model_channels=8,
            channel_mult=(1, 2),
            num_res_blocks=1,
            attention_resolutions=(),
            swin_embed_dim=8,
            num_head_channels=4,
            window_size=4,
            mlp_ratio=1,
            norm="layer",
        ),
    )
    generator = torch.Generator().manual_seed(0)
    network, decoder = build_network(run.network), build_autoencoder(run.autoencoder)
    for name, parameter in (*network.named_parameters(), *decoder.named_parameters()):
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5, generator=generator)
        elif name.endswith("bias"):
            torch.nn.init.zeros_(parameter)
    return Upscaler(LoadedModel(run, network, decoder, build_process(run.process)), device="cpu")


@cache
def upscaler() -> Upscaler:
    return make()


def pictures() -> dict[str, torch.Tensor]:
    """[3, 96, 64] in [0, 1]."""
    ramp = torch.linspace(0.1, 0.9, 64).expand(3, 96, 64) * torch.tensor([1.0, 0.8, 0.5]).view(
        3, 1, 1
    )
    return {
        "flat": torch.full((3, 96, 64), 0.4),
        "gradient": ramp,
        "noise": torch.rand(3, 96, 64, generator=torch.Generator().manual_seed(3)),
    }


@pytest.mark.parametrize(
    ("options", "seen"),
    [
        ({"scale": 2.5}, {(25, 35)}),
        ({}, {(40, 56)}),
        # beyond max_scale: its own scale, with mirrored pixels around, then bicubic
        ({"scale": 6}, {(72, 88)}),
        ({"scale": 2.5, "tile": 8, "tile_pad": 1}, {(40, 48)}),  # tiles: likewise
    ],
)
def test_idm_makes_any_scale_up_to_its_largest_itself(options, seen):
    torch.manual_seed(0)
    run = DiffusionRun(
        scale=4,
        prediction="eps",
        process=DDPMConfig(num_timesteps=10, beta_end=0.5),
        sampler={"kind": "ddim", "steps": 2},
        network=IDMConfig(
            image_size=32, model_channels=8, channel_mult=(1, 2), num_res_blocks=1, attention_resolutions=(), norm_groups=4,
            encoder_blocks=1, encoder_channels=8, max_scale=4,
        ),
    )  # fmt: skip
    network = build_network(run.network)
    decoder, process = build_autoencoder(run.autoencoder), build_process(run.process)
    model = Upscaler(LoadedModel(run, network, decoder, process), device="cpu")
    sizes = set()
    network.register_forward_hook(lambda _, args, out: sizes.add(tuple(out.shape[-2:])))
    image = np.random.default_rng(0).integers(0, 256, (10, 14, 3), dtype=np.uint8)
    scale = options.get("scale", 4)
    assert model(image, **options).shape == (round(10 * scale), round(14 * scale), 3)
    assert sizes == seen


def sr3(condition=("z_lr",)):
    """A small SR3 for x4, and the sizes that its network has seen."""
    torch.manual_seed(0)
    run = DiffusionRun(
        scale=4,
        prediction="eps",
        condition=condition,
        process=DDPMConfig(num_timesteps=10, beta_end=0.5),
        sampler={"kind": "ddim", "steps": 2},
        network=SR3Config(
            image_size=16, model_channels=8, channel_mult=(1, 2), num_res_blocks=1, attention_resolutions=(),
            norm_groups=4,
        ),
    )  # fmt: skip
    network, sizes = build_network(run.network), set()
    network.register_forward_hook(lambda _, args, out: sizes.add(tuple(out.shape[-2:])))
    decoder, process = build_autoencoder(run.autoencoder), build_process(run.process)
    return Upscaler(LoadedModel(run, network, decoder, process), device="cpu"), sizes


@pytest.mark.parametrize("scale", [1, 2, 2.5, 3, 5])
def test_sr3_makes_any_scale_itself_where_that_is_asked_for(scale):
    model, sizes = sr3()
    image = np.random.default_rng(0).integers(0, 256, (10, 14, 3), dtype=np.uint8)
    made = model(image, scale=scale, native_scale=True)
    assert made.shape == (round(10 * scale), round(14 * scale), 3)
    assert sizes == {made.shape[:2]}
    sizes.clear()
    own = model(image, scale=scale)
    assert own.shape == made.shape and (own != made).any()
    assert sizes == {(72, 88)}, "with 4 mirrored pixels on each side"


@pytest.mark.parametrize(
    ("condition", "options", "says"),
    [
        (("z_lr",), {"scale": 0.5}, "no picture of that scale itself"),
        (("lr",), {"scale": 3}, "no picture of that scale itself"),
        (
            ("z_lr",),
            {"scale": 3, "tile": 8},
            "is taken whole up to 256x256 pixels, and without tile",
        ),
        (("z_lr",), {"native_scale": 3}, "native_scale=3 is neither True nor False"),
    ],
)
def test_a_native_scale_that_is_not_possible_is_one_sentence(condition, options, says):
    image = np.zeros((10, 14, 3), np.uint8)
    model, _ = sr3(condition=condition)
    with pytest.raises(UpscaleError, match=says):
        model(image, **{"native_scale": True} | options)


def test_a_latent_model_has_no_native_scale():
    with pytest.raises(UpscaleError, match="no picture of that scale itself"):
        upscaler()(np.zeros((8, 8, 3), np.uint8), scale=3, native_scale=True)


# ---------------------------------------------------------------------------------- sizes and types


@pytest.mark.parametrize("scale", [None, 0.5, 1, 1.5, 2.5, 3, 4, 5])
def test_output_is_exactly_the_rounded_size(scale):
    out = upscaler()(np.zeros((7, 9, 3), np.uint8), scale=scale, steps=1)
    assert out.shape == (round(7 * (scale or 4)), round(9 * (scale or 4)), 3)


def test_a_size_may_be_asked_for_instead_of_a_scale():
    given = np.zeros((6, 9, 3), np.uint8)
    assert upscaler()(given, width=20).shape == (13, 20, 3)
    assert upscaler()(given, height=20, width=20).shape == (13, 20, 3)
    assert upscaler()(given, megapixels=54e-6).shape == given.shape
    with pytest.raises(UpscaleError, match="scale=2 and height=9"):
        upscaler()(given, scale=2, height=9)


@pytest.mark.parametrize("height, width", [(1, 1), (1, 40), (7, 5000), (33, 2)])
def test_every_size_works(height, width):
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    assert upscaler()(image, steps=1).shape == (4 * height, 4 * width, 3)


@pytest.mark.parametrize(
    "model",
    [
        {"scale": 2, "cond_factor": 2},
        {"scale": 3, "autoencoder": PixelConfig()},
        {"scale": 4, "autoencoder": PixelConfig(), "condition": ("lr", "z_lr")},
        {
            "scale": 4,
            "autoencoder": LATENT.model_copy(update={"quantize": True}),
            "condition": ("z_lr",),
        },
    ],
)
def test_every_kind_of_model_works_whole_and_in_tiles(model):
    upscaler = make(**model)
    image = np.random.default_rng(0).integers(0, 256, (37, 41, 3), dtype=np.uint8)
    for tile in (None, 8):
        assert upscaler(image, steps=1, tile=tile, tile_pad=2).shape == (
            37 * model["scale"],
            41 * model["scale"],
            3,
        )


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((5, 6, 3), np.uint16),
        np.zeros((5, 6), np.uint8),
        np.zeros((5, 6, 4), np.float32),
        PIL.Image.new("LA", (6, 5)),
        PIL.Image.new("I;16", (6, 5)),
    ],
)
def test_type_and_depth_come_back(image):
    out = upscaler()(image, steps=1)
    assert type(out) is type(image)
    assert np.asarray(out).dtype == np.asarray(image).dtype
    assert np.asarray(out).shape == (20, 24, *np.asarray(image).shape[2:])


def test_sixteen_bits_are_not_made_from_eight():
    image = np.random.default_rng(0).integers(0, 65536, (16, 16, 3), dtype=np.uint16)
    out = upscaler()(image, steps=1)
    assert len(np.unique(out % 257)) > 200


def test_alpha_is_enlarged_by_bicubic_and_does_not_touch_the_colours():
    rng = np.random.default_rng(0)
    rgb, alpha = (
        rng.integers(0, 256, (9, 8, 3), dtype=np.uint8),
        rng.integers(0, 256, (9, 8), dtype=np.uint8),
    )
    out = upscaler()(Image(rgb, alpha, b"profile"), scale=3, steps=1)
    expected = (
        imresize_to(torch.from_numpy(alpha / 255.0), 27, 24).clamp(0, 1).mul(255).round().numpy()
    )
    assert np.abs(out.alpha.astype(int) - expected).max() <= 1
    assert np.array_equal(out.pixels, upscaler()(rgb, scale=3, steps=1))
    assert out.icc == b"profile"


def test_grey_files_come_back_grey():
    assert upscaler()(Image(np.zeros((4, 4, 3), np.uint8), was_gray=True), steps=1).was_gray


# -------------------------------------------------------------------------- same seed, same picture


def test_seed_decides_the_picture():
    image = pictures()["noise"]
    first = upscaler()(image, seed=1)
    assert torch.equal(first, upscaler()(image, seed=1))
    assert (first - upscaler()(image, seed=2)).abs().mean() > 1e-3


@pytest.mark.parametrize("batch_size", [2, 5, 64])
def test_batch_size_changes_nothing_but_rounding(batch_size):
    image, options = pictures()["noise"], {"tile": 40, "tile_pad": 4}
    out = upscaler()(image, batch_size=batch_size, **options)
    torch.testing.assert_close(out, upscaler()(image, batch_size=1, **options), rtol=0, atol=2e-4)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_picture_in_a_batch_is_the_picture_alone(batch_size):
    batch = torch.stack(list(pictures().values()))
    out = upscaler()(batch, batch_size=batch_size, color_fix="none")
    for alone, together in zip(batch, out):
        torch.testing.assert_close(upscaler()(alone, color_fix="none"), together, rtol=0, atol=2e-4)


@pytest.mark.parametrize("name", pictures())
def test_tiled_agrees_with_untiled(name):
    """Bounds for a local network whose random weights carry every pixel far: small at the default
    overlap, none at twice it.
    """
    image = pictures()[name].repeat(1, 1, 3)[:, :32, :160]
    whole, other_seed = (
        upscaler()(image, tile=160, seed=seed, color_fix="none") for seed in (0, 1)
    )
    error = (upscaler()(image, tile=96, tile_pad=16, color_fix="none") - whole).abs()
    # noise of its own for each tile would make it 1
    assert error.mean() < 0.01 * (other_seed - whole).abs().mean()
    error = (upscaler()(image, tile=128, tile_pad=32, color_fix="none") - whole).abs()
    assert error.max() < 0.25 / 255, f"{error.max() * 255:.3f} levels"


@pytest.mark.parametrize("name", ["flat", "gradient"])
def test_tiles_leave_no_seam(name):
    """Tiling moves no pixel pair apart by a tenth of the texture's own steps; a hard cut or a ramp
    from the very edge do.
    """
    image = pictures()[name].repeat(1, 1, 3)[:, :32, :160]
    whole, tiled = (
        upscaler()(image, tile=tile, tile_pad=16, seed=1, color_fix="none") for tile in (160, 96)
    )
    assert (tiled - whole).diff(dim=-1).abs().max() < 0.1 * whole.diff(dim=-1).abs().max()


def test_running_out_of_memory_halves_the_tile_and_says_so(caplog, monkeypatch):
    upscaler, seen = make(), []
    decode = upscaler.engine.autoencoder.decode

    def small_decode(z):
        seen.append(z.shape[-1])
        if z.shape[-1] > 32:
            raise torch.OutOfMemoryError
        return decode(z)

    monkeypatch.setattr(upscaler.engine.autoencoder, "decode", small_decode)
    image = pictures()["noise"]
    out = upscaler(image, steps=1, tile_pad=4)
    assert sorted(set(seen)) == [32, 40, 72]
    assert [record.getMessage()[:13] for record in caplog.records] == ["out of memory"] * 2
    monkeypatch.setattr(upscaler.engine.autoencoder, "decode", decode)
    torch.testing.assert_close(
        out, upscaler(image, steps=1, tile=24, tile_pad=4), rtol=0, atol=1e-5
    )


def test_a_batch_of_small_pictures_that_does_not_fit_goes_in_tiles_of_whole_windows(monkeypatch):
    upscaler = make()
    decode = upscaler.engine.autoencoder.decode

    def small_decode(z):
        if z.shape[-1] > 32:
            raise torch.OutOfMemoryError
        return decode(z)

    batch = torch.stack(list(pictures().values()))
    asked = {"steps": 1, "tile_pad": 4, "batch_size": 2}
    monkeypatch.setattr(upscaler.engine.autoencoder, "decode", small_decode)
    out = upscaler(batch, **asked)
    monkeypatch.setattr(upscaler.engine.autoencoder, "decode", decode)
    torch.testing.assert_close(out, upscaler(batch, tile=24, **asked), rtol=0, atol=1e-5)


def test_memory_that_no_tile_fits_is_one_sentence(monkeypatch):
    upscaler = make()
    monkeypatch.setattr(
        upscaler.engine.autoencoder,
        "decode",
        lambda z: (_ for _ in ()).throw(torch.OutOfMemoryError()),
    )
    with pytest.raises(TooLittleMemory, match="too little memory for the smallest tiles"):
        upscaler(pictures()["flat"], steps=1)


# ----------------------------------------------------------------------- colours, borders, memory


@cache
def bundled() -> Upscaler:
    return Upscaler.from_pretrained(device="cpu")


def test_a_flat_picture_is_flat_up_to_its_border():
    flat = np.zeros((24, 24, 3), np.uint8) + np.array([200, 30, 30], np.uint8)
    off = np.abs(bundled()(flat).astype(int) - [200, 30, 30]).mean(2)
    assert max(off.mean(0).max(), off.mean(1).max()) < 3


# the photo model leaves white half a level darker
@pytest.mark.parametrize("name, white", [("dream-latent-x4-tiny", 254.5), (DEFAULT_MODEL, 254)])
def test_black_letters_on_white_have_no_coloured_fringe(name, white):
    page = np.full((24, 24, 3), 255, np.uint8)
    page[4:20, 6:8] = page[4:6, 6:18] = page[11:13, 6:14] = 0
    out = Upscaler.from_pretrained(name, device="cpu")(page).astype(int)
    assert (out.max(2) - out.min(2)).max() <= 2
    assert out[:, -12:].mean() > white


def test_what_is_hidden_under_alpha_changes_nothing_that_is_seen():
    page = np.zeros((24, 24, 4), np.uint8)
    page[8:16, 6:18] = [220, 40, 30, 255]
    green = page.copy()
    green[page[..., 3] == 0, :3] = [0, 255, 0]
    made = [bundled()(picture, steps=1) for picture in (page, green)]
    assert np.array_equal(*made)
    rim = (made[0][..., 3] > 25) & (made[0][..., 3] < 230)
    assert np.abs(made[0][rim][:, :3].astype(int) - [220, 40, 30]).mean() < 4


@pytest.mark.parametrize("color_fix", ["none", "wavelet", "adain"])
@pytest.mark.parametrize("scale", [0.5, 1.5, 4])
def test_strips_change_no_number(color_fix, scale, monkeypatch):
    image = Image(
        *np.split(np.random.default_rng(0).integers(0, 256, (75, 21, 4), np.uint8), [3], 2)
    )
    image = Image(image.pixels, image.alpha[..., 0])
    options = {"steps": 1, "scale": scale, "color_fix": color_fix, "tile": 24, "tile_pad": 2}
    whole = upscaler()(image, **options)
    monkeypatch.setattr(pictures_module, "STRIP", 21 * 4 * 13)
    monkeypatch.setattr(pictures_module, "MIN_STRIP", 13)
    monkeypatch.setattr(colors_module, "COLUMNS", 37)
    in_strips = upscaler()(image, **options)
    assert np.array_equal(in_strips.alpha, whole.alpha)
    # the moments of adain are summed in another order
    assert np.abs(in_strips.pixels.astype(int) - whole.pixels).max() <= (color_fix == "adain")


class Largest(TorchDispatchMode):
    """The most numbers that a tensor made under it holds."""

    def __init__(self):
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else [made]:
            if isinstance(tensor, torch.Tensor):
                self.numbers = max(self.numbers, tensor.untyped_storage().nbytes() // 4)
        return made


@pytest.mark.parametrize("scale", [0.5, 4])
def test_a_large_picture_is_never_whole_in_floats(scale, monkeypatch):
    monkeypatch.setattr(pictures_module, "STRIP", 0)
    image = np.random.default_rng(0).integers(0, 256, (320, 8, 3), np.uint8)
    with Largest() as seen:
        upscaler()(image, steps=1, scale=scale, tile=16, tile_pad=2)
    assert seen.numbers < 0.5 * image.size * 16


def test_a_large_result_for_a_file_lies_in_a_file_and_is_the_same(monkeypatch, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 24, 3), np.uint8)
    wanted = upscaler()(Image(pixels), steps=1).pixels
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(scratch, "IN_FILE_FROM", 1)
    found = upscaler()(Image(pixels), steps=1).pixels
    assert isinstance(owner(found), mmap.mmap) and np.array_equal(found, wanted)
    assert owner(upscaler()(pixels, steps=1)) is None, "arrays of the caller are in memory"


def owner(array):
    """What the memory of an array belongs to; None: to an array itself."""
    while isinstance(array, np.ndarray):
        array = array.base
    return array.obj if isinstance(array, memoryview) else array


def test_the_networks_work_grows_as_the_pixels_do():
    """Of the bundled model, whose tiles lie on a grid of 32. A picture in one piece has no overlap
    to pay for.
    """
    engine = SimpleNamespace(
        scale=4,
        factor=4,
        multiple=8,
        align=32,
        context=4,
        makes=lambda scale, asked: False,
        calls=lambda how: 1,
    )
    work = []
    for side in (256, 512, 1024, 2048):
        pixels = unpack(np.zeros((side, side, 3), np.uint8))
        layout = first_layout(engine, pixels, Size(4), Options())
        tiles = layout.tiles
        height, width = tiles.shape if tiles else (side // 4 for side in layout.frame.size)
        work.append(layout.calls * height * width / side**2)
    assert max(work[1:]) < 1.05 * min(work[1:])
    assert work[0] < min(work[1:]) < 1.2 * work[0]


def test_a_very_large_picture_takes_smaller_tiles_by_itself(monkeypatch):
    for name in ("AUTO_TILE", "SMALL_TILE", "VERY_LARGE"):
        monkeypatch.setattr(
            layout_module, name, {"AUTO_TILE": 32, "SMALL_TILE": 16}.get(name, 4096)
        )
    model, sides = make(), []
    encode = model.engine.autoencoder.encode
    monkeypatch.setattr(
        model.engine.autoencoder, "encode", lambda x: sides.append(x.shape[-1] // 4) or encode(x)
    )
    for height, side in ((32, 40), (64, 40), (65, 24)):
        model(np.zeros((height, 64, 3), np.uint8), steps=1, tile_pad=0)
        assert set(sides) == {side}
        sides.clear()


# ---------------------------------------------------------------------------- options and condition


def test_options_reach_the_sampler():
    image = pictures()["noise"][:, :16, :16]
    default = upscaler()(image)
    assert torch.equal(default, upscaler()(image, steps=3))
    for options in ({"steps": 1}, {"sampler": "ddim"}, {"color_fix": "none"}):
        assert not torch.equal(default, upscaler()(image, **options)), options


def test_bf16_is_close_to_fp32():
    model = upscaler()
    half = Upscaler(model.model, device="cpu", dtype="bf16")
    image = pictures()["noise"][:, :16, :16]
    assert 0 < (half(image) - model(image)).abs().mean() < 0.02


HALF = {
    "resshift": ({"swin_embed_dim": 32, "num_head_channels": 16, "cond_factor": 2}, 6, 2),
    "sr3": ({}, 3, 1),
    "ldm": ({"model_channels": 32, "num_head_channels": 16}, 3, 1),
    "idm": ({"encoder_blocks": 1, "encoder_channels": 8}, 3, None),
}  # fmt: skip


@pytest.mark.parametrize("kind", HALF)
@torch.no_grad()
def test_weights_cast_once_give_the_bits_of_autocast(kind):
    torch.manual_seed(0)
    options, channels, factor = HALF[kind]
    options = {
        "image_size": 16,
        "model_channels": 32,
        "channel_mult": (1, 2),
        "num_res_blocks": 1,
    } | options
    cfg = TypeAdapter(NetworkConfig).validate_python(
        {"kind": kind, "cond_channels": channels, "attention_resolutions": (8,), "dropout": 0.0}
        | options
    )
    network = build_network(cfg).to(memory_format=torch.channels_last).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    half = placed(network, torch.device("cpu"), torch.bfloat16)
    size = {None: 8, 1: 16, 2: 32}[factor]
    cond, z_t = torch.randn(2, channels, size, size), torch.randn(2, cfg.in_channels, 16, 16)
    made, t = [], torch.rand(2)
    for module in (network, half):
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            emb = module.embed(t)
            made.append(module(z_t, emb, *module.prepare(cond, (16, 16))))
    assert torch.equal(*made) and made[0].std() > 1e-3
    kinds = {parameter.dtype for parameter in half.parameters()}
    assert kinds == {torch.bfloat16, torch.float32}
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
    last = [layer for layer in half.modules() if isinstance(layer, LastConv2d)]
    assert [layer.weight.dtype for layer in last] == [torch.float32]


@torch.no_grad()
def test_an_autoencoder_cast_once_gives_the_bits_of_autocast():
    torch.manual_seed(0)
    vqgan = build_autoencoder(
        LATENT.model_copy(update={"norm": "group", "ch": 32, "mid_attention": True})
    ).eval()
    vqgan.to(memory_format=torch.channels_last)
    half, x = placed(vqgan, torch.device("cpu"), torch.bfloat16), torch.rand(1, 3, 32, 32)
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        made = [module.decode(module.encode(x).float()) for module in (vqgan, half)]
    assert torch.equal(*made)


@pytest.mark.parametrize(
    "options, says",
    [
        ({"scale": 0}, "scale=0"),
        ({"scale": float("nan")}, "scale=nan"),
        ({"steps": 0}, "steps=0"),
        ({"steps": 4}, "steps=4"),
        ({"seed": -1}, "seed=-1"),
        ({"seed": 2**64}, "one below 2.64"),
        ({"tile": 0}, "tile=0"),
        ({"tile_pad": -1}, "tile_pad=-1"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"max_pixels": 0}, "max_pixels=0"),
        ({"color_fix": "ycbcr"}, "color_fix='ycbcr'.*none, wavelet, adain"),
        ({"color_fix": ["none"]}, "color_fix=.'none'. is unknown"),
        ({"sampler": "euler"}, "sampler 'euler'"),
        ({"sampler": 3}, "sampler=3 is unknown"),
        ({"steps": "3"}, "steps='3' is not possible; give a whole number from 1"),
        ({"batch_size": 1.5}, "batch_size=1.5"),
        ({"tile": True}, "tile=True"),
        ({"tile": "64"}, "tile='64'"),
        ({"tile_pad": None}, "tile_pad=None"),
        ({"max_pixels": None}, "max_pixels=None"),
        ({"sampler": "dpm-solver++"}, "dpm-solver"),
    ],
)
def test_impossible_options_are_one_sentence(options, says):
    with pytest.raises((UpscaleError, SamplerError), match=says) as error:
        upscaler()(pictures()["flat"], **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "options, says", [({"device": "tpu"}, "device='tpu'"), ({"dtype": "int8"}, "dtype='int8'")]
)
def test_unknown_devices_and_dtypes_are_one_sentence(options, says):
    model = upscaler()
    with pytest.raises(UpscaleError, match=says):
        Upscaler(model.model, **options)


def test_the_limit_counts_what_is_made():
    image = np.zeros((8, 8, 3), np.uint8)
    assert upscaler()(image, scale=1, max_pixels=64, steps=1).shape == (8, 8, 3)
    for scale, says in ((10, "6400 pixels, more than the 64 allowed"), (2, "--max-pixels")):
        with pytest.raises(ImageError, match=says):
            upscaler()(image, scale=scale, max_pixels=64)


def test_ctrl_c_stops_between_tiles(monkeypatch):
    upscaler, seen = make(), []

    def stop(z):
        seen.append(z)
        raise KeyboardInterrupt

    monkeypatch.setattr(upscaler.engine.autoencoder, "decode", stop)
    for options in ({}, {"tile": 24}):
        with pytest.raises(KeyboardInterrupt):
            upscaler(pictures()["flat"], steps=1, **options)
    assert len(seen) == 2


def test_a_result_with_nan_is_refused(monkeypatch):
    upscaler = make()
    monkeypatch.setattr(
        upscaler.engine.autoencoder, "decode", lambda z: torch.full((len(z), 3, 96, 64), torch.nan)
    )
    with pytest.raises(ImageError, match="NaN or infinity in torch.float32"):
        upscaler(torch.zeros(3, 9, 8), steps=1)


def test_condition_is_the_parts_in_order_on_the_grid_of_the_network():
    lr, z_lr = torch.rand(2, 3, 8, 6), torch.rand(2, 3, 8, 6)

    def cond(lr, z_lr, *condition):
        return Denoiser(make().engine.denoiser.network, None, condition, "z0").cond(lr, z_lr)

    assert torch.equal(cond(lr, z_lr, "z_lr", "lr"), torch.cat([z_lr, lr], 1))
    large = upsample(lr, tuple(2 * side for side in lr.shape[-2:]))
    assert large.shape == (2, 3, 16, 12) and large.min() >= -1
    torch.testing.assert_close(cond(lr, large, "lr"), imresize_to(lr, 16, 12))
    assert cond(lr, z_lr).shape == (2, 0, 8, 6)


def test_upscaler_is_exported_lazily():
    code = "import ldm_dream.config.files, sys; assert 'torch' not in sys.modules; "
    code += "from ldm_dream import Upscaler; Upscaler; "
    code += "assert not {'spandrel', 'gradio', 'ray'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_process_with_noise_alone_works_too():
    model = upscaler()
    run = model.model.run.model_copy(
        update={
            "process": DDPMConfig(respace=4),
            "prediction": "v",
            "sampler": Sampling(kind="dpm-solver++", steps=3),
        }
    )
    model = model.model._replace(run=run, process=build_process(run.process))
    out = Upscaler(model, device="cpu")(pictures()["noise"], tile=48)
    assert out.shape == (3, 384, 256) and out.isfinite().all()


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        (b"abc", {}, "a picture of type bytes"),
        ("a.png", {"stepps": 1}, "there is no option stepps; did you mean steps?"),
        ("https://example.com/a.png", {}, "addresses are not fetched"),
        (["https://example.com/a.png"], {}, "addresses are not fetched"),
    ],
)
def test_mistakes_of_a_call_are_sentences(given, options, message):
    with pytest.raises(UserError, match=re.escape(message)):
        upscaler()(given, **options)


def test_a_picture_shows_itself_in_a_line():
    shown = repr(Image(np.zeros((30, 40, 3), np.uint8)))
    assert shown == "<ldm_dream.Image 40x30 RGB, uint8>"
