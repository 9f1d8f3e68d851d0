"""The exported graphs give what torch gives, at more than one size; and the sampler of docs/export.md,
which reads config.json alone, gives the picture of the upscaler.
"""

import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ldm_dream.commands.export_onnx import main
from ldm_dream.config.process import DDPMConfig, FlowConfig, ResidualShiftConfig
from ldm_dream.config.run import DiffusionRun
from ldm_dream.data.resize import upsample
from ldm_dream.denoiser import Denoiser
from ldm_dream.interchange import onnx
from ldm_dream.interchange.onnx import OnnxError, export_onnx
from ldm_dream.model_folder import LoadedModel
from ldm_dream.networks import build_network
from ldm_dream.networks.autoencoders import build_autoencoder
from ldm_dream.process import build_process
from ldm_dream.sampler import gaussian, sample
from runs import NETWORK_TINY, VQGAN_TINY, predict

PAGE = Path(__file__).resolve().parents[2] / "docs/export.md"
BOUND = 1e-4


@pytest.fixture(scope="module")
def onnxruntime():
    why = "the extra `onnx` is not installed"
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package, reason=why)
    return pytest.importorskip("onnxruntime", reason=why)


def model_of(run: DiffusionRun) -> LoadedModel:
    """With weights of about unit gain, also where training begins at zero."""
    torch.manual_seed(0)
    network, autoencoder = build_network(run.network), build_autoencoder(run.autoencoder)
    for parameter in (*network.parameters(), *autoencoder.parameters()):
        torch.nn.init.normal_(
            parameter, std=0.1 if parameter.ndim == 1 else parameter[0].numel() ** -0.5
        )
        parameter.requires_grad_(False)
    return LoadedModel(run, network.eval(), autoencoder.eval(), build_process(run.process), None)


def latent_model() -> LoadedModel:
    """Of few layers, since the export takes seconds for each dozen. The network sees LR enlarged."""
    run = DiffusionRun(
        autoencoder=VQGAN_TINY.model_copy(update={"ch_mult": (1, 2)}),
        network=NETWORK_TINY | {"channel_mult": (1,)},
        process={"kind": "residual_shift", "num_timesteps": 3, "kappa": 1.0},
        prediction="z0",
        condition=("lr", "z_lr"),
        sampler={"kind": "resshift"},
    )
    return model_of(run)


@pytest.fixture(scope="module")
def exported(onnxruntime, tmp_path_factory):
    model, folder = latent_model(), tmp_path_factory.mktemp("onnx") / "exported"
    export_onnx(model, folder)
    return model, folder


def run(onnxruntime, path: Path, *tensors: Tensor) -> Tensor:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]
    given = {name: x.numpy().astype(np.float32) for name, x in zip(names, tensors)}
    return torch.from_numpy(session.run(None, given)[0])


def torch_graphs(model: LoadedModel, units: tuple[int, int]) -> dict:
    """Graph -> its inputs at a size, and what torch makes of them."""
    sides = onnx.sides_of(model)
    rows, columns = (sides.latent * unit for unit in units)
    picture = torch.rand(1, 3, *(sides.picture * unit for unit in units)) * 2 - 1
    z_t, cond = torch.randn(1, 4, rows, columns), torch.randn(1, 7, rows, columns)
    z, t = model.autoencoder.encode(picture), torch.tensor([2.0])
    return {
        "encoder": ((picture,), z),
        "denoiser": ((z_t, t, cond), predict(model.network, z_t, t, cond)),
        "decoder": ((z,), model.autoencoder.decode(z)),
    }


@pytest.mark.parametrize("units", [(1, 1), (2, 3), (5, 2)])
@torch.no_grad()
def test_every_graph_gives_what_torch_gives_at_every_size(units, exported, onnxruntime):
    model, folder = exported
    torch.manual_seed(1)
    for name, (given, wanted) in torch_graphs(model, units).items():
        made = run(onnxruntime, folder / f"{name}.onnx", *given)
        torch.testing.assert_close(
            made, wanted, rtol=0, atol=BOUND, msg=lambda m, n=name: f"{n}: {m}"
        )


@torch.no_grad()
def test_the_sampler_of_the_page_makes_the_picture_of_ours(exported):
    model, folder = exported
    made, wanted = both(model, folder, of_page())
    # a latent that lies between two codes may go to the other one
    assert wanted.std() > 0.1 and ((made - wanted).abs() > 1e-3).float().mean() < 0.01


PROCESSES = {
    "ddpm": DDPMConfig(num_timesteps=20, beta_end=0.2),
    "shift": ResidualShiftConfig(num_timesteps=4),
    "flow": FlowConfig(num_timesteps=10),
}
CASES = [
    (network, process, prediction, sampler)
    for process, cfg in PROCESSES.items()
    for prediction in cfg.predictions
    for sampler in cfg.samplers
    for network in (["resshift", "sr3"] if process == "ddpm" else ["resshift"])
]


@pytest.mark.parametrize("network, process, prediction, sampler", CASES)
@torch.no_grad()
def test_every_sampler_is_its_numbers(network, process, prediction, sampler, tmp_path, monkeypatch):
    """The page's sampler on the networks of torch: only config.json is written."""
    monkeypatch.setattr(onnx, "check_installed", lambda: None)
    monkeypatch.setattr(onnx, "write_graph", lambda *args, **kwargs: None)
    model = pixel_model_of(network, PROCESSES[process], prediction, sampler)
    export_onnx(model, tmp_path / "exported")
    page = of_page()

    def by_torch(folder, file, *given):
        z_t, t, cond = (torch.from_numpy(np.asarray(x, np.float32)) for x in given)
        return predict(model.network, z_t, t, cond).numpy()

    page["run"] = by_torch
    made, wanted = both(model, tmp_path / "exported", page)
    torch.testing.assert_close(made, wanted, rtol=1e-3, atol=1e-3)


def pixel_model_of(network: str, process, prediction: str, sampler: str) -> LoadedModel:
    sr3 = {"kind": "sr3", "image_size": 16, "model_channels": 8, "channel_mult": (1, 2)}
    sr3 |= {"num_res_blocks": 1, "norm_groups": 4, "attention_resolutions": ()}
    of_pixels = {"in_channels": 3, "out_channels": 3, "cond_channels": 3}
    run = DiffusionRun(
        scale=2,
        network=(sr3 if network == "sr3" else NETWORK_TINY) | of_pixels,
        process=process,
        prediction=prediction,
        condition=("z_lr",),
        sampler={"kind": sampler, "steps": 3},
    )
    return model_of(run)


def both(model: LoadedModel, folder: Path, page: dict) -> tuple[Tensor, Tensor]:
    """The page's picture and ours, with the same noise."""
    lr = torch.rand(1, 3, 16, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
    size = (16 * model.run.scale, 24 * model.run.scale)
    z_lr = model.autoencoder.encode(upsample(lr, size))
    noise = [gaussian(z_lr, torch.Generator().manual_seed(3)) for _ in range(2)]
    denoiser = Denoiser(model.network, model.process, model.run.condition, model.run.prediction)
    bound = model.autoencoder.bound
    inputs = denoiser.prepare(lr, z_lr)
    z0 = sample(denoiser, inputs, model.run.sampler, noise[0], bound)
    count = itertools.count()
    made = page["upscale"](str(folder), lr.numpy(), lambda shape: noise[1](next(count)).numpy())
    return torch.from_numpy(made).float(), model.autoencoder.decode(z0)


def of_page() -> dict:
    """The functions of docs/export.md, without the lines that use them."""
    code = re.search(r"```python\n(.*?)```", PAGE.read_text(), re.S)[1]
    names: dict = {}
    exec(compile(code[: code.index("small = ")], str(PAGE), "exec"), names)
    return names


def test_a_size_is_the_only_one_of_the_graphs(onnxruntime, tmp_path, monkeypatch):
    model, graphs = latent_model(), onnx.graphs_of
    with pytest.raises(OnnxError, match="--size 5x8 is not possible.* multiples of 2"):
        export_onnx(model, tmp_path / "a", (5, 8))
    assert not (tmp_path / "a").exists()
    monkeypatch.setattr(onnx, "graphs_of", lambda *args: graphs(*args)[1:2])  # the quickest
    export_onnx(model, tmp_path / "b", (8, 16))
    config = json.loads((tmp_path / "b" / "config.json").read_text())
    assert config["sides"]["fixed"] == {"lr": [8, 16], "latent": [16, 32], "picture": [32, 64]}
    assert run(onnxruntime, tmp_path / "b/encoder.onnx", torch.zeros(1, 3, 32, 64)).std() > 0
    with pytest.raises(Exception, match="invalid dimensions"):
        run(onnxruntime, tmp_path / "b/encoder.onnx", torch.zeros(1, 3, 64, 64))


class Chooser(nn.Module):
    """Whose way depends on the values."""

    def forward(self, z: Tensor) -> Tensor:
        return z if z.sum() > 0 else -z


def test_what_cannot_be_exported_is_one_sentence(onnxruntime, tmp_path):
    module = Chooser()
    graph = onnx.Graph("x", module, module.forward, {"z": (1, 4)}, "out")
    for dynamic, way in ((True, "with --size HxW."), (False, "use it from Python")):
        with pytest.raises(OnnxError, match=f"^Chooser cannot be exported .*{way}"):
            onnx.write_graph(graph, tmp_path / "x.onnx", (2, 3), dynamic)
    model = latent_model()
    for condition, scale, reason in (((), 4, "no condition"), (("lr",), 1, "made smaller")):
        run = model.run.model_copy(update={"condition": condition, "scale": scale})
        with pytest.raises(OnnxError, match=f"{reason} cannot be exported to ONNX"):
            export_onnx(model._replace(run=run), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_the_command_names_what_is_missing_and_keeps_what_is_there(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(onnx, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="2"):
        main(["dream-latent-x4-tiny", "-o", str(tmp_path / "new")])
    assert "pip install 'ldm_dream[onnx]'" in capsys.readouterr().err
    monkeypatch.undo()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("kept")
    with pytest.raises(SystemExit, match="2"):
        main(["dream-latent-x4-tiny", "-o", str(tmp_path / "mine")])
    assert (tmp_path / "mine" / "file").read_text() == "kept"
