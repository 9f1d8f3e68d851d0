"""Every published layout at full size: random numbers in the authors' containers, through the
import tool, into a model folder.

All of it happens in one other process, so that its memory is the writer's and the tool's alone:
VmHWM of /proc/self/status, reset before the import, counts all that is resident, mapped pages of
files too. The run ends with the table (conftest.py).
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import json
import math
import multiprocessing
import re
import runpy
import shutil
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from ldm_dream.schedules import abar_of, betas_of
from tests.conftest import SHARED

TOOL = Path(__file__).resolve().parents[2] / "tools/import_checkpoint.py"
STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
MEMORY = 4 * 2**30  # bytes


class Published(NamedTuple):
    """A layout below ../shared, what its authors call and how they nest the file, and where the
    importer must put it.
    """

    layout: str
    filename: str
    parameters: int  # those that matter to the output
    places: dict[str, str]  # published key -> ours, one of each kind of name
    container: str = "flat"
    schedule: tuple = ()  # T, first and last beta, shape
    refused: str = (
        ""  # the tool's words for what is no super-resolution model of a network known here
    )


SR3_SCHEDULE = (2000, 1e-6, 1e-2, "linear")
SR3 = {
    "denoise_fn.noise_level_mlp.3.bias": "noise_level_mlp.2.bias",
    "denoise_fn.downs.0.weight": "downs.0.weight",
    "denoise_fn.downs.1.res_block.noise_func.noise_func.0.weight": "downs.1.noise.weight",
    "denoise_fn.downs.1.res_block.block1.block.0.weight": "downs.1.norm1.weight",
    "denoise_fn.downs.1.res_block.block1.block.3.weight": "downs.1.conv1.weight",
    "denoise_fn.downs.1.res_block.block2.block.0.bias": "downs.1.norm2.bias",
    "denoise_fn.downs.1.res_block.block2.block.3.bias": "downs.1.conv2.bias",
    "denoise_fn.mid.0.attn.qkv.weight": "mid.0.attn.qkv.weight",
    "denoise_fn.ups.0.res_block.res_conv.weight": "ups.0.res_conv.weight",
    "denoise_fn.final_conv.block.0.weight": "norm_out.weight",
    "denoise_fn.final_conv.block.3.weight": "conv_out.weight",
}
IDM = {
    "encoder.head.0.weight": "encoder.head.weight",
    "encoder.body.3.body.2.weight": "encoder.body.3.body.2.weight",
    "encoder.tail.0.bias": "encoder.tail.bias",
    "denoise_fn.noise_level_mlp.1.weight": "unet.noise_level_mlp.0.weight",
    "denoise_fn.downs.1.res_block.noise_func.noise_func.0.bias": "unet.downs.1.res_block.noise_func.bias",
    "denoise_fn.downs.1.res_block.block1.block.3.weight": "unet.downs.1.res_block.block1.3.weight",
    "denoise_fn.downs.3.conv.weight": "unet.downs.3.op.weight",
    "denoise_fn.conv_body_down.1.1.weight": "unet.conv_body_down.1.1.weight",
    "denoise_fn.condition_shift.4.0.weight": "unet.condition_shift.4.0.weight",
    "denoise_fn.ups.3.style.activate.bias": "unet.ups.3.style.activate.bias",
    "denoise_fn.ups.3.imnet.1.weight": "unet.ups.3.imnet.1.weight",
    "denoise_fn.final_conv.block.3.bias": "unet.final_conv.3.bias",
}
RESSHIFT = {
    "time_embed.2.weight": "time_embed.2.weight",
    "input_blocks.1.0.in_layers.2.weight": "input_blocks.1.0.in_layers.2.weight",
    "input_blocks.1.1.patch_embed.proj.weight": "input_blocks.1.1.patch_embed.weight",
    "input_blocks.1.1.patch_unembed.proj.bias": "input_blocks.1.1.patch_unembed.bias",
    "middle_block.1.blocks.1.attn.relative_position_bias_table": "middle_block.1.blocks.1.attn.relative_position_bias_table",
    "output_blocks.0.0.skip_connection.weight": "output_blocks.0.0.skip_connection.weight",
    "out.2.bias": "out.2.bias",
}
EXTRACTED = {**RESSHIFT, "feature_extractor.0.weight": "feature_extractor.0.weight"}
VQGAN = {
    key: key
    for key in (
        "encoder.conv_in.weight",
        "decoder.mid.attn_1.q.weight",
        "quantize.embedding.weight",
        "quant_conv.bias",
    )
}
LDM = {
    "model_ema.diffusion_modeltime_embed0weight": "time_embed.0.weight",
    "model_ema.diffusion_modelmiddle_block1qkvweight": "middle_block.1.qkv.weight",
    "model_ema.diffusion_modelout2bias": "out.2.bias",
    **{f"first_stage_model.{key}": f"autoencoder.{key}" for key in VQGAN},
}

PUBLISHED = [
    Published("sr3_16_128.json", "I640000_E37_gen.pth", 97_807_491, SR3, schedule=SR3_SCHEDULE),
    Published("sr3_64_512.json", "I830000_E32_gen.pth", 155_334_339, SR3, schedule=SR3_SCHEDULE),
    Published(
        "sr3_uncond_128.tsv",
        "I1560000_E91_gen.pth",
        97_805_763,
        SR3,
        schedule=SR3_SCHEDULE,
        refused="no low-resolution picture",
    ),
    Published(
        "ddpm_16_128.tsv",
        "I1_E1_gen.pth",
        0,
        {},
        schedule=(2000, 1e-4, 2e-2, "linear"),
        refused="unknown layout",
    ),
    Published("idm_16_128.json", "latest_gen.pth", 99_801_670, IDM, schedule=SR3_SCHEDULE),
    Published(
        "resshift_realsrx4.json", "resshift_realsrx4_s15_v1.pth", 118_593_583, RESSHIFT, "ddp"
    ),
    Published("resshift_bicsrx4.json", "resshift_bicsrx4_s4.pth", 118_593_583, RESSHIFT),
    Published("resshift_realsrx2.json", "ema_model_400000.pth", 118_640_431, EXTRACTED),
    Published("resshift_faceir.json", "resshift_faceir_s4.pth", 118_931_604, EXTRACTED),
    Published(
        "resshift_inpaint_imagenet.json",
        "resshift_inpainting_imagenet_s4.pth",
        118_714_399,
        EXTRACTED,
        refused="is none of ResShift",
    ),
    Published("resshift_autoencoder_vq_f4.json", "autoencoder_vq_f4.pth", 55_322_782, VQGAN),
    Published("resshift_faceir_vq_f8.json", "ffhq512_vq_f8_dim8_face.pth", 77_009_115, VQGAN),
    Published("ldm_vq_f4.json", "model.ckpt", 55_322_782, VQGAN, "lightning"),
    Published(
        "taming_vqgan_imagenet_f16_16384.json",
        "vqgan_imagenet_f16_16384.ckpt",
        76_073_859,
        VQGAN,
        "lightning",
    ),
    Published(
        "ldm_bsr_sr.tsv",
        "model.ckpt",
        113_622_563 + 55_322_782,
        LDM,
        "lightning",
        schedule=(1000, 0.0015, 0.0155, "sqrt_linear"),
    ),
]
CONTAINERS = {
    "flat": lambda state: state,
    "ddp": lambda state: {
        "iters_start": 400_000,
        "state_dict": {f"module.{key}": value for key, value in state.items()},
    },
    "lightning": lambda state: {
        "epoch": 3,
        "pytorch-lightning_version": "1.4.2",
        "callbacks": {},
        "state_dict": state,
    },
}


def test_every_layout_at_hand_has_its_row():
    files = [*SHARED.glob("golden/layouts/*.json"), *SHARED.glob("reference/layouts/*.tsv")]
    if not files:
        pytest.skip(f"{SHARED / 'golden/layouts'} is not there")
    assert {path.name for path in files} == {row.layout for row in PUBLISHED}


@pytest.fixture(scope="module")
def worker() -> Iterator[ProcessPoolExecutor]:
    if not RESET.exists():
        pytest.skip(f"{RESET}, with which the memory is measured, is only on Linux")
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        pool.submit(int).result()  # started, and torch imported
        yield pool


@pytest.mark.parametrize("row", PUBLISHED, ids=lambda row: row.layout.partition(".")[0])
def test_published_layout_imports_at_full_size(row: Published, worker, tmp_path, record_property):
    layout = (
        SHARED
        / ("golden" if row.layout.endswith(".json") else "reference")
        / "layouts"
        / row.layout
    )
    if not layout.is_file():
        pytest.skip(f"{layout} is not there")
    try:
        got = worker.submit(write_and_import, row, layout, tmp_path).result()
    finally:
        shutil.rmtree(tmp_path)  # gigabytes
    seconds = f"written in {got['write_s']:4.1f} s, imported in {got['import_s']:4.1f} s"
    end = f"  refused: {row.refused}" if row.refused else ""
    record_property(
        "figures",
        f"{got['parameters']:11,} parameters, {seconds}, peak {got['peak'] / 2**20:5.0f} MiB{end}",
    )
    assert re.search(row.refused, got["errors"]) if row.refused else got["errors"] == ""
    assert got["parameters"] == row.parameters
    assert got["misplaced"] == [] and not got["twice"]
    assert max(got["peak"], got["write_peak"]) < MEMORY


# ----------------------------------------------------------------------------- in the other process


def write_and_import(row: Published, layout: Path, folder: Path) -> dict:
    start = time.perf_counter()
    path = folder / row.filename
    shapes = read_layout(layout)
    torch.save(CONTAINERS[row.container](published_state(shapes, row.schedule)), path)
    write_peak, imported = peak(), time.perf_counter()
    forget_peak()
    errors = run_tool(path, folder / "model")
    tensors = dict(
        read_imported(path, folder / "model", bool(row.refused)) if row.parameters else ()
    )
    done = time.perf_counter()
    order = list(shapes)
    firsts = [value.flatten()[0].item() for value in tensors.values()]
    return {
        "errors": errors,
        "parameters": sum(value.numel() for value in tensors.values()),
        "misplaced": [
            key
            for key, ours in row.places.items()
            if ours not in tensors
            or not torch.equal(tensors[ours], numbers(order.index(key), shapes[key]))
        ],
        "twice": len(firsts) - len(set(firsts)),  # tensors that came from the same one
        "write_s": imported - start,
        "import_s": done - imported,
        "write_peak": write_peak,
        "peak": peak(),
    }


def read_layout(path: Path) -> dict[str, list[int]]:
    if path.suffix == ".json":
        return json.loads(path.read_text())["state_dict"]
    rows = (line.split("\t") for line in path.read_text().splitlines())
    return {key: json.loads(shape) for key, shape, _ in rows}


def published_state(shapes: dict[str, list[int]], schedule: tuple) -> dict[str, Tensor]:
    state = {key: numbers(i, shape) for i, (key, shape) in enumerate(shapes.items())}
    if schedule:
        state |= {
            "betas": betas_of(*schedule).float(),
            "alphas_cumprod": abar_of(*schedule).float(),
        }
    return state


BLOCK = torch.randn(2**20, generator=torch.Generator().manual_seed(0))


def numbers(index: int, shape: list[int]) -> Tensor:
    """The random block from place `index` on, repeated: tensors of one layout begin with different
    numbers.
    """
    count = math.prod(shape)
    return BLOCK.roll(-index).repeat(-(-count // len(BLOCK)))[:count].clone().reshape(shape)


def run_tool(path: Path, model: Path) -> str:
    """-> what it says to stderr."""
    errors, arguments = io.StringIO(), sys.argv
    sys.argv = [str(TOOL), str(path), "-o", str(model)]
    try:
        with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
            runpy.run_path(str(TOOL), run_name="__main__")
    except SystemExit as end:
        assert end.code == 2 and errors.getvalue().count("\n") == 1 and not model.exists()
    finally:
        sys.argv = arguments
    return errors.getvalue()


def read_imported(path: Path, model: Path, refused: bool) -> Iterator[tuple[str, Tensor]]:
    """Of the model folder, the autoencoder's with its prefix; where the tool wrote none, what the
    importer alone gives.
    """
    if refused:
        from published_systems import load_published

        yield from load_published(path)[1].items()
        return
    for file in model.glob("*.safetensors"):
        prefix = "autoencoder." if file.stem == "autoencoder" else ""
        with safe_open(file, "pt") as tensors:
            yield from ((prefix + key, tensors.get_tensor(key)) for key in tensors.keys())  # noqa: SIM118


def forget_peak() -> None:
    """The peak counts from here; what the allocator keeps of freed tensors goes back to the system
    before.
    """
    getattr(ctypes.CDLL(None), "malloc_trim", int)(0)  # glibc has it
    RESET.write_text("5")


def peak() -> int:
    """Largest resident memory since then, in bytes."""
    return int(re.search(r"VmHWM:\s*(\d+) kB", STATUS.read_text())[1]) * 1024
