"""What stands between the network and gradio: the page loads nothing from elsewhere, the server
fetches nothing for a visitor, and pages of other sites can have it do nothing.

gradio's page names pictures of other sites for search engines, and its server can fetch an address
that it is asked for. Both are taken out here, and a policy lets the browser speak with nobody else.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

Message = MutableMapping[str, Any]
App = Callable[..., Awaitable[None]]
Receive = Callable[[], Awaitable[Message]]

# gradio builds its templates in the browser, by inline scripts and new Function
POLICY = "; ".join(
    [
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval'",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "font-src 'self' data:",
        "object-src 'none'",
        "base-uri 'self'",
        "form-action 'self'",
        "frame-ancestors 'none'",
    ]
)
HEADERS = [
    (b"content-security-policy", POLICY.encode()),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
]
# paths by which gradio fetches or keeps something for a visitor, or tells of other visitors
CLOSED = re.compile(
    r"(/gradio_api)?/(file=\s*https?:|proxy=|stream/|monitoring|run-history|workflow|deep_link)",
    re.I,
)
# what gradio tells programs, which this page is not for
ABSENT = re.compile(r"(/gradio_api)?/openapi\.json", re.I)
# what the page sends; gradio takes more, such as recordings, which it would keep for ever
SENDING = re.compile(r"/gradio_api/(upload|queue/join|run/predict|cancel|reset)")
READING = ("GET", "HEAD", "OPTIONS")
# names of other sites in a page: for search engines, and of an example for programs
_OTHERS = re.compile(
    rb"<meta\b[^>]*(?:og|twitter):[^>]*>|https://github\.com/gradio-app/[\w./-]*", re.S
)


class Guard:
    """ASGI middleware."""

    def __init__(self, app: App):
        self.app = app

    async def __call__(self, scope: Message, receive: Receive, send: App) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        if ABSENT.match(scope["path"]):
            return await refuse(send, 404)
        if CLOSED.match(scope["path"]) or not _is_of_the_page(scope):
            return await refuse(send, 403)
        answer = _Answer(send)
        await self.app(scope, receive, answer.send)


async def refuse(send: App, status: int, why: str = "") -> None:
    """why: a sentence that the page shows."""
    headers = [(b"content-type", b"text/plain; charset=utf-8")]
    await send({"type": "http.response.start", "status": status, "headers": [*headers, *HEADERS]})
    await send({"type": "http.response.body", "body": why.encode()})


def _is_of_the_page(scope: Message) -> bool:
    """False for what the page never sends, and where a browser says that the page of another site asks
    for more than to read. A program that is no browser says nothing of it.
    """
    if scope["method"] in READING:
        return True
    if not SENDING.fullmatch(scope["path"]):
        return False
    headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
    if headers.get(b"sec-fetch-site", "none") not in ("same-origin", "none"):
        return False
    origin = headers.get(b"origin")
    return origin is None or urlsplit(origin).netloc == headers.get(b"host")


class _Answer:
    """One answer on its way: every one gets the headers, and a page loses its names of other sites."""

    def __init__(self, send: App):
        self._send = send
        self._held: Message | None = None  # the start of a page, until its body is known
        self._body = b""

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message["headers"], *HEADERS]
            kinds = [value for name, value in message["headers"] if name.lower() == b"content-type"]
            if any(kind.startswith(b"text/html") for kind in kinds):
                self._held = message
                return
        elif self._held is not None:
            self._body += message.get("body", b"")
            if message.get("more_body"):
                return
            body = _OTHERS.sub(b"", self._body)
            kept = [(n, v) for n, v in self._held["headers"] if n.lower() != b"content-length"]
            self._held["headers"] = [*kept, (b"content-length", str(len(body)).encode())]
            await self._send(self._held)
            self._held, message = None, {"type": "http.response.body", "body": body}
        await self._send(message)
