"""A model folder -> a folder of ONNX graphs, float32, one picture at a time.

encoder.onnx   picture [1,3,H,W] in [-1,1] -> z [1,C,H/f,W/f]; not where the model works on pixels
denoiser.onnx  z_t [1,C,h,w], t [1], cond [1,Cc,h*k,w*k] -> output [1,C,h,w]
decoder.onnx   z [1,C,h,w] -> picture [1,3,h*f,w*f], about [-1,1], its codebook inside
config.json    shapes, sizes, and all numbers of the sampler (`onnx_steps.py`)
README.md      how to read it, and the card of the model

docs/export.md has the sampler in a few lines of numpy.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.export import Dim

from ldm_dream import __version__
from ldm_dream.denoiser import Denoiser
from ldm_dream.errors import UserError
from ldm_dream.interchange.onnx_steps import sampler_as_numbers
from ldm_dream.model_folder import LoadedModel
from ldm_dream.writing import whole_folder

OPSET = 18  # what torch's exporter is written for; ONNX Runtime has it since 1.14
DENOISER = "denoiser.onnx"  # by which a folder of ours is known


class OnnxError(UserError, ValueError):
    """What cannot be exported to ONNX."""


class Sides(NamedTuple):
    """Heights and widths are multiples of these, all in one proportion: of the LR picture, the
    latent and the large picture.
    """

    lr: int
    latent: int
    picture: int


class Graph(NamedTuple):
    """One file. inputs: name -> (channels, of which its sides are multiples), or None for t [1]."""

    name: str
    module: nn.Module
    function: Callable[..., Tensor]
    inputs: dict[str, tuple[int, int] | None]
    output: str


class Call(nn.Module):
    """A function of tensors, and the module whose weights it uses."""

    def __init__(self, graph: Graph):
        super().__init__()
        self.module, self.function = graph.module, graph.function

    def forward(self, *tensors: Tensor) -> Tensor:
        return self.function(*tensors)


def export_onnx(model: LoadedModel, folder: Path, size: tuple[int, int] | None = None) -> None:
    """Write the folder. size: (height, width) of LR, the only one that the graphs shall take; None:
    all that the model can have. Raises OnnxError, SamplerError, WriteError.
    """
    check_installed()
    sides = sides_of(model)
    denoiser = Denoiser(model.network, model.process, model.run.condition, model.run.prediction)
    fixed = None if size is None else _units(size, sides)
    config = _config(model, denoiser, sides, fixed)
    graphs = graphs_of(model, sides)
    units = fixed or (2, 3)  # of an example for every size: other than 1, and not alike
    with whole_folder(folder) as draft:
        for graph in graphs:
            write_graph(graph, draft / f"{graph.name}.onnx", units, dynamic=fixed is None)
        text = json.dumps(config, indent=2, allow_nan=False)
        (draft / "config.json").write_text(text + "\n", encoding="utf-8")
        (draft / "README.md").write_text(_card(model), encoding="utf-8")


def check_installed() -> None:
    """Raises OnnxError where a package of the extra is missing."""
    for package in ("onnx", "onnxscript"):
        if find_spec(package) is None:
            raise OnnxError(
                f"the export needs the package {package}; install it with: pip install 'ldm_dream[onnx]'."
            )


def sides_of(model: LoadedModel) -> Sides:
    """As tiles of the upscaler are (`Engine.align`): nothing is padded within the network."""
    factor, scale = model.autoencoder.factor, model.run.scale
    picture = math.lcm(factor * model.network.align, scale)
    return Sides(picture // scale, picture // factor, picture)


def _units(size: tuple[int, int], sides: Sides) -> tuple[int, int]:
    if any(side < 1 or side % sides.lr for side in size):
        raise OnnxError(
            f"--size {size[0]}x{size[1]} is not possible: the sides of this model's LR pictures are "
            f"multiples of {sides.lr}; give such a height and width."
        )
    return size[0] // sides.lr, size[1] // sides.lr


# -------------------------------------------------------------------------------------------- graphs


def graphs_of(model: LoadedModel, sides: Sides) -> list[Graph]:
    network, autoencoder = model.network, model.autoencoder
    picture, latent = (3, sides.picture), (autoencoder.channels, sides.latent)
    cond = _channels(model), sides.lr
    if network.cond_factor is not None:
        cond = cond[0], sides.latent * network.cond_factor

    def predict(z_t: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        return network(z_t, network.embed(t), *network.prepare(cond, (z_t.shape[2], z_t.shape[3])))

    inputs = {"z_t": latent, "t": None, "cond": cond}
    graphs = [Graph("denoiser", network, predict, inputs, "output")]
    if model.run.autoencoder.kind != "pixel":
        encode, decode = autoencoder.encode, autoencoder.decode
        graphs += [
            Graph("encoder", autoencoder, encode, {"picture": picture}, "z"),
            Graph("decoder", autoencoder, decode, {"z": latent}, "picture"),
        ]
    return graphs


def write_graph(graph: Graph, path: Path, units: tuple[int, int], dynamic: bool) -> None:
    names = Dim("rows"), Dim("columns")
    example, shapes = [], []
    for kind in graph.inputs.values():
        if kind is None:
            example.append(torch.ones(1))
            shapes.append(None)
        else:
            channels, unit = kind
            example.append(torch.zeros(1, channels, *(unit * count for count in units)))
            shapes.append({axis: unit * name for axis, name in zip((2, 3), names)})
    try:
        with torch.no_grad(), warnings.catch_warnings():
            # of names of sides that stand for each other
            warnings.filterwarnings("ignore", module=r"torch\.onnx|torch\.export")
            program = torch.onnx.export(
                Call(graph).eval(),
                tuple(example),
                dynamo=True,
                dynamic_shapes=(tuple(shapes),) if dynamic else None,
                input_names=list(graph.inputs),
                output_names=[graph.output],
                opset_version=OPSET,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        raise OnnxError(_refusal(graph, dynamic)) from error
    assert program is not None
    program.save(path)


def _refusal(graph: Graph, dynamic: bool) -> str:
    kind = type(graph.module).__name__
    if dynamic:
        return f"{kind} cannot be exported for every size; give the one of your LR pictures with --size HxW."
    return f"{kind} cannot be exported to ONNX; use it from Python, or export it to diffusers."


# --------------------------------------------------------------------------------- config and card


def _channels(model: LoadedModel) -> int:
    parts = {"lr": 3, "z_lr": model.autoencoder.channels}
    return sum(parts[name] for name in model.run.condition)


def _enlarged(model: LoadedModel) -> dict[str, float]:
    """How much larger the parts of cond are than where they come from, in their order."""
    k, factor = model.network.cond_factor, model.autoencoder.factor
    if not model.run.condition:
        raise OnnxError(
            "a network that sees no condition cannot be exported to ONNX; use it from Python."
        )
    if k is None:
        return {"lr": 1.0}
    times = {"lr": k * model.run.scale / factor, "z_lr": float(k)}
    if times["lr"] < 1 and "lr" in model.run.condition:
        raise OnnxError(
            "a network that sees the LR picture made smaller cannot be exported to ONNX; use it from Python."
        )
    return {name: times[name] for name in model.run.condition}


def _config(
    model: LoadedModel, denoiser: Denoiser, sides: Sides, units: tuple[int, int] | None
) -> dict:
    run, autoencoder = model.run, model.autoencoder
    has_autoencoder = run.autoencoder.kind != "pixel"
    fixed = units and {
        name: [side * count for count in units] for name, side in sides._asdict().items()
    }
    return {
        "made_by": f"ldm_dream {__version__}",
        "model": model.name,
        "opset": OPSET,
        "scale": run.scale,
        "pictures": {"channels": "RGB", "range": [-1, 1], "layout": "[1, 3, height, width]"},
        "sides": {"multiples_of": sides._asdict(), "fixed": fixed},
        "enlarge": {"kernel": "cubic", "a": -0.5, "border": "symmetric", "then_clip": [-1, 1]},
        "latent": {
            "channels": autoencoder.channels,
            "factor": autoencoder.factor,
            "scale": getattr(run.autoencoder, "latent_scale", 1.0),
            "scale_is_in_the_graphs": True,
        },
        "encoder": "encoder.onnx" if has_autoencoder else None,
        "denoiser": DENOISER,
        "decoder": "decoder.onnx" if has_autoencoder else None,
        "cond": {"parts": _enlarged(model), "channels": _channels(model)},
        "clip_z0": autoencoder.bound,
        "sampler": {
            "process": run.process.kind,
            "prediction": run.prediction,
            "kind": run.sampler.kind,
            **sampler_as_numbers(denoiser, run.sampler, autoencoder.bound),
        },
    }


def _card(model: LoadedModel) -> str:
    path = model.folder / "README.md" if model.folder else None
    own = path.read_text(encoding="utf-8") if path and path.is_file() else f"# {model.name}\n"
    return (
        f"ONNX graphs of {model.name}, opset {OPSET}, float32, by ldm_dream {__version__}; config.json "
        "says their shapes and the numbers of the sampler. The card of the model follows.\n\n" + own
    )
