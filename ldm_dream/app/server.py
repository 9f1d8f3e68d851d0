"""Starts the page and ends it: the models, a folder that is deleted, a server on one address."""

from __future__ import annotations

import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ldm_dream.app.guard import Guard
from ldm_dream.app.names import shown_names
from ldm_dream.app.page import HERE, build_page
from ldm_dream.app.place import MEGABYTE, Place, free_port
from ldm_dream.app.sessions import SESSIONS, Sessions
from ldm_dream.app.uploads import Uploads, sweeping
from ldm_dream.processes import is_known_gone, this_process
from ldm_dream.upscaling.upscaler import Upscaler

FILES = "ldm-dream-"  # begins the name of a folder with the files of visitors, who see that name
OWNER = "owner"  # in it: which process it belongs to, which is nobody else's matter
LOOPBACK = ("127.0.0.1", "localhost", "[::1]", "::1")


def load_models(names: list[str], device: str, dtype: str) -> dict[str, Upscaler]:
    """Name as it is shown -> the model. Raises what `shown_names` and `Upscaler.from_pretrained` do."""
    return {
        label: Upscaler.from_pretrained(name, device, dtype)
        for label, name in zip(shown_names(names), names)
    }


@contextmanager
def serving(models: dict[str, Any], place: Place) -> Iterator[str]:
    """The page is there during the body; -> its address. Afterwards every file of every visitor is
    deleted. Raises AppError.
    """
    port = free_port(place)
    _remove_stale()
    with tempfile.TemporaryDirectory(prefix=FILES) as name:
        (Path(name) / OWNER).write_text(this_process(), encoding="utf-8")
        folder = Path(name).resolve() / "served"
        folder.mkdir()
        # gradio reads these when a page is built: where uploads go, and what else would be served
        given = {
            "GRADIO_TEMP_DIR": str(folder),
            "GRADIO_ALLOWED_PATHS": "",
            "GRADIO_RUN_HISTORY": "0",
        }
        sessions = Sessions(folder / SESSIONS)
        with _environment(given), sweeping(folder, sessions):
            page = build_page(models, sessions)
            _, url, _ = page.launch(
                server_name=place.host,
                server_port=port,
                inbrowser=place.opens_browser,
                max_file_size=place.upload * MEGABYTE,
                app_kwargs={"middleware": _middleware(place, folder, sessions)},
                theme=_theme(),
                css_paths=HERE / "page.css",
                js=(HERE / "dropping.js").read_text(encoding="utf-8"),
                footer_links=[],
                share=False,
                ssr_mode=False,
                mcp_server=False,
                pwa=False,
                enable_monitoring=False,
                prevent_thread_lock=True,
                quiet=True,
            )
            try:
                yield url
            finally:
                sessions.close()
                page.server.force_exit = True  # else it waits for browsers that listen
                with _saying_less():
                    page.close(verbose=False)


def _remove_stale() -> None:
    """What servers left that were killed."""
    for owner in Path(tempfile.gettempdir()).glob(f"{FILES}*/{OWNER}"):
        with suppress(OSError, ValueError):  # of another user, or no text
            if not owner.is_file():
                continue
            found = re.fullmatch(r"[0-9a-f]+-\d+", owner.read_text(encoding="utf-8"))
            if found and is_known_gone(found[0]):
                shutil.rmtree(owner.parent, ignore_errors=True)


def _theme() -> Any:
    """With the system's fonts, so that none is fetched."""
    from gradio.themes import Default, Font

    fonts = [Font(name) for name in ("system-ui", "sans-serif")]
    mono = [Font(name) for name in ("ui-monospace", "monospace")]
    return Default(primary_hue="blue", font=fonts, font_mono=mono)


def _middleware(place: Place, folder: Path, sessions: Sessions) -> list[Any]:
    """A page of this machine alone answers to its own names alone: another site cannot have its name
    lead here.
    """
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    hosts = list({*LOOPBACK, place.host}) if place.is_private else ["*"]
    return [
        Middleware(TrustedHostMiddleware, allowed_hosts=hosts),
        Middleware(Guard),
        Middleware(Uploads, folder=folder, sessions=sessions, most=place.most),
    ]


@contextmanager
def _saying_less() -> Iterator[None]:
    """In the body, the server does not tell of connections that are cut off."""
    log = logging.getLogger("uvicorn.error")
    before = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(before)


@contextmanager
def _environment(given: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in given}
    os.environ.update(given)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
