"""Number formats: what `auto` is on each device, in training and in upscaling alike."""

import pytest
import torch

from ldm_dream.dtypes import DTYPES, convolves_faster_in_bf16, fastest
from ldm_dream.training.precision import precision_of
from ldm_dream.upscaling.devices import dtype_named
from ldm_dream.upscaling.upscaler import Upscaler

CPU = torch.device("cpu")


AMX, AVX512 = "_is_amx_tile_supported", "_is_avx512_bf16_supported"


def a_cpu(monkeypatch, has, faster=False):
    """One that has these of AMX and AVX512-BF16, and whose convolution is faster in bf16 or not."""
    for flag in (AMX, AVX512):
        monkeypatch.setattr(torch.cpu, flag, lambda flag=flag: flag in has)
    monkeypatch.setattr("ldm_dream.dtypes.convolves_faster_in_bf16", lambda: faster)


@pytest.fixture(params=[([AMX], False), ([AVX512], True)])
def a_cpu_with_bf16(request, monkeypatch):
    a_cpu(monkeypatch, *request.param)


@pytest.mark.parametrize("has", [[], [AVX512]])
def test_auto_is_fp32_on_a_cpu_where_bf16_is_no_faster(has, monkeypatch):
    a_cpu(monkeypatch, has)
    assert fastest(CPU) == precision_of("auto", CPU).name == "fp32"
    assert dtype_named("auto", CPU) == torch.float32


def test_auto_is_bf16_on_a_cpu_that_has_it(a_cpu_with_bf16):
    assert fastest(CPU) == precision_of("auto", CPU).name == "bf16"
    assert dtype_named("auto", CPU) == torch.bfloat16


@pytest.mark.parametrize(("factor", "faster"), [(0.5, True), (1.7, False)])
def test_the_faster_convolution_is_found_by_its_time(factor, faster, monkeypatch):
    now, convolve = [0.0], torch.nn.functional.conv2d

    def slow(features, weights, padding):
        now[0] += factor if features.dtype == torch.bfloat16 else 1
        return convolve(features, weights, padding=padding)

    monkeypatch.setattr("ldm_dream.dtypes.F.conv2d", slow)
    monkeypatch.setattr("ldm_dream.dtypes.time.perf_counter", lambda: now[0])
    assert convolves_faster_in_bf16.__wrapped__() == faster


def test_network_and_autoencoder_compute_in_what_auto_is(a_cpu_with_bf16):
    engine = Upscaler.from_pretrained().engine
    for module in (engine.denoiser.network, engine.autoencoder):
        found = {layer.weight.dtype for layer in module.modules() if type(layer) is torch.nn.Conv2d}
        assert found == {torch.bfloat16}


def test_a_picture_of_bf16_is_nearly_that_of_fp32():
    lr = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0))
    full, half = (Upscaler.from_pretrained(dtype=name)(lr, seed=0) for name in ("fp32", "bf16"))
    assert 0 < (full - half).abs().mean() < 0.01


@pytest.mark.parametrize(("capability", "wanted"), [((7, 5), "fp16"), ((8, 0), "bf16")])
def test_auto_is_fp16_on_a_gpu_without_bf16(capability, wanted, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert fastest(torch.device("cuda")) == wanted
    assert dtype_named("auto", torch.device("cuda")) == DTYPES[wanted]


@pytest.mark.parametrize(("kind", "wanted"), [("xpu", "bf16"), ("mps", "fp32")])
def test_auto_of_other_accelerators(kind, wanted):
    assert fastest(torch.device(kind)) == wanted
