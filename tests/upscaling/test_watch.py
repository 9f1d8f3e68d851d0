"""A callback hears how far the work is, sees it, and stops it; it changes no bit of the result."""

import threading
from collections import Counter

import numpy as np
import PIL.Image
import pytest
import torch
from test_upscaler import make, pictures

from ldm_dream import Stopped, Upscaler
from ldm_dream.config.autoencoder import VQGANConfig
from ldm_dream.model_folder import load_autoencoder, load_model
from ldm_dream.upscaling import pictures as pictures_module
from ldm_dream.upscaling import upscaler as upscaler_module
from ldm_dream.upscaling import watch as watch_module
from ldm_dream.upscaling.devices import UpscaleError
from ldm_dream.upscaling.watch import Watch

WAYS = {
    "whole": {},
    "tiles": {"tile": 24, "tile_pad": 4},
    "tiles in batches": {"tile": 24, "tile_pad": 4, "batch_size": 3},
    "adain": {"color_fix": "adain"},
    "adain in tiles": {"tile": 24, "tile_pad": 4, "color_fix": "adain"},
    "smaller": {"tile": 24, "tile_pad": 4, "scale": 0.5},
}


class Heard:
    """A callback that notes all calls, and their previews."""

    def __init__(self, looks: bool = True):
        self.counts, self.previews, self.looks = [], [], looks

    def __call__(self, done, total, preview):
        self.counts.append((done, total))
        self.previews.append(preview() if self.looks else None)


@pytest.fixture
def often(monkeypatch):
    """The callback is asked before every call of torch."""
    monkeypatch.setattr(watch_module, "BETWEEN", -1)


@pytest.mark.parametrize("way", WAYS)
def test_counts_end_at_their_total_and_the_bits_are_the_same(way):
    upscaler, image, heard = make(), pictures()["noise"][:, :40, :30], Heard()
    made = upscaler(image, callback=heard, **WAYS[way])
    assert torch.equal(made, upscaler(image, **WAYS[way]))
    done, totals = [count[0] for count in heard.counts], {count[1] for count in heard.counts}
    assert done[0] == 0 and done == sorted(done) and totals == {done[-1]}


def test_a_list_counts_as_one_work():
    upscaler, heard = make(), Heard(looks=False)
    images = [pictures()[name][:, :side, :40] for name, side in (("noise", 20), ("gradient", 40))]
    options = {"tile": 24, "tile_pad": 4}
    made = upscaler(images, callback=heard, **options)
    alone = [Heard(looks=False) for _ in images]
    for image, result, note in zip(images, made, alone):
        assert torch.equal(result, upscaler(image, callback=note, **options))
    total = sum(note.counts[-1][1] for note in alone)
    assert {count[1] for count in heard.counts} == {total} and heard.counts[-1] == (total, total)


def test_running_out_of_memory_begins_the_picture_anew_and_not_the_list(monkeypatch):
    upscaler, heard = make(), Heard()
    decode = upscaler.engine.autoencoder.decode

    def small_decode(z):
        if z.shape[-1] > 32:
            raise RuntimeError("MPS backend out of memory (a stand-in)")
        return decode(z)

    monkeypatch.setattr(upscaler.engine.autoencoder, "decode", small_decode)
    heard.looks = False  # of a whole picture, which has no room here
    image = pictures()["noise"][:, :40, :40]
    upscaler([image[:, :16, :16], image], callback=heard, steps=1, tile_pad=4)
    done = [count[0] for count in heard.counts]
    first = done.index(3)  # encode, one step, decode
    assert min(done[first:]) == 3 and done != sorted(done)
    assert heard.counts[-1][0] == heard.counts[-1][1] > 6


def test_the_preview_grows(monkeypatch):
    monkeypatch.setattr(pictures_module, "STRIP", 0)
    heard, image = Heard(), np.random.default_rng(0).integers(0, 256, (190, 20, 3), np.uint8)
    out = make()(image, callback=heard, steps=1, tile=24, tile_pad=4)
    seen = [preview for preview in heard.previews if preview]
    assert heard.previews[0] is None and {preview.size for preview in seen} == {(40, 380)}
    rows = [(np.asarray(preview) == out[::2, ::2]).all((1, 2)).sum() for preview in seen]
    assert rows == sorted(rows) and rows[0] < rows[-1]


@pytest.mark.parametrize("size", [(19, 23), (60, 200)])
def test_a_whole_picture_shows_its_steps_without_the_context_around(size):
    upscaler, image, heard = (
        make(),
        pictures()["flat"].repeat(1, 1, 4)[:, : size[0], : size[1]],
        Heard(),
    )
    upscaler(image, callback=heard, color_fix="none")
    steps = [preview for preview in heard.previews if preview]
    assert len(steps) >= 3
    for preview in steps:
        wide, high = preview.size
        assert wide <= watch_module.PREVIEW and abs(wide / high - size[1] / size[0]) < 0.1


@pytest.mark.parametrize("way", WAYS)
def test_it_stops_at_every_moment_and_works_again(way, often):
    upscaler, image, count = make(), pictures()["noise"][:, :30, :20], Heard(looks=False)
    whole = upscaler(image, **WAYS[way])
    upscaler(image, callback=count, **WAYS[way])
    for moment in np.linspace(0, len(count.counts) - 1, 3).astype(int):
        calls = iter([None] * moment + [False])
        with pytest.raises(Stopped, match=r"^stopped after \d+ of \d+ network calls\.$"):
            upscaler(image, callback=lambda *_, calls=calls: next(calls), **WAYS[way])
    assert torch.equal(upscaler(image, **WAYS[way]), whole)


def test_it_stops_a_list_in_its_second_picture():
    upscaler, image = make(), pictures()["noise"][:, :16, :16]
    with pytest.raises(Stopped, match="stopped after 6 of 10"):
        upscaler([image, image], callback=lambda done, *_: done < 6)


def test_another_thread_is_not_stopped(often):
    """One model, as a page has it: who stops stops only its own picture."""
    upscaler, image, started = make(), pictures()["noise"][:, :40, :40], threading.Event()
    whole, made = upscaler(image), []

    def work():
        made.append(upscaler(image))
        started.set()

    def stop(done, *_):
        if not done:
            return None
        other = threading.Thread(target=work)
        other.start()
        assert started.wait(60)
        return False

    with pytest.raises(Stopped):
        upscaler(image, callback=stop)
    assert torch.equal(made[0], whole)


def test_within_what_is_compiled_nothing_asks(often):
    """A compiled or recorded network must not see the mode that asks."""
    upscaler, image, heard = make(), pictures()["noise"][:, :20, :20], Heard(looks=False)
    upscaler.engine.stoppable = False
    upscaler(image, callback=heard)
    assert [count[0] for count in heard.counts] == list(range(heard.counts[-1][1] + 1))


def test_it_stops_while_hidden_colours_are_filled(often, monkeypatch):
    image = np.full((40, 30, 4), 255, np.uint8)
    image[5:, 5:, 3] = 0
    asked, upscaler, fill = [], make(), upscaler_module.filled

    def filled(pixels):
        asked.clear()
        return fill(pixels)

    monkeypatch.setattr(upscaler_module, "filled", filled)
    monkeypatch.setattr(upscaler.engine, "whole", lambda *_: pytest.fail("worked"))
    with pytest.raises(Stopped, match="stopped after 0 of"):
        upscaler(image, callback=lambda *_: asked.append(1) or len(asked) < 20)


def test_an_error_of_the_callback_is_its_own():
    def fails(*_):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        make()(pictures()["flat"], callback=fails)


def test_every_network_is_asked_within_many_times(often):
    """Who stops waits for one call of torch, not for one of a network."""
    model = load_model("dream-latent-x4-tiny")
    deep = load_autoencoder(VQGANConfig(pretrained="vq-f4-tiny"))
    upscaler = Upscaler(model._replace(autoencoder=deep), device="cpu")
    heard = Heard(looks=False)
    image = np.random.default_rng(0).integers(0, 256, (20, 20, 3), np.uint8)
    upscaler(image, steps=1, callback=heard)
    asked = Counter(done for done, _ in heard.counts)
    assert set(asked) == {0, 1, 2, 3} and min(asked[done] for done in (0, 1, 2)) > 50


def test_a_preview_is_made_once_and_small(monkeypatch):
    """A decoder at full size would take as long as a step."""
    upscaler, sides = Upscaler.from_pretrained(device="cpu"), []
    decode = upscaler.engine.autoencoder.decode
    monkeypatch.setattr(
        upscaler.engine.autoencoder, "decode", lambda z: sides.append(z.shape[-1]) or decode(z)
    )
    image = np.random.default_rng(0).integers(0, 256, (8, 140, 3), np.uint8)
    seen = []

    def look(done, total, preview):
        seen.extend(preview() for _ in range(2))

    monkeypatch.setattr(watch_module, "BETWEEN", 1e9)
    upscaler(image, steps=1, callback=look)
    assert len(sides) == 2 and sides[0] <= 64 < sides[1]  # latent pixels, of 4 pixels each
    assert all(preview is None or isinstance(preview, PIL.Image.Image) for preview in seen)


def test_a_callback_that_is_no_function_is_refused():
    with pytest.raises(UpscaleError, match="callback=3: is no function"):
        Watch(3)  # type: ignore
