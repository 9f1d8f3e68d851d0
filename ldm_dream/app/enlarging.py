"""The work behind the page: pictures of a session, one after the other, in a thread of its own.

The thread notes how far it is in `Running.now`, which the page reads when it likes. The upscaler is
stopped within a second of `stop` by its callback; reading and writing a file are not, so the page
does not wait for the thread then. Visitors take turns, a picture each.
"""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import PIL.Image
from torch.overrides import TorchFunctionMode

from ldm_dream.app.errors import AppError
from ldm_dream.app.sessions import Session
from ldm_dream.app.told import Now, Result, View
from ldm_dream.app.turns import Turns
from ldm_dream.app.views import before_work, write_view
from ldm_dream.data.images import Image, check_writable, read_image, write_image
from ldm_dream.errors import UserError, shown
from ldm_dream.upscaling.engine import Options
from ldm_dream.upscaling.planning import Naming, plan_jobs
from ldm_dream.upscaling.sizes import Size
from ldm_dream.upscaling.watch import Callback, Stopped

log = logging.getLogger(__name__)

OFTEN = 0.7  # seconds between two previews, at least
SHARE = 4  # a preview may take this part of the time: one in four
STOPPED = "Stopped."
BROKEN = "Something went wrong in the program; the terminal that it was started in says more."
_TURNS = Turns()  # of pictures, also of those of a run that was stopped


class Model(Protocol):
    """What the page needs of an `Upscaler`."""

    scale: int
    engine: Any  # an Engine, of which calls(options) is asked

    def __call__(
        self, image: Image, scale: float | None, callback: Callback | None, **options: Any
    ) -> Image: ...


@dataclass(frozen=True)
class Wish:
    """What a visitor asked for. model, other: names in the list of models; other=None compares with
    the original alone.
    """

    model: str
    other: str | None = None
    size: Size = Size(4)
    options: Options = Options()
    keep_metadata: bool = True

    @property
    def names(self) -> list[str]:
        """Of the models."""
        return [self.model] if self.other is None else [self.model, self.other]

    def check(self, models: Mapping[str, Model]) -> None:
        """Raises UserError where `models` cannot do it."""
        for name in self.names:
            if name not in models:
                raise AppError(f"There is no model {shown(name)}; choose one of the list.")
            models[name].engine.calls(self.options)


class Running:
    """now: how far it is. ended: None while it runs, then the last sentence ("" where all went well).
    results, failed: those of the session as it was when this run began. wish: one that the models
    can do.
    """

    def __init__(
        self, session: Session, models: Mapping[str, Model], wish: Wish, pictures: list[Path]
    ):
        self.session, self.models, self.wish, self.pictures = session, models, wish, pictures
        self.stop, self.results, self.failed = session.stop, session.results, session.failed
        self.folder = session.new_folder("run")
        self.now = Now()
        self.ended: str | None = None

    def start(self) -> threading.Thread:
        thread = threading.Thread(target=self._run, daemon=True)
        thread.start()
        self.session.threads.append(thread)
        return thread

    def _run(self) -> None:
        try:
            self._enlarge_all()
            self.ended = ""
        except Stopped:
            self.ended = STOPPED
        except UserError as error:
            self.ended = self.session.sentence(error)
        except Exception:
            log.exception("the page could not enlarge a picture")
            self.ended = BROKEN
        finally:
            if self.session.is_over:  # what was written since then
                shutil.rmtree(self.session.folder, ignore_errors=True)

    def _enlarge_all(self) -> None:
        for number, source in enumerate(self.pictures, 1):
            self.now = Now(shown(source.name), number, len(self.pictures), is_waiting=True)
            folder = self.folder / str(number)
            try:
                with _TURNS.turn(self._check):
                    self._check()
                    self.now = replace(self.now, is_waiting=False)
                    result = self._enlarge(source, folder)
                    self._check()
                self.results.append(result)
            except Stopped:
                shutil.rmtree(folder, ignore_errors=True)
                raise
            except (UserError, MemoryError) as error:
                reason = self.session.sentence(error) or "too little memory for it."
                name = "" if self.now.name in reason else f"{self.now.name}: "
                self.failed.append(name + reason)

    def _check(self) -> None:
        if self.stop.is_set():
            raise Stopped(STOPPED)

    def _enlarge(self, source: Path, folder: Path) -> Result:
        picture = read_image(source)
        if not self.wish.keep_metadata:
            picture = replace(picture, metadata=None)
        height, width = picture.pixels.shape[:2]
        high, wide = self.wish.size.of((height, width))
        if high * wide > (most := self.wish.options.max_pixels):
            raise AppError(
                f"the result would be {wide} x {high} pixels, of which {most} are allowed; "
                "choose a smaller size."
            )
        view = write_view(folder / "views" / "0.png", picture)
        views, files, note = [View("Original", view, (width, height))], [], ""
        for name in self.wish.names:
            ending = "_large" + (f"_{_in_a_name(name)}" if self.wish.other else "")
            job = plan_jobs(source, folder, naming=Naming(ending)).jobs[0]
            check_writable(job.target, wide, high, picture.alpha)
            result = self._call(name, picture)
            write_image(job.target, result)
            view = write_view(folder / "views" / f"{len(views)}.png", result)
            views.append(View(name, view, (wide, high)))
            files.append(job.target)
            note = job.note
        return Result(shown(source.name), files, views, (width, height), (wide, high), note)

    def _call(self, name: str, picture: Image) -> Image:
        model, how = self.models[name], self.wish.options
        size = picture.pixels.shape[:2]
        scale = self.wish.size.times(size)
        self.now = replace(
            self.now,
            model=name,
            done=0,
            total=0,
            calls=model.engine.calls(how) * how.runs,
            since=None,
            preview=before_work(picture, self.wish.size.of(size)),
        )
        return model(picture, scale, Telling(self).tell, **vars(how))


class Telling:
    """The callback of one call of a model. Previews cost a call of a decoder, so that they come as
    often as time allows.
    """

    def __init__(self, running: Running):
        self.running = running
        self.began = self.seen = time.monotonic()
        self.cost: float | None = None  # seconds of a preview: first those of the first call

    def tell(self, done: int, total: int, preview: Callable[[], PIL.Image.Image | None]) -> bool:
        """False stops the work."""
        if self.running.stop.is_set():
            return False
        now = self.running.now
        since = self.began if now.since is None else now.since
        self.running.now = replace(now, done=done, total=total, since=since)
        if done and self.cost is None:
            self.cost = time.monotonic() - self.began
        if self.cost is not None and 0 < done < total and self._is_time(self.cost):
            start = time.monotonic()
            with _StoppedBy(self.running.stop):
                picture = preview()
            self.seen = time.monotonic()
            self.cost = self.seen - start
            if picture is not None:
                self.running.now = replace(self.running.now, preview=picture)
        return not self.running.stop.is_set()

    def _is_time(self, cost: float) -> bool:
        return time.monotonic() - self.seen > max(OFTEN, (SHARE - 1) * cost)


class _StoppedBy(TorchFunctionMode):
    """In the body, a call of torch raises Stopped once `stop` is set: a preview may take seconds."""

    def __init__(self, stop: threading.Event):
        super().__init__()
        self.stop = stop

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.stop.is_set():
            raise Stopped(STOPPED)
        return func(*args, **(kwargs or {}))


def _in_a_name(model: str) -> str:
    """The name of a model as a part of a file's name."""
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in model)
