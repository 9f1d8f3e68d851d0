"""The page itself: what a visitor sees, and what happens when it is touched."""

# annotations are read by gradio, so they are no strings here
import asyncio
import logging
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldm_dream.app.enlarging import BROKEN, STOPPED, Running, Wish
from ldm_dream.app.errors import AppError
from ldm_dream.app.sessions import Session, Sessions, left_out
from ldm_dream.app.told import Result
from ldm_dream.app.views import WAITING, comparison, progress, sentences, summary
from ldm_dream.data.formats import SUFFIXES
from ldm_dream.errors import UserError
from ldm_dream.upscaling.engine import Options
from ldm_dream.upscaling.sizes import Size

log = logging.getLogger(__name__)

TITLE = "Make pictures larger"
TICK = 0.2  # seconds between two looks at the work
GRACE = 0.5  # seconds that a work that was stopped has to end, before the page goes on without it
LISTED = 6  # pictures that the last sentences name one by one
HERE = Path(__file__).parent
QUICK: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
USUAL = {"width": 3840, "height": 2160, "megapixels": 24}  # first values of these sizes
# a file of gradio -> the browser's folder of downloads
SAVE = """(file) => {
  if (!file) return;
  const link = document.createElement("a");
  Object.assign(link, { href: file.url, download: file.orig_name });
  link.click();
}"""
SIZE_NAMES = [
    ("Times larger", "scale"),
    ("Width in pixels", "width"),
    ("Height in pixels", "height"),
    ("Megapixels", "megapixels"),
]


@dataclass(frozen=True)
class Form:
    """The fields; components of gradio."""

    files: Any
    folder: Any
    size: Any
    number: Any
    model: Any
    other: Any
    steps: Any
    seed: Any
    metadata: Any
    start: Any
    stop: Any


@dataclass(frozen=True)
class Desk:
    """What shows the work and the results; components of gradio."""

    status: Any
    chooser: Any
    comparing: Any
    download: Any
    download_other: Any
    everything: Any
    packed: Any  # not seen: the ZIP on its way to the browser


def build_page(models: dict[str, Any], sessions: Sessions) -> Any:
    """models: name -> an `Upscaler`, the first one chosen. -> gradio.Blocks."""
    import gradio as gr

    usual = USUAL | {"scale": next(iter(models.values())).scale}
    with gr.Blocks(title=TITLE, analytics_enabled=False) as page:
        gr.Markdown(f"# {TITLE}")
        with gr.Row():
            with gr.Column(scale=1, min_width=300):
                form = _form(list(models), usual)
            with gr.Column(scale=2, min_width=320):
                desk = _desk()
        _connect(form, desk, models, sessions)

        def leave(request: gr.Request) -> None:
            sessions.end(request.session_hash or "")

        page.unload(leave)
        form.size.input(lambda size: usual.get(size), form.size, form.number, **QUICK)
    _refuse_quietly(page)
    page.queue(default_concurrency_limit=None, api_open=False)  # `Turns` is the queue
    return page


def _refuse_quietly(page: Any) -> None:
    """What only a program sends, such as too few values, is no fault of ours to print."""
    import gradio as gr

    own = page.preprocess_data

    async def preprocess(*args: Any, **options: Any) -> Any:
        try:
            return await own(*args, **options)
        except Exception as error:
            log.debug("refused", exc_info=error)
            raise gr.Error("The page never asks for this.", print_exception=False) from None

    page.preprocess_data = preprocess


def _form(names: list[str], usual: Mapping[str, float]) -> Form:
    import gradio as gr

    files = gr.File(
        label="Pictures",
        file_count="multiple",
        file_types=[*SUFFIXES],
        height=180,
        elem_id="pictures",
    )
    folder = gr.UploadButton("Add a folder", file_count="directory", size="sm", elem_id="folder")
    with gr.Row():
        size = gr.Dropdown(SIZE_NAMES, value="scale", label="Size", scale=2, min_width=170)
        number = gr.Number(usual["scale"], label="Value", min_width=90, elem_id="value")
    model = gr.Dropdown(names, value=names[0], label="Model", elem_id="model")
    other = gr.Dropdown(
        [("only with the original", ""), *names],
        value="",
        label="Compare",
        visible=len(names) > 1,
        elem_id="other",
    )
    with gr.Accordion("More", open=False):
        steps = gr.Number(None, label="Steps", precision=0, placeholder="the model's")
        seed = gr.Number(None, label="Seed", precision=0, placeholder="0")
        metadata = gr.Checkbox(
            True,
            label="Keep what the picture says of itself",
            info="EXIF (also the place, by GPS), XMP, IPTC, texts, resolution.",
        )
    start = gr.Button("Make larger", variant="primary", elem_id="start")
    stop = gr.Button("Stop", variant="stop", visible=False, elem_id="stop")
    return Form(files, folder, size, number, model, other, steps, seed, metadata, start, stop)


def _desk() -> Desk:
    import gradio as gr

    status = gr.HTML("", elem_id="status")
    with gr.Row():
        download = gr.DownloadButton("Download", visible=False, elem_id="download")
        download_other = gr.DownloadButton("Download", visible=False, elem_id="download-other")
        everything = gr.Button("Download all as ZIP", visible=False, elem_id="everything")
        packed = gr.DownloadButton(visible="hidden")
    chooser = gr.Dropdown([], label="Picture", visible=False, elem_id="chooser")
    comparing = gr.HTML(
        {},
        html_template=_text("comparing.html"),
        css_template=_text("comparing.css"),
        js_on_load=_text("comparing.js"),
        elem_id="comparing",
    )
    return Desk(status, chooser, comparing, download, download_other, everything, packed)


def _text(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")


def _connect(form: Form, desk: Desk, models: dict[str, Any], sessions: Sessions) -> None:
    import gradio as gr

    def session_of(request: gr.Request) -> Session:
        if not request.session_hash:
            raise gr.Error("Only the page itself may ask for this.", print_exception=False)
        return sessions.of(request.session_hash)

    def take(uploads: list[str] | None, request: gr.Request) -> dict[Any, Any]:
        session = session_of(request)
        try:
            pictures, others = session.take(uploads or []), left_out(uploads or [])
        except Exception as error:
            return {desk.status: sentences([_told(session, error)], True)}
        there = {form.files: [str(path) for path in pictures]}
        if session.is_at_work and not others:  # whose progress is shown
            return there
        return there | {desk.status: sentences([others])}

    def add(uploads: list[str], there: list[str] | None, request: gr.Request) -> dict[Any, Any]:
        return take([*(there or []), *sorted(uploads, key=lambda path: Path(path).name)], request)

    async def work(values: dict[Any, Any], request: gr.Request) -> AsyncIterator[dict[Any, Any]]:
        session = session_of(request)
        try:
            wish = _wish(form, values)
            wish.check(models)
            uploads = values[form.files] or []
            pictures = session.take(uploads)
            left_out(uploads)
        except Exception as error:  # results of the run before stay
            yield {desk.status: sentences([_told(session, error)], True)}
            return
        status = ""
        try:
            session.begin(pictures)
            yield _begun(form, desk)
            running = Running(session, models, wish, pictures)
            async for change in _watch(running, desk):
                yield change
            ended = STOPPED if running.ended is None else running.ended
            last = sentences([ended, *running.failed], True)
            status = sentences(_done(running)) + last
        except Exception as error:
            status = sentences([_told(session, error)], True)
        yield {
            desk.status: status,
            desk.everything: gr.update(visible=len(session.files) > 1),
            form.start: gr.update(visible=True),
            form.stop: gr.update(visible=False),
        }

    def stop(request: gr.Request) -> Any:
        session_of(request).stop.set()
        return gr.update(value="Stopping", interactive=False)

    def choose(number: int | None, request: gr.Request) -> dict[Any, Any]:
        session = session_of(request)
        results = session.results
        if number is None or not 0 <= number < len(results):
            return {}
        session.has_chosen = True
        return _result(desk, results[number])

    def pack(request: gr.Request) -> dict[Any, Any]:
        session = session_of(request)
        try:
            return {desk.packed: str(session.pack())}
        except Exception as error:
            return {desk.packed: None, desk.status: sentences([_told(session, error)], True)}

    shown = [desk.comparing, desk.download, desk.download_other]
    outputs = [desk.status, desk.chooser, *shown, desk.everything, form.start, form.stop]
    form.files.upload(take, form.files, [form.files, desk.status], **QUICK)
    form.folder.upload(add, [form.folder, form.files], [form.files, desk.status], **QUICK)
    form.stop.click(stop, None, form.stop, **QUICK)
    desk.chooser.input(choose, desk.chooser, shown, **QUICK)
    fields = {form.files, form.size, form.number, form.model, form.other}
    fields |= {form.steps, form.seed, form.metadata}
    form.start.click(work, fields, outputs, show_progress="hidden", api_visibility="private")
    packing = desk.everything.click(pack, None, [desk.packed, desk.status], **QUICK)
    packing.then(None, desk.packed, None, js=SAVE, **QUICK)


def _told(session: Session, error: Exception) -> str:
    if isinstance(error, UserError):
        return session.sentence(error)
    log.error("the page could not do what it was asked for", exc_info=error)
    return BROKEN


def _wish(form: Form, values: dict[Any, Any]) -> Wish:
    """Raises AppError, UpscaleError."""
    number, other = values[form.number], values[form.other] or None
    if number is None:
        raise AppError("The value of the size is empty; give a number above 0.")
    if number == int(number):  # a whole number of pixels
        number = int(number)
    return Wish(
        model=values[form.model],
        other=None if other == values[form.model] else other,
        size=Size(**{values[form.size]: number}),
        options=Options(steps=values[form.steps], seed=values[form.seed]),
        keep_metadata=bool(values[form.metadata]),
    )


def _begun(form: Form, desk: Desk) -> dict[Any, Any]:
    import gradio as gr

    hidden = (desk.chooser, desk.download, desk.download_other, desk.everything, form.start)
    return {
        desk.status: sentences([WAITING]),
        desk.comparing: gr.update(value={}),
        **dict.fromkeys(hidden, gr.update(visible=False)),
        form.stop: gr.update(visible=True, value="Stop", interactive=True),
    }


async def _watch(running: Running, desk: Desk) -> AsyncIterator[dict[Any, Any]]:
    """What changes on the page while the work is on its way, or waits. No thread waits here, so that
    any number of visitors may.
    """
    seen, results, until = None, 0, float("inf")
    thread = running.start()
    try:
        while thread.is_alive() and time.monotonic() < until:
            await asyncio.sleep(TICK)
            change: dict[Any, Any] = {}
            if running.now is not seen and running.ended is None:
                seen = running.now
                change[desk.status] = progress(seen)
            if len(running.results) > results:
                results = len(running.results)
                change |= _results(running, desk)
            if change:
                yield change
            if running.stop.is_set():
                until = min(until, time.monotonic() + GRACE)
        if len(running.results) > results:
            yield _results(running, desk)
    finally:  # also where the visitor has gone
        running.stop.set()


def _results(running: Running, desk: Desk) -> dict[Any, Any]:
    """What there is to look at; the newest one is shown unless the visitor has chosen another."""
    import gradio as gr

    results = [*running.results]
    names = [(result.name, number) for number, result in enumerate(results)]
    chooser: dict[str, Any] = {"choices": names, "visible": len(names) > 1}
    if running.session.has_chosen:
        return {desk.chooser: gr.update(**chooser)}
    chooser["value"] = len(names) - 1
    return {desk.chooser: gr.update(**chooser), **_result(desk, results[-1])}


def _result(desk: Desk, result: Result) -> dict[Any, Any]:
    """The pictures over each other, and a button for each file."""
    import gradio as gr

    buttons = dict.fromkeys((desk.download, desk.download_other), gr.update(visible=False))
    for button, path in zip(buttons, result.files):
        buttons[button] = gr.update(value=str(path), label=f"Download {path.name}", visible=True)
    return {desk.comparing: gr.update(value=comparison(result)), **buttons}


def _done(running: Running) -> list[str]:
    if len(running.results) <= LISTED:
        return [summary(result) for result in running.results]
    return [f"{len(running.results)} of {len(running.pictures)} pictures are made larger."]
