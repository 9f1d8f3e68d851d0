"""Names of processes that several machines and containers tell apart, and which of them are gone."""

from __future__ import annotations

import os
import socket
import zlib
from pathlib import Path

_SPACE, _BOOT = Path("/proc/self/ns/pid"), Path("/proc/sys/kernel/random/boot_id")


def _host() -> str:
    """Machines of one name differ by their boot, containers by the space of their processes."""
    space, boot = _SPACE.exists() and _SPACE.stat().st_ino, _BOOT.exists() and _BOOT.read_text()
    return f"{zlib.crc32(f'{socket.gethostname()} {space} {boot}'.encode()):08x}"


HOST = _host()


def this_process() -> str:
    """A name that other machines and containers do not give."""
    return f"{HOST}-{os.getpid()}"


def is_known_gone(name: str) -> bool:
    """Whether a process that `this_process` named so was of this machine and has ended."""
    host, _, process = name.partition("-")
    return host == HOST and not is_running(int(process))


def is_running(process: int) -> bool:
    """Whether a process of that number lives on this machine, whoever owns it."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
