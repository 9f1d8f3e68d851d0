"""What a program calls beside the upscaling itself: where it runs, what it takes, what it keeps."""

from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from test_upscaler import make

import ldm_dream
from ldm_dream.config.autoencoder import PixelConfig
from ldm_dream.data.images import Image, ImageError, read_image, write_image
from ldm_dream.hub import HubError
from ldm_dream.model_folder import load_model, save_loaded
from ldm_dream.upscaling import models
from ldm_dream.upscaling import upscaler as upscaler_module
from ldm_dream.upscaling import watch as watch_module
from ldm_dream.upscaling.colors import Moments
from ldm_dream.upscaling.devices import (
    KINDS,
    UpscaleError,
    device_named,
    dtype_named,
    memory_errors,
    placed,
)
from ldm_dream.upscaling.engine import Choices, Options
from ldm_dream.upscaling.upscaler import DEFAULT_MODEL, Upscaler
from ldm_dream.upscaling.watch import Stopped
from ldm_dream.writing import WriteError

CPU = torch.device("cpu")
NAME = "dream-latent-x4-tiny"


@pytest.fixture
def there(monkeypatch):
    """Says how many accelerators of each kind are there."""

    def set_counts(cuda: int = 0, xpu: int = 0, mps: int = 0) -> None:
        for kind, count in {"cuda": cuda, "xpu": xpu, "mps": mps}.items():
            monkeypatch.setitem(KINDS, kind, lambda count=count: count)

    return set_counts


# ------------------------------------------------------------------------------ device and dtype


def test_accelerators_are_counted_by_torch():
    counts = [count() for count in KINDS.values()]
    assert counts == [torch.cuda.device_count(), torch.xpu.device_count(), torch.mps.is_available()]


@pytest.mark.parametrize(
    "counts, wanted, found",
    [
        ({}, "auto", "cpu"),
        ({"cuda": 1, "xpu": 1, "mps": 1}, "auto", "cuda"),
        ({"xpu": 1, "mps": 1}, "auto", "xpu"),
        ({"mps": 1}, "auto", "mps"),
        ({"cuda": 2}, "cuda:1", "cuda:1"),
        ({"xpu": 2}, torch.device("xpu:1"), "xpu:1"),
        ({"mps": 1}, torch.device("mps"), "mps"),
        ({"mps": 1}, torch.device("mps:0"), "mps:0"),
        ({"cuda": 1}, CPU, "cpu"),
    ],
)
def test_devices_are_named_or_given(there, counts, wanted, found):
    there(**counts)
    assert device_named(wanted) == torch.device(found)


@pytest.mark.parametrize(
    "wanted, says",
    [
        ("cuda", "'cuda' is not there .0 of"),
        ("xpu:2", "'xpu:2' is not there .2 of"),
        (torch.device("mps"), "'mps' is not there .0 of"),
        ("mps:x", "'mps:x' is unknown; use auto, cpu, cuda, xpu, mps, or one with :N"),
        (torch.device("meta"), "'meta' is unknown"),
        (torch.int8, "'torch.int8' is unknown"),
        ("", "'' is unknown"),
    ],
)
def test_devices_that_are_not_possible_are_one_sentence(there, wanted, says):
    there(xpu=2)
    with pytest.raises(UpscaleError, match=says):
        device_named(wanted)


@pytest.mark.parametrize(
    "wanted, device, found",
    [
        ("auto", "cpu", torch.float32),
        ("auto", "mps", torch.float32),
        ("auto", "xpu", torch.bfloat16),
        ("fp16", "mps", torch.float16),
        (torch.bfloat16, "cpu", torch.bfloat16),
        (torch.float32, "xpu", torch.float32),
    ],
)
def test_dtypes_are_named_or_given(wanted, device, found):
    assert dtype_named(wanted, torch.device(device)) == found


@pytest.mark.parametrize("wanted", ["float16", torch.float64, torch.int8])
def test_other_dtypes_are_one_sentence(wanted):
    with pytest.raises(UpscaleError, match=f"dtype='{wanted}' is unknown; use auto, fp32, bf16, "):
        dtype_named(wanted, CPU)


def test_moving_is_that_of_torch():
    model, image = make(), torch.rand(3, 8, 8)
    first = model(image)
    assert model.to("cpu") is model and (model.device, model.dtype) == (CPU, torch.float32)
    for half in (torch.bfloat16, "bf16"):
        assert model.to(half).dtype == torch.bfloat16
        assert not torch.equal(model(image), first)
        assert model.to(CPU).dtype == torch.bfloat16  # stays
        assert torch.equal(model.to("cpu", torch.float32)(image), first)
    assert model.to(dtype="bf16").dtype == torch.bfloat16
    assert model.to(device="cpu", dtype="auto").dtype == torch.float32


def test_auto_is_decided_anew_at_every_move(there, monkeypatch):
    """A stand-in for the engine: an accelerator is not at hand."""
    made = []
    monkeypatch.setattr(models, "Diffusion", lambda model, *where: made.append(where[:2]) or None)
    there(xpu=1)
    model = Upscaler(load_model(NAME))
    model.to("cpu").to("xpu:0", torch.float16).to("cpu")
    xpu = torch.device("xpu")
    assert made == [
        (xpu, torch.bfloat16),
        (CPU, torch.float32),
        (torch.device("xpu:0"), torch.float16),
        (CPU, torch.float16),
    ]


def test_a_move_that_is_not_possible_changes_nothing():
    model = make()
    for wrong in (("tpu",), ("cpu", "int8"), (torch.float16, "fp32"), (torch.float64,)):
        with pytest.raises(UpscaleError):
            model.to(*wrong)
    assert (model.device, model.dtype) == (CPU, torch.float32)
    assert model(torch.rand(3, 4, 4), steps=1).shape == (3, 16, 16)


def test_half_precision_leaves_no_second_copy_on_the_accelerator(monkeypatch):
    layer, moved = torch.nn.Conv2d(1, 1, 1), []
    monkeypatch.setattr(layer, "cpu", lambda: moved.append("cpu") or layer)
    placed(layer, CPU, torch.float16)
    assert moved == ["cpu"]


@pytest.mark.parametrize(
    "text", ["MPS backend out of memory (MPS allocated ..)", "DefaultCPUAllocator: can't allocate memory"]
)  # fmt: skip
def test_every_device_runs_out_of_memory_alike(text):
    with pytest.raises(torch.OutOfMemoryError), memory_errors():
        raise RuntimeError(text)
    with pytest.raises(RuntimeError, match="another"), memory_errors():
        raise RuntimeError("another")


def test_moments_are_float64_also_where_the_device_has_none():
    class OnMps(torch.Tensor):
        """On the host, but says otherwise."""

        device = property(lambda self: torch.device("mps"))

        def double(self):
            raise TypeError("MPS has no float64")

        def cpu(self):
            return self.as_subclass(torch.Tensor)

    part, moments = torch.rand(1, 3, 4, 5), Moments()
    moments.add(part.as_subclass(OnMps))
    moments.device = CPU
    assert torch.allclose(moments.mean_and_std()[0], part.mean((2, 3), keepdim=True))


# -------------------------------------------------------------------------------- lists and paths


def test_a_path_gives_what_write_image_writes(tmp_path):
    path, pixels = tmp_path / "a.png", np.random.default_rng(0).integers(0, 65536, (6, 5, 3))
    write_image(path, Image(pixels.astype(np.uint16)))
    made = make()(path, steps=1)
    assert isinstance(made, ldm_dream.Image) and made.pixels.dtype == np.uint16
    assert np.array_equal(made.pixels, make()(str(path), steps=1).pixels)
    assert np.array_equal(made.pixels, make()(read_image(path), steps=1).pixels)
    ldm_dream.write_image(tmp_path / "b.png", made)
    assert np.array_equal(ldm_dream.read_image(tmp_path / "b.png").pixels, made.pixels)


def test_a_list_gives_a_list_of_what_each_alone_gives(tmp_path):
    path = tmp_path / "a.png"
    PIL.Image.new("RGB", (5, 4), "red").save(path)
    images = [PIL.Image.new("RGB", (4, 6), "blue"), np.zeros((3, 4, 3), np.uint8), path]
    model = make()
    for many in (images, tuple(images)):
        made = model(many, steps=1)
        assert isinstance(made, list) and [type(one) for one in made] == [
            PIL.Image.Image, np.ndarray, Image]  # fmt: skip
        assert np.array_equal(made[1], model(images[1], steps=1))
    assert model([]) == [] and [one.size for one in model([images[0]], steps=1)] == [(16, 24)]


def test_files_of_a_list_are_decoded_once_and_the_look_ahead_can_be_stopped(tmp_path, monkeypatch):
    paths = [tmp_path / name for name in ("a.png", "b.png", "c.png")]
    for path in paths:
        PIL.Image.new("RGB", (5, 4), "red").save(path)
    model, decoded, heard = make(), [], []
    read = upscaler_module.read_image
    monkeypatch.setattr(
        upscaler_module, "read_image", lambda path: decoded.append(path) or read(path)
    )
    model(paths, steps=1)
    assert decoded == paths
    decoded.clear()
    monkeypatch.setattr(watch_module, "BETWEEN", -1)
    with pytest.raises(Stopped, match="stopped after 0"):
        model(paths, steps=1, callback=lambda done, total, _: heard.append(total) or len(heard) < 2)
    assert decoded == [] and 0 < heard[0] < heard[1]


@pytest.mark.parametrize(
    "wrong", ["gone.png", 7, np.zeros((2, 2, 5)), [np.zeros((2, 2), np.uint8)]]
)
def test_a_list_with_what_is_no_picture_ends_before_any_work(wrong, monkeypatch):
    model = make()
    monkeypatch.setattr(model.engine, "whole", lambda *_: pytest.fail("worked"))
    with pytest.raises(ImageError) as error:
        model([np.zeros((4, 4, 3), np.uint8), wrong])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("wrong", [b"bytes", {"a": 1}, iter([]), None])
def test_other_types_are_one_sentence(wrong):
    with pytest.raises(ImageError, match="is not supported; give"):
        make()(wrong)


def test_choices_are_the_options():
    """Editors and type checkers know the keywords of a call by Choices."""
    assert Choices.__annotations__.keys() == Options.__annotations__.keys()
    known = {name: str(kind) for name, kind in Options.__annotations__.items()}
    assert {name: kind.__forward_arg__ for name, kind in Choices.__annotations__.items()} == known


# ------------------------------------------------------------------------- names, saving, the hub


def test_repr_says_what_it_is():
    model = Upscaler.from_pretrained(NAME, device="cpu")
    count = sum(p.numel() for m in model.model[1:3] for p in m.parameters())
    assert repr(model) == (
        f"Upscaler('{NAME}', scale=4, device='cpu', dtype='fp32', parameters={count})"
    )
    assert "'unnamed', scale=4" in repr(make()) and "dtype='bf16'" in repr(make().to("bf16"))


@pytest.mark.parametrize("model", [{}, {"autoencoder": PixelConfig()}])
def test_what_is_saved_loads_as_the_same_model(tmp_path, model):
    """With the autoencoder, which this one has from nowhere."""
    upscaler, image = make(**model), torch.rand(3, 8, 8)
    for dtype in ("bf16", "fp32"):  # the weights are kept in full
        upscaler.to(dtype).save_pretrained(tmp_path / "model")
    again = Upscaler.from_pretrained(tmp_path / "model", device="cpu")
    assert torch.equal(again(image), upscaler(image))
    assert (tmp_path / "model/autoencoder.safetensors").exists() == (not model)


def test_a_bundled_model_is_saved_with_its_card(tmp_path):
    bundled = load_model(NAME)
    save_loaded(bundled, tmp_path / "model")
    names = {path.name for path in (tmp_path / "model").iterdir()}
    assert names == {"model.safetensors", "config.yaml", "README.md", "SHA256SUMS"}
    card = Path(bundled.folder) / "README.md"
    assert (tmp_path / "model/README.md").read_text() == card.read_text()
    assert load_model(tmp_path / "model").run == bundled.run


def test_saving_takes_no_place_of_another(tmp_path):
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters/a.txt").write_text("dear")
    with pytest.raises(WriteError, match="holds a.txt, which was not written here"):
        make().save_pretrained(tmp_path / "letters")
    assert (tmp_path / "letters/a.txt").read_text() == "dear"


def test_what_is_pushed_is_what_is_saved(monkeypatch):
    sent = []

    def upload(folder, repo_id, private, token):
        sent.append((repo_id, private, token, sorted(path.name for path in folder.iterdir())))
        return "https://hub/me/model"

    monkeypatch.setattr(upscaler_module, "upload", upload)
    assert make().push_to_hub("me/model", private=True, token="t") == "https://hub/me/model"
    files = [
        "README.md",
        "SHA256SUMS",
        "autoencoder.safetensors",
        "config.yaml",
        "model.safetensors",
    ]
    assert sent == [("me/model", True, "t", files)]


def test_what_the_hub_is_asked_comes_from_the_call(monkeypatch):
    asked = []
    monkeypatch.setattr(
        models, "load_model", lambda name, search: asked.append((name, search)) or 1 / 0
    )
    with pytest.raises(ZeroDivisionError):
        Upscaler.from_pretrained("hf:me/model", revision="v1", local_files_only=True, token="t")
    assert asked == [("hf:me/model", (True, "v1", True, "t"))]
    for wrong in ({"device": "tpu"}, {"dtype": "int8"}):  # before anything is fetched
        with pytest.raises(UpscaleError):
            Upscaler.from_pretrained("hf:me/model", **wrong)
    monkeypatch.undo()
    with pytest.raises(HubError, match="has no revision"):
        Upscaler.from_pretrained(NAME, revision="v1")


def test_what_a_program_needs_is_at_the_top():
    for name in ldm_dream.__all__:
        assert getattr(ldm_dream, name).__module__.startswith("ldm_dream.")
    assert [model.name for model in ldm_dream.list_models()] == [NAME, DEFAULT_MODEL]
    with pytest.raises(AttributeError, match="has no attribute 'Upscalar'"):
        ldm_dream.Upscalar  # noqa: B018
