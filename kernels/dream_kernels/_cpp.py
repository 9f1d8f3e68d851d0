"""C++ of this folder, compiled for the processor at hand when it is first needed, as Triton
compiles for the GPU at hand.

Takes a second, once: the library is kept in ~/.cache/dream_kernels (XDG_CACHE_HOME counts), under a
name that changes with source, flags, compiler and processor, and with its digest at its end: one
that was cut short or changed is compiled again, since loading it would end the process. Needs g++
or a compiler like it with OpenMP ($CXX names another). Threads are those of torch: the library
leaves OpenMP's runtime to be found where torch has loaded its own, since two would compete for the
processor.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import secrets
import shlex
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

FLAGS = ("-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fopenmp", "-fPIC")

STALE = 3600  # seconds after which a draft belongs to a process that was killed

# types that the functions take, as they end in their names
NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}

log = logging.getLogger(__name__)


@functools.cache
def library(name: str) -> ctypes.CDLL | None:
    """`name`.cpp as a library; None, with one line in the log that says why, where it cannot be
    compiled or loaded.
    """
    try:
        return ctypes.CDLL(str(built(Path(__file__).with_name(f"{name}.cpp"))))
    # RuntimeError: there is no home
    except (OSError, RuntimeError, subprocess.CalledProcessError) as error:
        reason = error.stderr.strip() if isinstance(error, subprocess.CalledProcessError) else error
        log.warning(
            "%s runs in torch's own, slower operations; it could not be compiled: %s", name, reason
        )
        return None


def call(function: Callable, *arguments: Tensor | int | float) -> None:
    """A C++ function of pointers (a tensor's memory), longs and doubles."""
    function(*(_as_c(argument) for argument in arguments))


def built(source: Path) -> Path:
    """The library of this source, from the cache where it is whole there. Raises OSError,
    RuntimeError, CalledProcessError.
    """
    compiler = shlex.split(os.environ.get("CXX", "g++"))
    version = _run(*compiler, "--version")
    about = "\n".join((source.read_text(), *FLAGS, version, _processor(), "digest at the end"))
    kept = _cache() / f"{source.stem}-{hashlib.sha256(about.encode()).hexdigest()[:20]}.so"
    if not kept.exists():
        _compile(compiler, source, kept)
    elif not _is_whole(kept):
        log.warning("%s: cut short or changed; it is compiled again.", kept)
        _compile(compiler, source, kept)
    return kept


def _as_c(argument: Tensor | int | float) -> ctypes.c_void_p | ctypes.c_long | ctypes.c_double:
    if isinstance(argument, Tensor):
        return ctypes.c_void_p(argument.data_ptr())
    return ctypes.c_double(argument) if isinstance(argument, float) else ctypes.c_long(argument)


def _compile(compiler: list[str], source: Path, kept: Path) -> None:
    """Whole or not at all, also where two processes do this at once."""
    _sweep(kept.parent)
    with tempfile.TemporaryDirectory() as folder:
        compiled, linked = Path(folder, "compiled.o"), Path(folder, "linked.so")
        _run(*compiler, *FLAGS, "-c", str(source), "-o", str(compiled))
        # without -fopenmp: torch's OpenMP, see above
        _run(*compiler, "-shared", str(compiled), "-o", str(linked))
        code = linked.read_bytes()
    draft = kept.with_name(f"draft-{secrets.token_hex(8)}")
    try:
        with draft.open("xb") as file:
            file.write(code + hashlib.sha256(code).digest())  # a loader reads no further than code
            file.flush()
            os.fsync(file.fileno())
        draft.replace(kept)
    finally:
        draft.unlink(missing_ok=True)


def _sweep(folder: Path) -> None:
    for draft in folder.glob("draft-*"):
        try:
            if time.time() - draft.stat().st_mtime > STALE:
                draft.unlink()
        except FileNotFoundError:
            continue  # another process was quicker


def _is_whole(kept: Path) -> bool:
    """Whether it ends in the digest of what stands before."""
    size = hashlib.sha256().digest_size
    content = kept.read_bytes()
    return hashlib.sha256(content[:-size]).digest() == content[-size:]


def _run(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _cache() -> Path:
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dream_kernels"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _processor() -> str:
    """What -march=native depends on: a cache folder may be shared by different machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    names = ("model name", "flags", "Features", "CPU part")
    return "\n".join(sorted({line for line in lines if line.startswith(names)}))
