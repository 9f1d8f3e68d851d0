"""What the server holds of its visitors: one limit for all their uploads, and a sweep of what no open
browser tab owns.

gradio writes an upload to the top of `folder` while it comes, then to a folder named by its digest;
a session moves what it takes to its own (`sessions.py`).
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ldm_dream.app.guard import App, Message, Receive, refuse
from ldm_dream.app.sessions import SESSIONS, Sessions

log = logging.getLogger(__name__)

EVERY, OLD = 300.0, 3600.0  # seconds: between two sweeps; that what nobody owns stays
_UPLOAD = re.compile(r"(/gradio_api)?/upload/?")
_TAB = re.compile(r"(/gradio_api)?/heartbeat/(?P<key>[^/]+)")  # open as long as a browser tab is


class Uploads:
    """ASGI middleware. folder: of all files of visitors; most: bytes of all uploads together. It tells
    `sessions` which browser tabs are open.
    """

    def __init__(self, app: App, folder: Path, sessions: Sessions, most: int):
        self.app, self.folder, self.sessions, self.most = app, folder, sessions, most
        self.coming = 0  # bytes of the uploads that are on their way

    async def __call__(self, scope: Message, receive: Receive, send: App) -> None:
        path = scope.get("path", "")
        if tab := _TAB.fullmatch(path):
            with self.sessions.tab(tab["key"]):
                await self.app(scope, receive, send)
        elif _UPLOAD.fullmatch(path):
            await self._upload(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    async def _upload(self, scope: Message, receive: Receive, send: App) -> None:
        length = dict(scope["headers"]).get(b"content-length", b"")
        if not length.isdigit():
            return await refuse(send, 411, "An upload has to say its length.")
        self.coming += int(length)
        try:
            if self.coming + await asyncio.to_thread(held, self.folder) <= self.most:
                return await self.app(scope, receive, send)
        finally:
            self.coming -= int(length)
        while (await receive()).get("more_body"):  # a browser that still sends hears of no answer
            pass
        await refuse(
            send,
            413,
            f"All pictures on this page together may have {self.most // 2**20} MB; "
            "give fewer, close other tabs of it, or load the page anew.",
        )


def held(folder: Path) -> int:
    """Bytes of all uploads that have come, of sessions or not."""
    total = 0
    for place, folders, names in os.walk(folder):  # which forgives that a folder is deleted
        inside = Path(place).relative_to(folder).parts
        if len(inside) == 2 and inside[0] == SESSIONS:
            folders[:] = [name for name in folders if name.startswith("in-")]
        for name in names if inside else ():  # those on top are still on their way
            with suppress(FileNotFoundError):  # a session takes it at this moment
                total += os.stat(os.path.join(place, name)).st_size
    return total


@contextmanager
def sweeping(folder: Path, sessions: Sessions) -> Iterator[None]:
    """During the body, what nobody owns is deleted from time to time."""
    over = threading.Event()

    def work() -> None:
        while not over.wait(EVERY):
            try:
                sweep(folder, sessions)
            except Exception:  # the next one may do better
                log.exception("what nobody owns could not be deleted")

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()


def sweep(folder: Path, sessions: Sessions, age: float = OLD) -> None:
    """Deletes what no session took in `age` seconds, and sessions of no open tab that were not used
    for so long.
    """
    sessions.end_unused(age)
    until = time.time() - age
    for path in [*folder.iterdir(), *sessions.strangers()]:
        if path == sessions.root:
            continue
        with suppress(FileNotFoundError):
            if path.lstat().st_mtime > until:
                continue
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()
