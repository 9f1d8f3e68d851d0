"""Upscaler: a picture in, the same kind of picture out, larger.

    picture -> pixels and mirrored border -> engine: x scale -> colour fix -> wanted size
            -> the picture's own type

The picture is mirrored on all sides first, up to sides that the network takes, and cropped
afterwards, so every size works and networks meet no border where the picture has one. A small
picture takes this way in one piece. Another goes in bands (`in_tiles.py`): of it only the LR picture and the
result are held whole, both in the depth they came in, a large result that is for a file on the disk
(`data/scratch.py`); of a picture with alpha also a copy, and one more where colours are hidden
(`hidden.py`). Accelerator memory depends on the size of tiles, on how many are made at a time,
and on the picture's width. Colours and size are set in strips either way, which changes no number.
What a model is like is its engine's matter (`diffusion.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, overload

import torch

from ldm_dream.data.images import (
    Image,
    ImageError,
    check_header,
    image_size,
    read_image,
    refuse_address,
)
from ldm_dream.data.resize import rows_needed
from ldm_dream.dtypes import DTYPES, name_of
from ldm_dream.errors import did_you_mean
from ldm_dream.heap import keep_small_blocks
from ldm_dream.hub import Search, upload
from ldm_dream.model_folder import LoadedModel, save_loaded
from ldm_dream.upscaling.colors import COLOR_FIXES, around, in_columns
from ldm_dream.upscaling.defaults import DEFAULT_MODEL
from ldm_dream.upscaling.devices import (
    Device,
    Dtype,
    UpscaleError,
    device_named,
    dtype_named,
    memory_errors,
)
from ldm_dream.upscaling.engine import Choices, Made, Options
from ldm_dream.upscaling.hidden import filled
from ldm_dream.upscaling.layout import Layout, first_layout, with_less_memory
from ldm_dream.upscaling.models import Model, engine_of, load
from ldm_dream.upscaling.pictures import (
    Canvas,
    Frame,
    Picture,
    Pixels,
    outline,
    resized,
    unpack,
)
from ldm_dream.upscaling.sizes import Size
from ldm_dream.upscaling.watch import PREVIEW, Callback, Watch

if TYPE_CHECKING:
    from typing_extensions import Unpack


class Upscaler:
    """Callable on pictures. `Upscaler.from_pretrained("dream-latent-x4-tiny")(image, scale=4)`.

    model: as for `Diffusion`, of another project as for `OnePass`. device, dtype: as for `to`.
    """

    def __init__(
        self,
        model: Model,
        device: Device = "auto",
        dtype: Dtype = "auto",
        compile: bool = False,
    ):
        self.model, self._compile = model, compile
        self.to(device, dtype)

    @classmethod
    def from_pretrained(
        cls,
        name_or_dir: str | Path = DEFAULT_MODEL,
        device: Device = "auto",
        dtype: Dtype = "auto",
        compile: bool = False,
        *,
        revision: str | None = None,
        local_files_only: bool = False,
        token: str | None = None,
    ) -> Upscaler:
        """A bundled model by name, a model folder, one of the Hugging Face hub (`hf:owner/name`), or
        a file of another project (.pth, .safetensors) whose network spandrel knows.

        device, dtype: as for `to`. compile: torch.compile, on CUDA with CUDA graphs. Of a model of
        the hub: revision: a branch, tag or commit. local_files_only: what was fetched before,
        without the network. token: of an account, if not that which is logged in. Raises
        ModelError, HubError, CheckpointImportError, UpscaleError.
        """
        dtype_named(dtype, device_named(device))  # before anything is fetched
        search = Search(revision=revision, local_files_only=local_files_only, token=token)
        return cls(load(name_or_dir, search), device, dtype, compile)

    def to(
        self, device: Device | torch.dtype | None = None, dtype: Dtype | None = None
    ) -> Upscaler:
        """Move it there, or to that precision, or both; None = as before. -> itself.

        device: auto (the first of cuda, xpu and mps that is there, else cpu), cpu, cuda, cuda:N, ..,
        or a torch.device. dtype: auto (the fastest of the device, as `ldm_dream.dtypes.fastest`
        says; of another project, what its network supports), fp32, bf16, fp16, or the type of
        torch; as in torch it may stand alone. auto is decided anew at every move. On a CPU the
        process keeps more freed memory from then on (`ldm_dream/heap.py`), which tiles want again.
        Raises UpscaleError.
        """
        if isinstance(device, torch.dtype) or (isinstance(device, str) and device in DTYPES):
            if dtype is not None:
                raise UpscaleError(
                    f"{device} and {dtype}: give a device and a dtype, or one of them."
                )
            device, dtype = None, device
        device = self._device if device is None else device
        dtype = self._dtype if dtype is None else dtype
        place = device_named(device)
        if place.type == "cpu":
            keep_small_blocks()
        self.engine = engine_of(self.model, place, dtype, self._compile)
        self._device, self._dtype = device, dtype  # as asked for: auto stays auto
        return self

    @property
    def scale(self) -> int:
        """The model's own."""
        return self.engine.scale

    @property
    def device(self) -> torch.device:
        return self.engine.device

    @property
    def dtype(self) -> torch.dtype:
        return self.engine.dtype

    def __repr__(self) -> str:
        modules = self.model.modules
        count = sum(weights.numel() for module in modules for weights in module.parameters())
        return (
            f"Upscaler({self.model.name!r}, scale={self.scale}, device={str(self.device)!r}, "
            f"dtype={name_of(self.dtype)!r}, parameters={count})"
        )

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the model as a folder that `from_pretrained` takes on any machine. It is new, or an
        earlier one. Raises WriteError, UpscaleError for a file of another project.
        """
        if not isinstance(self.model, LoadedModel):
            raise UpscaleError(
                f"{self.model.name}: a file of another project becomes no model folder; copy the file."
            )
        save_loaded(self.model, Path(folder))

    def push_to_hub(self, repo_id: str, private: bool = False, token: str | None = None) -> str:
        """Send the model to owner/name of the Hugging Face hub, as `save_pretrained` writes it; ->
        its address. Raises HubError, WriteError, UpscaleError.
        """
        with TemporaryDirectory() as place:
            self.save_pretrained(folder := Path(place) / "model")
            return upload(folder, repo_id, private, token)

    # fmt: off
    @overload
    def __call__(
        self, image: str | Path, scale: float | None = None, callback: Callback | None = None,
        **options: Unpack[Choices],
    ) -> Image: ...
    @overload
    def __call__(
        self, image: Picture, scale: float | None = None, callback: Callback | None = None,
        **options: Unpack[Choices],
    ) -> Picture: ...
    @overload
    def __call__(
        self, image: Sequence[str | Path], scale: float | None = None,
        callback: Callback | None = None, **options: Unpack[Choices],
    ) -> list[Image]: ...
    @overload
    def __call__(
        self, image: Sequence[Picture], scale: float | None = None,
        callback: Callback | None = None, **options: Unpack[Choices],
    ) -> list[Picture]: ...
    # fmt: on

    @torch.no_grad()
    def __call__(
        self,
        image: Any,
        scale: float | None = None,
        callback: Callback | None = None,
        **options: Unpack[Choices],
    ) -> Any:
        """A picture -> the same type and bit depth (see `pictures.unpack`), round(H * scale) x
        round(W * scale). The path of a file -> `ldm_dream.Image`, with all that the file says, which
        `ldm_dream.write_image` writes. A list -> a list.

        scale: any number above 0; None = the model's own, unless the options ask for a width, a
        height or megapixels. The model enlarges by its own scale; another size is made from that
        by bicubic, so a scale above the model's adds no further detail. IDM enlarges by any scale
        from 1 to its `max_scale` itself, where the picture is taken whole. callback(done, total,
        preview): after each network call of all pictures and up to ten times a second, preview()
        being the picture as far as it is, or None; returning False stops. options: see `Options`.
        Alpha is enlarged by bicubic. Raises UpscaleError or SamplerError for an option, ImageError
        for a picture that is not possible, Stopped.
        """
        _refuse_unknown(options)
        how = Options(**options)
        asked = how.size(self.engine.scale, scale)
        self.engine.calls(how)  # options that are not possible end here
        many = isinstance(image, Sequence) and not isinstance(image, str | bytes | bytearray)
        images = image if many else [image]
        watch, calls, made = Watch(callback), [], []
        for one in images[1:]:  # a picture of the list that is not possible ends here too
            calls.append(first_layout(self.engine, _outline(one), asked, how).calls)
            watch.look_ahead(sum(calls))
        for i, one in enumerate(images):
            watch.next_picture(ahead=sum(calls[i:]))
            made.append(self._enlarged(_read(one), asked, how, watch))
        return made if many else made[0]

    def _enlarged(self, pixels: Pixels, asked: Size, how: Options, watch: Watch) -> Any:
        """-> a picture of the type that came in. Where memory runs out, once more with less."""
        layout = first_layout(self.engine, pixels, asked, how)
        if pixels.has_alpha:
            watch.begin(layout.calls, lambda: None, layout.frame.crop)
            with watch.listening(within=True):
                pixels = filled(pixels)
            layout = first_layout(self.engine, pixels, asked, how)
        canvas = Canvas(pixels, layout.size)
        with watch.listening(within=self.engine.stoppable):
            while True:
                look = partial(canvas.look, PREVIEW)
                watch.begin(layout.calls, look, layout.frame.crop)
                try:
                    with memory_errors():
                        # without a name, which would hold it while less is tried
                        self._draw(*self._made(layout, how, watch), how, canvas)
                    return canvas.picture()
                except torch.OutOfMemoryError:
                    layout = with_less_memory(self.engine, layout, how)

    def _made(self, layout: Layout, how: Options, watch: Watch) -> tuple[Made, Frame]:
        if layout.tiles is None:
            sees = self.engine.sees_enlarged
            frame = layout.frame.whole(self.device) if sees else layout.frame
            return self.engine.whole(frame, how, watch), frame
        return self.engine.in_tiles(layout.frame.source, layout.tiles, how, watch), layout.frame

    def _draw(self, made: Made, frame: Frame, how: Options, canvas: Canvas) -> None:
        """Colours, then the wanted size, strip by strip."""
        strips, height = frame.strips(canvas.size[0]), frame.inner[0]
        needs = [rows_needed(height, canvas.size[0], strip) for strip in strips]
        wants = [around(rows, height) for rows in needs]
        fix = COLOR_FIXES[how.color_fix or self.engine.color_fix](
            lambda: frame.pairs(made(), frame.strips(height))
        )
        for strip, need, want, pair in zip(strips, needs, wants, frame.pairs(made(), wants)):
            sr = in_columns(fix, *pair)[..., need.start - want.start : need.stop - want.start, :]
            if not sr.sum().isfinite():  # NaN or infinity anywhere shows in it
                raise ImageError(
                    f"the model's result holds NaN or infinity in {self.dtype}; try dtype fp32."
                )
            sr = (sr.clamp(-1, 1) + 1) / 2
            canvas.write(strip, resized(sr, need.start, frame.inner, canvas.size, strip))


def _refuse_unknown(options: Iterable[str]) -> None:
    known = [field.name for field in fields(Options)]
    for name in options:
        if name not in known:
            hint = did_you_mean(name, known, f"use one of {', '.join(known)}.")
            raise UpscaleError(f"there is no option {name}; {hint}")


def _outline(image: Any) -> Pixels:
    """A picture that is looked at only for its size: of a file no more than the header is read."""
    if not isinstance(image, str | Path):
        return unpack(image)
    refuse_address(Path(image))
    check_header(Path(image))
    return outline(image_size(image))


def _read(image: Any) -> Pixels:
    if not isinstance(image, str | Path):
        return unpack(image)
    refuse_address(Path(image))
    return unpack(read_image(Path(image)))
