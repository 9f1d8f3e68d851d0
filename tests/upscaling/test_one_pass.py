"""Models of other projects, built small with random weights by spandrel."""

import json
import pickle
import sys
from functools import cache
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from safetensors.torch import save_file

from ldm_dream.cli import EXIT_USER_ERROR
from ldm_dream.commands import evaluate, upscale
from ldm_dream.errors import UserError
from ldm_dream.upscaling import one_pass
from ldm_dream.upscaling.models import load
from ldm_dream.upscaling.peers import PeerModel
from ldm_dream.upscaling.upscaler import Upscaler
from ldm_dream.upscaling.watch import Stopped

spandrel = pytest.importorskip("spandrel", reason="spandrel (the extra peers) is not installed")

from spandrel.architectures.DnCNN import DnCNN  # noqa: E402
from spandrel.architectures.ESRGAN import ESRGAN  # noqa: E402
from spandrel.architectures.SPAN import SPAN  # noqa: E402
from spandrel.architectures.SwinIR import SwinIR  # noqa: E402

ESRGAN_SMALL = {"num_filters": 8, "num_blocks": 1}
SWIN = {"embed_dim": 8, "depths": [1], "num_heads": [2], "window_size": 4, "mlp_ratio": 1.0}
NETS = {
    "span-x4": lambda: SPAN(num_in_ch=3, num_out_ch=3, feature_channels=8, upscale=4),
    "esrgan-x1": lambda: ESRGAN(scale=1, **ESRGAN_SMALL),
    "esrgan-x2": lambda: ESRGAN(scale=2, **ESRGAN_SMALL),
    "esrgan-x8": lambda: ESRGAN(scale=8, **ESRGAN_SMALL),
    "grey-x2": lambda: ESRGAN(in_nc=1, out_nc=1, scale=2, **ESRGAN_SMALL),
    "denoiser": lambda: DnCNN(in_nc=2, out_nc=1, nc=8, nb=9, act_mode="R", mode="FDnCNN"),
    "windows-x2": lambda: SwinIR(upscale=2, upsampler="pixelshuffle", img_size=8, **SWIN),
}


@cache
def state(name: str) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    made = NETS[name]().state_dict()
    made[list(made)[-1]] += 0.5  # bias of the last layer: not all is black
    return made


@cache
def net(name: str):
    loaded = spandrel.ModelLoader().load_from_state_dict(dict(state(name)))
    loaded.eval().model.requires_grad_(False)
    return loaded


def upscaler(name: str, **options) -> Upscaler:
    return Upscaler(PeerModel(net(name), Path(f"{name}.pth")), "cpu", **options)


def picture(height: int, width: int, channels: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.rand(channels, height, width, generator=generator)


def written(folder: Path, name: str = "span-x4") -> Path:
    path = folder / f"{name}.pth"
    torch.save({"params_ema": state(name)}, path)
    return path


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    return -10 * (a - b).square().mean().clamp_min(1e-12).log10().item()


# ---------------------------------------------------------------------------------------- the result


@pytest.mark.parametrize("size", [(24, 17), (5, 3)])
@pytest.mark.parametrize("name", ["span-x4", "esrgan-x1", "esrgan-x2", "esrgan-x8", "windows-x2"])
def test_a_whole_picture_is_what_the_network_alone_makes(name, size):
    lr = picture(*size)
    torch.testing.assert_close(upscaler(name)(lr), net(name)(lr[None])[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("name", ["span-x4", "esrgan-x2", "grey-x2", "denoiser", "windows-x2"])
def test_tiles_are_within_50_db_of_the_whole_picture(name, batch_size):
    model, lr = upscaler(name), picture(40, 36)
    whole, tiled = model(lr), model(lr, tile=32, tile_pad=12, batch_size=batch_size)
    assert whole.std() > 1e-3 and psnr(tiled, whole) > 50


def test_tiles_below_the_least_size_are_padded():
    out = upscaler("windows-x2")(picture(20, 9), tile=8, tile_pad=1)
    assert out.shape == (3, 40, 18) and out.isfinite().all()


@pytest.mark.parametrize("name", ["grey-x2", "denoiser"])
def test_networks_of_grey_see_each_colour_alone_and_grey_stays_grey(name):
    model, lr = upscaler(name), picture(16, 12)
    alone = torch.cat([net(name)(lr[None, i : i + 1])[0] for i in range(3)])
    torch.testing.assert_close(model(lr), alone, rtol=0, atol=1e-5)
    grey = model(lr[:1].expand(3, -1, -1))
    assert torch.equal(grey[0], grey[1]) and torch.equal(grey[0], grey[2])


@pytest.mark.parametrize("scale", [0.5, 1, 3.3])
def test_any_scale_is_made_of_the_models_own(scale):
    size = round(20 * scale), round(14 * scale)
    assert upscaler("esrgan-x2")(picture(20, 14), scale=scale).shape == (3, *size)


def test_alpha_depth_and_type_are_kept():
    model = upscaler("span-x4")
    out = model(PIL.Image.new("RGBA", (9, 7), (200, 30, 40, 100)))
    assert (out.mode, out.size) == ("RGBA", (36, 28))
    assert model(np.zeros((7, 9), np.uint16)).dtype == np.uint16
    batch = torch.stack([picture(8, 8), picture(8, 8).flip(-1)])
    torch.testing.assert_close(model(batch)[1], model(batch[1]), rtol=0, atol=1e-5)


def test_bf16_computes_in_a_copy_where_the_network_supports_it():
    half, lr = upscaler("span-x4", dtype="bf16"), picture(12, 12)
    full = upscaler("span-x4")(lr)
    assert 0 < (half(lr) - full).abs().mean() < 0.05
    assert half.dtype == torch.bfloat16 and net("span-x4").dtype == torch.float32


@pytest.mark.parametrize("name, dtype", [("span-x4", torch.float16), ("denoiser", torch.bfloat16)])
def test_auto_on_a_gpu_is_what_the_network_supports(name, dtype):
    model = PeerModel(net(name), Path("x.pth"))
    assert one_pass.auto_dtype(model, torch.device("cuda")) == dtype
    assert one_pass.auto_dtype(model, torch.device("cpu")) == torch.float32


def test_compile_reaches_the_network_for_every_size(monkeypatch):
    asked = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda net, **how: asked.append((net, how)))
    engine = upscaler("span-x4", compile=True).engine
    assert asked == [(net("span-x4").model, {"dynamic": True})] and not engine.stoppable


def test_a_callback_hears_of_every_tile_and_stops():
    model, lr, heard = upscaler("span-x4"), picture(48, 40), []
    model(lr, tile=24, tile_pad=4, callback=lambda done, total, _: heard.append((done, total)))
    assert heard[0][0] == 0 and heard[-1][0] == heard[-1][1] > 1
    with pytest.raises(Stopped):
        model(lr, tile=24, callback=lambda done, total, preview: done < 1)


# ------------------------------------------------------------------------------------- the file


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_file_is_loaded_by_its_path(tmp_path, suffix):
    path = tmp_path / f"net{suffix}"
    if suffix == ".pth":
        torch.save({"params": state("span-x4"), "iter": 7}, path)
    else:
        save_file(state("span-x4"), path)
    model = Upscaler.from_pretrained(path, device="cpu")
    lr = picture(8, 6)
    assert model.scale == 4 and torch.equal(model(lr), upscaler("span-x4")(lr))


class Code:
    def __reduce__(self):
        return print, ("this must not be printed",)


def _bytes(content: bytes, name: str = "x.pth"):
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return make


def _saved(values, name: str = "x.pth"):
    def make(folder: Path) -> Path:
        torch.save(values() if callable(values) else values, folder / name)
        return folder / name

    return make


def _of_a_folder(folder: Path) -> Path:
    (folder / "config.yaml").write_text("task: diffusion\n")
    return _bytes(b"x", "model.safetensors")(folder)


def _misfit() -> dict[str, torch.Tensor]:
    return {**state("span-x4"), "conv_2.sk.weight": torch.zeros(3, 3, 1, 1)}


WRONG = {
    "missing": (lambda folder: folder / "x.pth", "no such file"),
    "empty": (_bytes(b""), "truncated, or no checkpoint"),
    "text": (_bytes(b"# A title\n"), "no file of weights: neither torch nor safetensors; name another file.$"),
    "picture": (_bytes(b"\x89PNG\r\n\x1a\n" * 9), "no file of weights"),
    "cut safetensors": (_bytes(b"\x10\0\0\0\0\0\0\0{", "x.safetensors"), "truncated"),
    "a web page": (_bytes(b"<html>"), "a web page"),
    "code": (_bytes(pickle.dumps({"w": Code()})), "it would run code|refused"),
    "of a folder": (_of_a_folder, "a part of a model folder; name the folder"),
    "strange keys": (_saved({"a.weight": torch.zeros(2)}), "knows no network with its keys.*a.weight"),
    "other shapes": (_saved(_misfit), "do not fit the network"),
    "four channels": (
        _saved(lambda: ESRGAN(in_nc=4, out_nc=4, scale=2, **ESRGAN_SMALL).state_dict()),
        "makes 4 channels of 4; models of grey or of RGB",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_file_that_is_of_no_use_is_one_sentence(case, tmp_path, capsys):
    make, says = WRONG[case]
    with pytest.raises(UserError, match=says) as error:
        load(make(tmp_path))
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)
    assert not capsys.readouterr().out


@pytest.mark.parametrize(
    "purpose, architecture, says",
    [
        ("FaceSR", "GFPGAN", "aligned faces"),
        ("Inpainting", "LaMa", "needs a mask"),
        ("SR", "AuraSR", "noise of its own"),
    ],
)
def test_models_of_other_tasks_are_refused_by_name(
    purpose, architecture, says, tmp_path, monkeypatch
):
    """Those that spandrel loads; stands in for their weights, which are large."""

    class Loaded:
        pass

    found = Loaded()
    found.purpose, found.architecture = purpose, spandrel.MAIN_REGISTRY[architecture].architecture
    loader = spandrel.ModelLoader
    monkeypatch.setattr(loader, "load_from_state_dict", lambda self, state: found)
    with pytest.raises(UserError, match=f"a model of {architecture} is not run here: .*{says}"):
        load(written(tmp_path))


def test_without_the_extra_it_says_what_to_install(tmp_path, monkeypatch):
    path = written(tmp_path)
    monkeypatch.setitem(sys.modules, "spandrel", None)
    with pytest.raises(UserError, match=r"pip install 'ldm_dream\[peers\]'"):
        load(path)


@pytest.mark.parametrize(
    "options", [{"steps": 4}, {"sampler": "ddim"}, {"seed": 0}, {"steps": 2, "seed": 1}]
)
def test_what_has_no_effect_is_refused(options):
    with pytest.raises(UserError, match=f"{next(iter(options))}.* no effect on span-x4"):
        upscaler("span-x4")(picture(8, 8), **options)


def test_a_dtype_that_the_network_does_not_bear_is_refused():
    with pytest.raises(UserError, match="dtype='fp16': a model of DnCNN does not compute in it"):
        upscaler("denoiser", dtype="fp16")


def test_it_is_neither_saved_as_a_folder_nor_sent_to_the_hub(tmp_path):
    model = upscaler("span-x4")
    for keep in (model.push_to_hub, model.save_pretrained):
        with pytest.raises(UserError, match="span-x4.pth: a file of another project"):
            keep(str(tmp_path / "model"))


def test_a_revision_is_of_the_hub_alone(tmp_path):
    with pytest.raises(UserError, match="so it has no revision"):
        Upscaler.from_pretrained(written(tmp_path), revision="main")


def test_its_repr_names_the_file_and_counts_its_weights():
    count = sum(weights.numel() for weights in net("span-x4").model.parameters())
    assert repr(upscaler("span-x4")) == (
        f"Upscaler('span-x4.pth', scale=4, device='cpu', dtype='fp32', parameters={count})"
    )


def test_it_moves_between_precisions():
    model, lr = upscaler("span-x4"), picture(9, 8)
    before = model(lr)
    assert not torch.equal(model.to("bf16")(lr), before)
    assert torch.equal(model.to("fp32")(lr), before)


def test_running_out_of_memory_ends_in_smaller_tiles(monkeypatch):
    """In one piece, then in the same piece with whole windows, then in tiles, halved."""
    model, lr = upscaler("windows-x2"), picture(40, 36)
    wanted, enlarge, sizes = model(lr, tile=24, tile_pad=2), model.engine._enlarged, []

    def small_only(x):
        sizes.append(tuple(x.shape[-2:]))
        if max(x.shape[-2:]) > 24:
            raise torch.OutOfMemoryError
        return enlarge(x)

    monkeypatch.setattr(model.engine, "_enlarged", small_only)
    made = model(lr, tile_pad=2)
    assert sizes.count((40, 36)) == 1 and max(sizes[-1]) <= 24
    assert psnr(made, wanted) > 40


# --------------------------------------------------------------------------------- the commands


@pytest.fixture
def photos(tmp_path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (32, 40, 3), dtype=np.uint8)
    PIL.Image.fromarray(pixels).save(folder / "a.png")
    return folder


def status(command, *words) -> int:
    with pytest.raises(SystemExit) as stop:
        command.main([str(word) for word in words])
    return int(stop.value.code or 0)


def test_upscale_takes_a_file_and_reports_as_ever(tmp_path, photos):
    out, model = tmp_path / "out", written(tmp_path)
    asked = ("-i", photos, "-o", out, "-n", model, "--json-report", out / "report.json")
    assert status(upscale, *asked) == 0
    assert PIL.Image.open(out / "a.png").size == (160, 128)
    settings = json.loads((out / "report.json").read_text())["settings"]
    used = ("model", "seed", "steps", "sampler", "color_fix")
    assert [settings[name] for name in used] == [str(model), None, None, None, "none"]


def test_upscale_refuses_seed_and_a_report_over_the_model(tmp_path, photos, capsys):
    model = written(tmp_path)
    before = model.read_bytes()
    asked = ("-i", photos, "-o", tmp_path / "out", "-n", model)
    assert status(upscale, *asked, "--seed", 0) == EXIT_USER_ERROR
    assert "seed: no effect" in capsys.readouterr().err
    assert status(upscale, *asked, "--json-report", model) == EXIT_USER_ERROR
    assert model.read_bytes() == before


def test_evaluate_takes_a_file_and_fixes_no_colours(tmp_path, photos, capsys):
    model = written(tmp_path)
    evaluate.main(["--hr", str(photos), "-n", str(model)])
    out = capsys.readouterr().out
    assert "x4" in out and f"{model} ran in fp32 on cpu, with the colour fix none." in out
