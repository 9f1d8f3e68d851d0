"""Where the page is and what it may hold; known without torch and gradio."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from importlib.util import find_spec
from ipaddress import ip_address

from ldm_dream.app.errors import AppError

MEGABYTE = 2**20  # as gradio counts them
HELD = 8000  # megabytes, where nothing is said and no file may be larger


@dataclass(frozen=True)
class Place:
    """Where the page is. port 0: any that is free. Megabytes at most: upload: of a file; held: of all
    uploads that are there at a time, by default HELD or one file. Raises AppError.
    """

    host: str = "127.0.0.1"
    port: int = 7860
    upload: int = 200
    held: int | None = None
    opens_browser: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise AppError(f"--port {self.port} is not possible; give one from 0 to 65535.")
        if self.upload < 1:
            raise AppError(f"--max-upload {self.upload} is not possible; give megabytes from 1.")
        if self.held is not None and self.held < self.upload:
            raise AppError(
                f"--max-held {self.held} is less than one file may have; give at least {self.upload}, "
                "or a smaller --max-upload."
            )

    @property
    def most(self) -> int:
        """Bytes of all uploads that are there at a time."""
        held = max(HELD, self.upload) if self.held is None else self.held
        return held * MEGABYTE

    @property
    def is_private(self) -> bool:
        """Whether only this machine reaches it."""
        try:
            return self.host == "localhost" or ip_address(self.host).is_loopback
        except ValueError:
            return False


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


def need_gradio() -> None:
    """Raises AppError where it is not installed. Does not load it."""
    if find_spec("gradio") is None:
        raise AppError("the page needs the package gradio: pip install 'ldm_dream[app]'.")
