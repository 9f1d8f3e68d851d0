"""Libraries in the cache of compiled C++: whole, or compiled again."""

import ctypes
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dream_kernels import _cpp
from kernel_rules import needs_cpp


@pytest.fixture
def source(tmp_path, monkeypatch) -> Path:
    """A small source, and an empty cache beside it."""
    needs_cpp("dropout_cpu")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "twice.cpp"
    path.write_text('extern "C" long twice(long x) { return 2 * x; }\n')
    return path


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize("harm", [cut, flipped, lambda content: b""], ids=["cut", "flip", "empty"])
def test_a_damaged_library_is_compiled_again(source, caplog, harm):
    """One that is cut short ends the process with SIGBUS when it is loaded."""
    kept = _cpp.built(source)
    whole = kept.read_bytes()
    kept.write_bytes(harm(whole))
    assert _cpp.built(source) == kept and _cpp._is_whole(kept)
    assert "cut short or changed; it is compiled again" in caplog.text
    assert ctypes.CDLL(str(kept)).twice(21) == 42


def test_a_whole_library_is_kept(source, monkeypatch):
    kept = _cpp.built(source)
    monkeypatch.setattr(_cpp, "_compile", lambda *words: pytest.fail("compiled again"))
    assert _cpp.built(source) == kept


def test_two_that_build_at_once_both_get_a_whole_one(source):
    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(_cpp.built, [source, source])
    assert one == other and _cpp._is_whole(one)
    assert [path.name for path in one.parent.iterdir()] == [one.name]


def test_drafts_of_killed_processes_are_removed(source):
    kept = _cpp.built(source)
    old, new = kept.with_name("draft-old"), kept.with_name("draft-new")
    for path in (old, new):
        path.touch()
    os.utime(old, times=(time.time() - 2 * _cpp.STALE,) * 2)
    kept.unlink()
    _cpp.built(source)
    assert not old.exists() and new.exists()
