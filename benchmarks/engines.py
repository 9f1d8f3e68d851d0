"""The parts of an upscaled picture by several engines, at one size: PyTorch as the upscaler runs it,
the same compiled ahead of time by AOTInductor, ONNX Runtime and OpenVINO. Seconds of calls in turns,
and how far each result is from PyTorch's in float32.
"""

from __future__ import annotations

import argparse
import importlib
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ldm_dream.dtypes import DTYPES
from ldm_dream.errors import UserError
from ldm_dream.heap import keep_small_blocks
from ldm_dream.interchange.onnx import Call, Graph, graphs_of, sides_of, write_graph
from ldm_dream.model_folder import load_model

from .measure import percentiles, seconds
from .record import Measured
from .tables import finish


class Part(NamedTuple):
    """graph: its module in the dtype that is measured. inputs: float32. onnx: its file, float32."""

    graph: Graph
    inputs: tuple[Tensor, ...]
    onnx: Path
    dtype: torch.dtype

    def for_torch(self) -> tuple[Call, tuple[Tensor, ...]]:
        """Module and inputs in the dtype, channels last, as the upscaler has them; not the step."""
        inputs = (
            x if x.ndim == 1 else x.to(self.dtype, memory_format=torch.channels_last)
            for x in self.inputs
        )
        module = Call(self.graph).eval().to(self.dtype).to(memory_format=torch.channels_last)
        return module, tuple(inputs)

    def for_runtimes(self) -> dict[str, np.ndarray]:
        """Inputs by their names in the file."""
        return dict(zip(self.graph.inputs, (x.numpy() for x in self.inputs)))


Run = Callable[[], Tensor]


def eager(part: Part) -> Run:
    module, inputs = part.for_torch()
    return lambda: module(*inputs)


def aotinductor(part: Part) -> Run:
    from torch._inductor import aoti_compile_and_package, aoti_load_package

    module, inputs = part.for_torch()
    program = torch.export.export(module, inputs)
    path = aoti_compile_and_package(program, package_path=str(part.onnx.with_suffix(".pt2")))
    compiled = aoti_load_package(path)
    return lambda: compiled(*inputs)


def onnxruntime(part: Part) -> Run:
    import onnxruntime as runtime

    if part.dtype != torch.float32:
        raise UserError("ONNX Runtime computes in fp32 on a CPU; leave onnxruntime out.")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = runtime.InferenceSession(part.onnx, options, providers=["CPUExecutionProvider"])
    feed = part.for_runtimes()
    return lambda: torch.from_numpy(np.asarray(session.run(None, feed)[0]))


def openvino(part: Part) -> Run:
    runtime = importlib.import_module("openvino")  # of the extra `bench`, which no check installs
    settings = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": "f32" if part.dtype == torch.float32 else "bf16",
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled = runtime.Core().compile_model(part.onnx, "CPU", settings)
    feed = part.for_runtimes()
    return lambda: torch.from_numpy(compiled(feed)[0])


FUNCTIONS = {
    function.__name__: function for function in (eager, aotinductor, onnxruntime, openvino)
}


def main(args: argparse.Namespace) -> None:
    model, rows = load_model(args.model), []
    sides = sides_of(model)
    units = -(-args.size // sides.lr)
    keep_small_blocks()  # as the upscaler does
    asked = {"size": units * sides.lr, "dtype": args.dtype}
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        parts, exact = [], []
        for graph in graphs_of(model, sides):  # all of them before a module changes its dtype
            path = Path(folder, f"{graph.name}.onnx")
            write_graph(graph, path, (units, units), dynamic=False)
            parts.append(Part(graph, inputs_of(graph, units), path, torch.float32))
            exact.append(eager(parts[-1])())
        for part, truth in zip(parts, exact):
            part = part._replace(dtype=DTYPES[args.dtype])
            calls = {name: made(FUNCTIONS[name], part) for name in args.engines}
            results = {name: call().float() for name, call in calls.items()}
            times = seconds(calls, args.repetitions, "cpu")
            for name, result in results.items():
                apart = ((result - truth).norm() / truth.norm()).item()
                metrics = {**percentiles(times[name]), "relative_error": apart}
                rows.append(Measured(args.model, f"{part.graph.name}, {name}", asked, metrics))
    finish(args, "engines", rows)


def inputs_of(graph: Graph, units: int) -> tuple[Tensor, ...]:
    """Random numbers, the same at each call; steps are 1."""
    generator = torch.Generator().manual_seed(0)
    return tuple(
        torch.ones(1)
        if kind is None
        else torch.randn(1, kind[0], units * kind[1], units * kind[1], generator=generator)
        for kind in graph.inputs.values()
    )


def made(engine: Callable[[Part], Run], part: Part) -> Run:
    try:
        return engine(part)
    except ImportError as error:
        raise UserError(
            f"{error.name} is not installed; pip install 'ldm_dream[bench,onnx]', or leave it out."
        ) from None
