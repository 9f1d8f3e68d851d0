"""Starts the page and ends it: the models, a folder that is deleted, a server on one address."""

from __future__ import annotations

import os
import re
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from ldm_dream.app.guard import Guard
from ldm_dream.app.page import HERE, build_page
from ldm_dream.app.sessions import AppError, Sessions
from ldm_dream.upscaling.upscaler import Upscaler
from ldm_dream.writing import is_known_gone, this_process

MEGABYTE = 2**20  # as gradio counts them
_OURS = re.compile(r"ldm-dream-(?P<process>[0-9a-f]+-\d+)-\w+")  # folders of visitors' files
LOOPBACK = ("127.0.0.1", "localhost", "[::1]", "::1")


@dataclass(frozen=True)
class Place:
    """Where the page is. port 0: any that is free. upload: megabytes of a file, at most. Raises
    AppError.
    """

    host: str = "127.0.0.1"
    port: int = 7860
    upload: int = 200
    opens_browser: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise AppError(f"--port {self.port} is not possible; give one from 0 to 65535.")
        if self.upload < 1:
            raise AppError(f"--max-upload {self.upload} is not possible; give megabytes from 1.")

    @property
    def is_private(self) -> bool:
        """Whether only this machine reaches it."""
        try:
            return self.host == "localhost" or ip_address(self.host).is_loopback
        except ValueError:
            return False


def need_gradio() -> None:
    """Raises AppError where it is not installed."""
    try:
        import gradio  # noqa: F401
    except ImportError:
        raise AppError("the page needs the package gradio: pip install 'ldm_dream[app]'.") from None


def load_models(names: list[str], device: str, dtype: str) -> dict[str, Upscaler]:
    """Name as it is shown, which says no folder of this machine -> the model. Raises ModelError and
    what else `Upscaler.from_pretrained` does.
    """
    shown = [Path(name).name if Path(name).exists() else name for name in names]
    if twice := [name for name in shown if shown.count(name) > 1]:
        raise AppError(f"two models are named {twice[0]}; rename the folder of one of them.")
    return {
        label: Upscaler.from_pretrained(name, device, dtype) for label, name in zip(shown, names)
    }


@contextmanager
def serving(models: dict[str, Any], place: Place) -> Iterator[str]:
    """The page is there during the body; -> its address. Afterwards every file of every visitor is
    deleted. Raises AppError.
    """
    port = free_port(place)
    _remove_stale()
    with tempfile.TemporaryDirectory(prefix=f"ldm-dream-{this_process()}-") as name:
        # gradio reads these when a page is built: where uploads go, and what else would be served
        folder = str(Path(name).resolve())
        given = {"GRADIO_TEMP_DIR": folder, "GRADIO_ALLOWED_PATHS": "", "GRADIO_RUN_HISTORY": "0"}
        with _environment(given):
            sessions = Sessions(Path(folder) / "sessions")
            page = build_page(models, sessions)
            _, url, _ = page.launch(
                server_name=place.host,
                server_port=port,
                inbrowser=place.opens_browser,
                max_file_size=place.upload * MEGABYTE,
                app_kwargs={"middleware": _middleware(place)},
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
                page.close(verbose=False)


def _remove_stale() -> None:
    """What servers left that were killed."""
    for folder in Path(tempfile.gettempdir()).iterdir():
        found = _OURS.fullmatch(folder.name)
        if found and is_known_gone(found["process"]):
            shutil.rmtree(folder, ignore_errors=True)


def _theme() -> Any:
    """With the system's fonts, so that none is fetched."""
    from gradio.themes import Default, Font

    fonts = [Font(name) for name in ("system-ui", "sans-serif")]
    mono = [Font(name) for name in ("ui-monospace", "monospace")]
    return Default(primary_hue="blue", font=fonts, font_mono=mono)


def _middleware(place: Place) -> list[Any]:
    """A page of this machine alone answers to its own names alone: another site cannot have its name
    lead here.
    """
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    hosts = list({*LOOPBACK, place.host}) if place.is_private else ["*"]
    return [Middleware(TrustedHostMiddleware, allowed_hosts=hosts), Middleware(Guard)]


def free_port(place: Place) -> int:
    """The port, or any that is free; raises AppError where it cannot be used."""
    family = socket.AF_INET6 if ":" in place.host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((place.host, place.port))
        except OSError as error:
            raise AppError(
                f"{place.host}:{place.port} cannot be used ({error.strerror}); is the page open "
                "already? Give another --port, or leave --host out."
            ) from None
        return probe.getsockname()[1]


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
