"""Digests of the files of a folder, in `SHA256SUMS` beside them, as `sha256sum -c` reads them."""

from __future__ import annotations

import hashlib
from pathlib import Path

SUMS = "SHA256SUMS"


def digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            found.update(block)
    return found.hexdigest()


def read_sums(folder: Path) -> dict[str, str]:
    """File name -> digest, of a folder written by `whole_folder`; empty where it has none."""
    try:
        lines = (folder / SUMS).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return {}
    return {name: number for number, _, name in (line.partition("  ") for line in lines)}


def damaged(path: Path) -> str | None:
    """What is wrong with a file of a folder with digests, in a few words; None for a whole one and
    for a folder without digests.
    """
    if not (path.parent / SUMS).is_file():
        return None
    expected = read_sums(path.parent).get(path.name)
    if expected is None:
        return f"{SUMS} beside it does not list it"
    if digest(path) != expected:
        return f"its bytes are not those that were written ({SUMS} beside it)"
    return None
