"""The work behind the page: pictures of a session, one after the other, in a thread of its own.

The thread notes how far it is in `Running.now`, which the page reads when it likes. It stops within
a second of `session.stop`: the callback of the upscaler is asked between two layers of a network.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import PIL.Image
from torch.overrides import TorchFunctionMode

from ldm_dream.app.sessions import AppError, Result, Session, View
from ldm_dream.app.views import write_view
from ldm_dream.data.images import Image, check_writable, read_image, write_image
from ldm_dream.errors import UserError, shown
from ldm_dream.upscaling.engine import Options
from ldm_dream.upscaling.planning import Naming, plan_jobs
from ldm_dream.upscaling.watch import Callback, Stopped

log = logging.getLogger(__name__)

SIZES = ("times", "width", "height", "megapixels")  # what a number for the size may mean
OFTEN = 0.7  # seconds between two previews, at least
SHARE = 4  # a preview may take this part of the time: one in four
BROKEN = "Something went wrong in the program; the terminal that it was started in says more."


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
    the original alone. size: what the number is, one of SIZES.
    """

    model: str
    other: str | None = None
    size: str = "times"
    number: float | None = 4
    options: Options = Options()
    keep_metadata: bool = True

    def scale(self, width: int, height: int) -> float:
        """Of a picture of this size. Raises AppError."""
        if self.number is None or not math.isfinite(self.number) or self.number <= 0:
            raise AppError(f"The value of the size is {self.number}; give a number above 0.")
        return {
            "times": self.number,
            "width": self.number / width,
            "height": self.number / height,
            "megapixels": math.sqrt(self.number * 1e6 / (width * height)),
        }[self.size]


@dataclass(frozen=True)
class Now:
    """How far the work is. picture of pictures, from 1 on; done of total network calls, of which a
    tile takes `calls`; since: time of its first call, or None.
    """

    name: str = ""
    picture: int = 0
    pictures: int = 0
    model: str = ""
    done: int = 0
    total: int = 0
    calls: int = 1
    since: float | None = None
    preview: PIL.Image.Image | None = None

    def left(self) -> float | None:
        """Seconds that this picture still takes, if it goes on as it did."""
        if self.since is None or self.done < 2:
            return None
        return (time.monotonic() - self.since) / self.done * (self.total - self.done)


@dataclass
class Running:
    """ended: None while it runs, then the last sentence ("" where all went well)."""

    session: Session
    models: dict[str, Any]
    wish: Wish
    pictures: list[Path]
    now: Now = field(default_factory=Now)
    ended: str | None = None

    def start(self) -> threading.Thread:
        thread = threading.Thread(target=self._run, daemon=True)
        thread.start()
        return thread

    def _run(self) -> None:
        try:
            self._enlarge_all()
            self.ended = ""
        except Stopped:
            self.ended = "Stopped."
        except UserError as error:
            self.ended = self._sentence(error)
        except Exception:
            log.exception("the page could not enlarge a picture")
            self.ended = BROKEN

    def _enlarge_all(self) -> None:
        for name in filter(None, (self.wish.model, self.wish.other)):
            self._model(name).engine.calls(self.wish.options)  # what is not possible ends here
        self.wish.scale(1, 1)
        for number, source in enumerate(self.pictures, 1):
            self.now = Now(shown(source.name), number, len(self.pictures))
            try:
                self.session.results.append(self._enlarge(source, number))
            except Stopped:
                raise
            except (UserError, MemoryError) as error:
                reason = self._sentence(error) or "too little memory for it."
                name = "" if self.now.name in reason else f"{self.now.name}: "
                self.session.failed.append(name + reason)

    def _model(self, name: str) -> Any:
        if name not in self.models:
            raise AppError(f"There is no model {shown(name)}; choose one of the list.")
        return self.models[name]

    def _enlarge(self, source: Path, number: int) -> Result:
        folder = self.session.folder
        picture = read_image(source)
        if not self.wish.keep_metadata:
            picture = replace(picture, metadata=None)
        height, width = picture.pixels.shape[:2]
        view = write_view(folder / "views" / f"{number}-0.png", picture)
        views, files, note = [View("Original", view, (width, height))], [], ""
        size = (width, height)
        scale = self.wish.scale(width, height)
        for name in filter(None, (self.wish.model, self.wish.other)):
            ending = "_large" + (f"_{_in_a_name(name)}" if self.wish.other else "")
            job = plan_jobs(source, folder / "out" / str(number), naming=Naming(ending)).jobs[0]
            wide, high = (max(1, round(side * scale)) for side in (width, height))
            check_writable(job.target, wide, high, picture.alpha)
            result = self._call(name, picture, scale)
            write_image(job.target, result)
            view = write_view(folder / "views" / f"{number}-{len(views)}.png", result)
            size = result.pixels.shape[1], result.pixels.shape[0]
            views.append(View(name, view, size))
            files.append(job.target)
            note = job.note
        return Result(shown(source.name), files, views, (width, height), size, note)

    def _call(self, name: str, picture: Image, scale: float) -> Image:
        model, how = self._model(name), self.wish.options
        self.now = replace(
            self.now, model=name, done=0, total=0, calls=model.engine.calls(how), since=None
        )
        return model(picture, scale, Telling(self).tell, **vars(how))

    def _sentence(self, error: BaseException) -> str:
        """Its text, which names files without the folders that they lie in here."""
        text = str(error)
        for path in self.pictures:
            text = text.replace(f"{shown(path.parent)}/", "")
        folders = (p.parent for r in self.session.results for p in r.files)
        for folder in folders:
            text = text.replace(f"{shown(folder)}/", "")
        return shown(text)


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
        if self.running.session.stop.is_set():
            return False
        now = self.running.now
        since = self.began if now.since is None else now.since
        self.running.now = replace(now, done=done, total=total, since=since)
        if done and self.cost is None:
            self.cost = time.monotonic() - self.began
        if self.cost is not None and 0 < done < total and self._is_time(self.cost):
            start = time.monotonic()
            with _StoppedBy(self.running.session):
                picture = preview()
            self.seen = time.monotonic()
            self.cost = self.seen - start
            if picture is not None:
                self.running.now = replace(self.running.now, preview=picture)
        return not self.running.session.stop.is_set()

    def _is_time(self, cost: float) -> bool:
        return time.monotonic() - self.seen > max(OFTEN, (SHARE - 1) * cost)


class _StoppedBy(TorchFunctionMode):
    """In the body, a call of torch raises Stopped once the session is stopped: a preview may take
    seconds.
    """

    def __init__(self, session: Session):
        super().__init__()
        self.session = session

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.session.stop.is_set():
            raise Stopped("stopped while a preview was made.")
        return func(*args, **(kwargs or {}))


def _in_a_name(model: str) -> str:
    """The name of a model as a part of a file's name."""
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in model)
