"""What is compiled ahead of time is what is launched: by loss and samplers in every specialisation,
by networks and the autoencoder at their usual shapes. And all of it compiles for sizes of 1.
"""

import itertools
import re
import subprocess
import sys
from typing import Any, NamedTuple

import pytest
import torch

import dream_kernels
from dream_kernels import OPS, Variant, vq_lookup
from dream_kernels._triton import run
from kernel_rules import DEVICE, ROOT, without_interpreter
from ldm_dream.config.files import load_config
from ldm_dream.config.process import DDPMConfig, Dream, ResidualShiftConfig, Sampling
from ldm_dream.denoiser import Inputs
from ldm_dream.loss import diffusion_loss
from ldm_dream.networks.layers import GroupNorm
from ldm_dream.networks.vqgan import Codebook
from ldm_dream.process import build_process
from ldm_dream.sampler import SAMPLERS, gaussian, sample
from runs import PlainDenoiser

TYPES = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.int8: "*i8",
    torch.int64: "*i64",
}
DDPM = build_process(DDPMConfig(num_timesteps=20))
SHIFT = build_process(ResidualShiftConfig(num_timesteps=4))


class Launch(NamedTuple):
    """What Triton compiles a kernel for, but for whole numbers that are 1 or multiples of 16."""

    kernel: str
    signature: tuple[tuple[str, str], ...]
    constexprs: tuple[tuple[str, Any], ...]
    num_warps: int


def of(variant: Variant) -> Launch:
    constexprs = tuple(sorted(variant.constexprs.items()))
    signature = tuple(variant.signature.items())
    return Launch(variant.kernel.__name__, signature, constexprs, variant.num_warps)


def variants(*ops: str) -> set[Launch]:
    return {of(variant) for op in ops for variant in OPS[op].variants()}


def kind(x) -> str:
    """Of an argument, as a Variant's signature writes it."""
    return TYPES[x.dtype] if isinstance(x, torch.Tensor) else {int: "i32", float: "fp32"}[type(x)]


@pytest.fixture
def launches(monkeypatch):
    """Function: call -> launches that it makes. They are noted and not made: results are what was
    in memory.
    """
    found = set()

    def note(kernel, *args, grid, warmup, num_warps):
        given = dict(zip(kernel.arg_names, args, strict=True))
        constexprs = {name: x for name, x in given.items() if name in kernel.fn.__annotations__}
        kinds = {n: "constexpr" if n in constexprs else kind(x) for n, x in given.items()}
        signature, constants = tuple(kinds.items()), tuple(sorted(constexprs.items()))
        found.add(Launch(kernel.__name__, signature, constants, num_warps))

    jit_function = type(OPS["q_sample"].variants()[0].kernel)
    monkeypatch.setattr(jit_function, "run", note)

    def launched(call) -> set[Launch]:
        found.clear()
        with dream_kernels.backend("triton"):
            call()
        return set(found)

    return launched


def test_kernels_are_launched_on_the_device_of_their_tensors(monkeypatch):
    """Which need not be the current one: Triton asks for that. Without a GPU tensors say that they
    are on the second, and torch keeps a number in place of the device.
    """
    device, launched = [0], []

    class OnSecond(torch.Tensor):
        is_cuda = True

        def get_device(self):
            return 1

    def exchange(wanted):
        before, device[0] = device[0], wanted
        return before

    def restore(wanted):
        device[0] = wanted
        return wanted

    monkeypatch.setattr(torch.cuda, "_exchange_device", exchange)
    monkeypatch.setattr(torch.cuda, "_maybe_exchange_device", restore)
    jit_function = type(OPS["q_sample"].variants()[0].kernel)
    monkeypatch.setattr(
        jit_function, "run", lambda kernel, *_, **__: launched.append((kernel, device[0]))
    )
    kernels = {variant.kernel for op in OPS.values() for variant in op.variants()}
    for kernel in kernels:
        run(kernel, 1)(torch.ones(1).as_subclass(OnSecond), 2)
    assert launched == [(kernel, 1) for kernel in kernels] and device == [0]


def test_no_launch_goes_past_the_device_of_its_tensors():
    """`run` is the one place where a kernel meets a grid."""
    folder = ROOT / "kernels/dream_kernels"
    found = [path.name for path in folder.glob("*.py") if re.search(r"_kernel\[", path.read_text())]
    assert found == []


def test_the_table_holds_what_the_loss_launches(launches):
    z0, z_lr, eps = torch.randn(3, 2, 3, 16, 16, device=DEVICE)
    t = torch.tensor([3, 11], device=DEVICE)

    def train(prediction, kind, strength, dtype):
        """dtype: of the network's output; bfloat16 is autocast's."""
        weight = torch.ones((), device=DEVICE, requires_grad=True)
        denoiser = PlainDenoiser(lambda z_t, t, cond: (weight * z_t).to(dtype), DDPM, prediction)
        dream = Dream(kind=kind, strength=strength)
        diffusion_loss(denoiser, z0, Inputs(z_lr, (z_lr,)), t, eps, dream).loss.mean().backward()

    def train_all():
        for options in itertools.product(
            ("eps", "z0", "v"), ("l1", "l2", "huber"), (0.0, 1.0), (torch.float32, torch.bfloat16)
        ):
            train(*options)

    assert launches(train_all) == variants("q_sample", "dream_rectify", "dream_loss")


@pytest.mark.parametrize("prediction", ["eps", "z0", "v"])
@pytest.mark.parametrize("kind", SAMPLERS)
def test_the_table_holds_what_a_sampler_launches(launches, kind, prediction):
    z_lr = torch.randn(2, 3, 16, 16, device=DEVICE)
    process = SHIFT if kind == "resshift" else DDPM
    denoiser = PlainDenoiser(lambda z_t, t, cond: z_t, process, prediction)
    inputs, sampling = Inputs(z_lr, (z_lr,)), Sampling(kind=kind, steps=2, eta=0.5)
    found = launches(lambda: sample(denoiser, inputs, sampling, gaussian(z_lr), clip=1.0))
    assert found == variants("q_sample")


def test_the_table_holds_group_norms_that_networks_launch(launches):
    """In the types that autocast gives features, in both layouts."""
    layer = GroupNorm(64, 16, silu=True).to(DEVICE)
    x = torch.randn(1, 64, 64, 64, device=DEVICE, requires_grad=True)

    def train():
        for dtype, layout in itertools.product(
            (torch.float32, torch.bfloat16), (torch.contiguous_format, torch.channels_last)
        ):
            layer(x.to(dtype, memory_format=layout)).sum().backward()

    assert variants("group_norm_silu") <= launches(train)


def test_the_table_holds_the_codebook_lookups_of_every_config(launches):
    parts = [load_config(path).autoencoder for path in sorted(ROOT.glob("configs/**/*.yaml"))]
    widths = {cfg.embed_dim // cfg.codebook_groups for cfg in parts if cfg.kind == "vqgan"}

    def quantize():
        for width in widths:
            codebook = Codebook(16, width).to(DEVICE)
            rows = codebook.rows(torch.randn(1, 2 * width, 4, 4, device=DEVICE))
            vq_lookup(rows, codebook.embedding.weight)

    assert launches(quantize) == variants("vq_lookup")


def test_every_kernel_compiles_for_ones_and_multiples_of_16():
    """Of HW of a feature of one pixel Triton makes a constant, without the methods that a number
    otherwise has. The interpreter does not.
    """
    command = [sys.executable, str(ROOT / "tests/kernels/compile_specialised.py")]
    done = subprocess.run(command, capture_output=True, text=True, env=without_interpreter())
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
