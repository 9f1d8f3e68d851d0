"""C++ of this folder, compiled for the processor at hand when it is first needed, as Triton
compiles for the GPU at hand.

Takes a second, once: the library is kept in ~/.cache/dream_kernels (XDG_CACHE_HOME counts), under a
name that changes with source, flags, compiler and processor. Needs g++ or a compiler like it with
OpenMP ($CXX names another). Threads are those of torch: the library leaves OpenMP's runtime to be
found where torch has loaded its own, since two would compete for the processor.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shlex
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

FLAGS = ("-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fopenmp", "-fPIC")

# types that the functions take, as they end in their names
NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}

log = logging.getLogger(__name__)


@functools.cache
def library(name: str) -> ctypes.CDLL | None:
    """`name`.cpp as a library; None, with one line in the log that says why, where it cannot be
    compiled or loaded.
    """
    source = Path(__file__).with_name(f"{name}.cpp")
    compiler = shlex.split(os.environ.get("CXX", "g++"))
    try:
        version = _run(*compiler, "--version")
        about = "\n".join((source.read_text(), *FLAGS, version, _processor()))
        kept = _cache() / f"{name}-{hashlib.sha256(about.encode()).hexdigest()[:20]}.so"
        if not kept.exists():
            _compile(compiler, source, kept)
        return ctypes.CDLL(str(kept))
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


def _as_c(argument: Tensor | int | float) -> ctypes.c_void_p | ctypes.c_long | ctypes.c_double:
    if isinstance(argument, Tensor):
        return ctypes.c_void_p(argument.data_ptr())
    return ctypes.c_double(argument) if isinstance(argument, float) else ctypes.c_long(argument)


def _compile(compiler: list[str], source: Path, kept: Path) -> None:
    with tempfile.TemporaryDirectory(dir=kept.parent) as folder:
        compiled, linked = Path(folder, "compiled.o"), Path(folder, "linked.so")
        _run(*compiler, *FLAGS, "-c", str(source), "-o", str(compiled))
        # without -fopenmp: torch's OpenMP, see above
        _run(*compiler, "-shared", str(compiled), "-o", str(linked))
        linked.replace(kept)  # whole or not at all, also where two processes do this at once


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
