"""Recorded calls: the same results as the network's own, for every shape. Without a GPU a recording
is played by plain Python.
"""

from contextlib import contextmanager
from typing import NamedTuple

import pytest
import torch
from torch.utils._pytree import tree_leaves

from ldm_dream import Upscaler
from ldm_dream.config.networks import IDMConfig
from ldm_dream.networks import build_network
from ldm_dream.upscaling.cuda_graphs import CALLS, KEPT, GraphedCall


class Recording(NamedTuple):
    arguments: tuple
    pool: object


@pytest.fixture
def recorded(monkeypatch) -> list:
    """Every recording. It acts as CUDA's: reads from and writes to the same memory
    each time.
    """
    recordings = []

    def make_graphed_callables(call, arguments, pool):
        assert not isinstance(call, torch.nn.Module)
        recordings.append(Recording(arguments, pool))
        result = call(*arguments)

        def replay(*inputs):
            for own, given in zip(tree_leaves(arguments), tree_leaves(inputs), strict=True):
                own.copy_(given)
            return result.copy_(call(*arguments))

        return replay

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", make_graphed_callables)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", object)
    return recordings


def test_a_shape_is_recorded_once_when_it_has_come_often_enough(recorded):
    call = GraphedCall(lambda x, y: x + 2 * y)
    for i in range(CALLS + 3):
        x, y = torch.randn(2, 3), torch.randn(1)
        torch.testing.assert_close(call(x, y.expand(3)), x + 2 * y)
        assert len(recorded) == (i >= CALLS)
    assert call(torch.ones(3), torch.ones(3)).shape == (3,) and len(recorded) == 1


def test_results_outlive_the_next_call_and_inputs_stay(recorded):
    call = GraphedCall(lambda x: x + 1)
    inputs = [torch.full((2,), float(i)) for i in range(CALLS + 4)]
    results = [call(x) for x in inputs]
    for i, (x, result) in enumerate(zip(inputs, results)):
        assert (x == i).all() and (result == i + 1).all()


def test_no_more_than_kept_are_recorded(recorded):
    call = GraphedCall(lambda x: -x)
    for size in range(1, KEPT + 3):
        for _ in range(CALLS + 2):
            assert torch.equal(call(torch.ones(size)), -torch.ones(size))
    assert len(recorded) == KEPT
    assert len({id(recording.pool) for recording in recorded}) == 1


@torch.no_grad()
def test_idms_features_of_the_lr_picture_are_inputs_too(recorded):
    """What a second picture brings must reach the recording of the first one's shape."""
    cfg = IDMConfig(
        model_channels=32, encoder_blocks=1, encoder_channels=8, max_scale=4, channel_mult=(1, 2), num_res_blocks=1,
        image_size=16, attention_resolutions=(), dropout=0.0,
    )  # fmt: skip
    network = build_network(cfg).eval()
    call = GraphedCall(network)
    for _ in range(CALLS + 2):
        features = network.prepare(torch.randn(1, 3, 8, 8), (16, 16))
        inputs = torch.randn(1, 3, 16, 16), network.embed(torch.rand(1)), *features
        torch.testing.assert_close(call(*inputs), network(*inputs))
    assert len(recorded) == 1


def test_tiles_through_a_recorded_call_make_the_same_picture(recorded):
    picture = torch.rand(3, 60, 20)
    upscaler = Upscaler.from_pretrained(device="cpu")
    options = {"tile": 16, "tile_pad": 4, "steps": 4}
    want = upscaler(picture, **options)
    upscaler.engine.denoiser.call = GraphedCall(upscaler.engine.denoiser.network)
    assert torch.equal(upscaler(picture, **options), want)
    assert len(recorded) == 1


def test_recording_and_playing_are_on_the_device_of_the_inputs(recorded, monkeypatch):
    current = ["cuda:0"]

    @contextmanager
    def device_of(x):
        current.append(f"of {tuple(x.shape)}")
        yield
        current.pop()

    seen = []
    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    call = GraphedCall(lambda x: seen.append(current[-1]) or x + 1)
    for _ in range(CALLS + 2):
        call(torch.ones(3))
    assert {*seen} == {"of (3,)"} and len(recorded) == 1 and current == ["cuda:0"]


def test_out_of_memory_drops_recordings_before_tiles_shrink(recorded, monkeypatch, caplog):
    """And no more are made: they would take the memory again."""
    picture, upscaler, sides = torch.rand(3, 60, 20), Upscaler.from_pretrained(device="cpu"), []
    options = {"tile": 16, "tile_pad": 4, "steps": 4}
    want = upscaler(picture, **options)
    call = upscaler.engine.denoiser.call = GraphedCall(upscaler.engine.denoiser.network)
    decode = upscaler.engine.autoencoder.decode

    def full(z):
        sides.append(z.shape[-1])
        if call.graphs:
            raise torch.OutOfMemoryError
        return decode(z)

    monkeypatch.setattr(upscaler.engine.autoencoder, "decode", full)
    for _ in range(2):
        assert torch.equal(upscaler(picture, **options), want)
    assert len(recorded) == 1 and len(set(sides)) == 1 and not call.graphs
    assert [record.getMessage()[-28:] for record in caplog.records] == [
        "without recorded CUDA graphs."[-28:]
    ]


def test_out_of_memory_without_recordings_is_raised_at_once(recorded):
    call = GraphedCall(lambda x: x)
    assert not call.drop()
    call = GraphedCall(lambda x: x + 1)
    for _ in range(CALLS + 1):
        call(torch.ones(2))
    assert call.drop() and not call.drop()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs want CUDA")
@pytest.mark.parametrize("tile", [None, 32])
def test_a_picture_upscaled_with_cuda_graphs_is_the_same(tile):
    picture = torch.rand(3, 96, 80)
    plain, graphed = (
        Upscaler.from_pretrained(device="cuda", dtype="fp32", compile=compile)
        for compile in (False, True)
    )
    want = plain(picture, steps=4, tile=tile)
    for _ in range(3):
        torch.testing.assert_close(graphed(picture, steps=4, tile=tile), want, atol=1e-2, rtol=0)
    assert graphed.denoiser.call.graphs
