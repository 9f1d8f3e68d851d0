"""Reads the tensors of a checkpoint file without running anything in it: pickles are opened with
`weights_only=True`, so that one that wants to run code is refused; archives that would grow, before
they are opened.
"""

from __future__ import annotations

import itertools
import logging
import pickletools
import re
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from ldm_dream.errors import CheckpointImportError, some

log = logging.getLogger(__name__)


class _Inert:
    """Stands in for a class that old checkpoints only name, as a key of Lightning's callback state."""


INERT = ("pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",)
# where training codes put a state dict; the running average, with which they sample, goes first
WRAPPERS = (
    *("params_ema", "ema_state_dict", "model_ema", "ema", "params", "state_dict", "model"),
    *("model_state_dict", "netG", "net_g", "generator", "network", "net", "module"),
)
MOST_WRAPPERS = 4  # one in the other
# what DDP, torch.compile and GAN codes put before keys
PREFIXES = r"^(module\.|_orig_mod\.|netG\.|net_g\.)+"
MOST_PICKLE = 2**26  # bytes of a pickle, which holds names and shapes
MOST_ENTRIES = 100_000  # of an archive
HARMLESS = ("torch", "collections", "numpy", "_codecs")  # modules that torch itself allows
SHARED = 4  # how often a file's bytes may stand in its tensors, some of which share them
KNOWN_HEADS = {
    b"<": "a web page or XML",
    b"version https://git-lfs": "a pointer of Git LFS, fetch the file itself with: git lfs pull",
    b"\x1f\x8b": "compressed by gzip, unpack it first",
}


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Tensors of a .safetensors file or a torch pickle (flat, or under one of WRAPPERS), mapped
    rather than read where possible, without PREFIXES before keys. Raises CheckpointImportError.
    """
    if not path.is_file():
        raise CheckpointImportError(f"{path}: no such file.")
    try:
        values = load_file(path) if path.suffix == ".safetensors" else _unpickled(path)
    except CheckpointImportError:
        raise
    except Exception as error:  # torch raises anything from KeyError to OSError on a broken file
        raise CheckpointImportError(f"{path}: {_what_it_is(path, error)}.") from None
    found = _state(values)
    if found is None:
        keys = [str(key) for key in values] if isinstance(values, dict) else []
        holds = f"its keys are {some(keys, 5)}" if keys else f"it is a {type(values).__name__}"
        raise CheckpointImportError(
            f"{path}: holds no state dict, {holds}; expected keys with tensors, flat or under "
            f"{', '.join(WRAPPERS)}."
        )
    where, state = found
    others = [key for key in WRAPPERS if isinstance(values.get(key), dict) and key != where]
    if where and others:
        log.warning(
            "%s: of its models, that under %r is taken (not %s).", path, where, some(others, 5)
        )
    _check_tensors(state, path)
    if path.suffix != ".safetensors" and zipfile.is_zipfile(path):
        _check_bytes(state, path)
    return {re.sub(PREFIXES, "", key): value for key, value in state.items()}


def _unpickled(path: Path) -> Any:
    is_archive = zipfile.is_zipfile(path)
    if is_archive:
        _check_archive(path)
    known = torch.serialization.safe_globals([(_Inert, name) for name in INERT])
    with known, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # about old pickles, which are read or refused
        return torch.load(path, map_location="cpu", weights_only=True, mmap=is_archive)


def _check_archive(path: Path) -> None:
    """torch.save stores its entries as they are: what would grow when unpacked is none of its. The
    checksum of its pickle is looked at here, those of its tensors by `_check_bytes`.
    """
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        names = [entry.filename.rpartition("/")[2] for entry in entries]
    if "constants.pkl" in names:
        raise CheckpointImportError(
            f"{path}: a TorchScript program, not a state dict; save its state_dict() with torch.save."
        )
    unpacked = sum(entry.file_size for entry in entries)
    if (
        len(entries) > MOST_ENTRIES
        or unpacked > path.stat().st_size
        or any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
        or any(
            entry.filename.endswith(".pkl") and entry.file_size > MOST_PICKLE for entry in entries
        )
    ):
        raise CheckpointImportError(
            f"{path}: refused, because it would grow to {unpacked} bytes when unpacked, which no file of torch.save does; "
            "download it again from who published it."
        )
    if _has_checksums(entries):
        with zipfile.ZipFile(path) as archive:
            for entry in entries:
                if entry.filename.endswith(".pkl"):
                    archive.read(entry)  # BadZipFile for other bytes than were written


def _check_bytes(state: Mapping[str, Tensor], path: Path) -> None:
    """What torch loaded from an archive is, byte for byte, an entry of it with its checksum. torch
    looks at no checksum, and reads on behind an entry that is too short.
    """
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    if not _has_checksums(entries):
        return
    written = {(entry.file_size, entry.CRC) for entry in entries}
    storages = {value.untyped_storage().data_ptr(): key for key, value in state.items()}
    for key in storages.values():
        stored = torch.empty(0, dtype=torch.uint8).set_(state[key].untyped_storage()).numpy().data
        if len(stored) and (len(stored), zlib.crc32(stored)) not in written:
            raise CheckpointImportError(
                f"{path}: damaged: {key!r} is not as it was written (its checksum); download it again."
            )


def _has_checksums(entries: list[zipfile.ZipInfo]) -> bool:
    """False after set_crc32_options(False) of torch, which writes zeros."""
    return any(entry.CRC for entry in entries)


def _what_it_is(path: Path, error: Exception) -> str:
    """Of a file that could not be read: a part of a sentence, with what to do."""
    with path.open("rb") as file:
        head = file.read(200)
    for start, name in KNOWN_HEADS.items():
        if head.lstrip().startswith(start):
            return f"{name}, no checkpoint; download it again"
    if code := _asks_for(path):
        return (
            f"refused, because reading it would run code ({code}), and nothing was run; "
            "give a file that holds tensors only, best as safetensors"
        )
    if head.strip() and not _begins_as_one(head):
        return "no file of weights: neither torch nor safetensors; name another file"
    # the unpickler's own words stand between torch's advice to switch its guard off and what to read
    said = str(error).rpartition("WeightsUnpickler error:")[2].partition("Check the documentation")
    reason = " ".join(said[0].split())[:100].rstrip(".")
    return (
        f"truncated, or no checkpoint at all ({type(error).__name__}: {reason}); download it again"
    )


def _begins_as_one(head: bytes) -> bool:
    """Whether a file's first bytes are those of a pickle, an archive, or a header of safetensors (its
    length, then JSON).
    """
    return head.startswith((b"\x80", b"PK")) or head[8:9] == b"{"


def _asks_for(path: Path) -> str | None:
    """The first function or class that a pickle names and torch does not allow; it is only looked
    at.
    """
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                name = next(name for name in archive.namelist() if name.endswith(".pkl"))
                with archive.open(name) as file:
                    data = file.read(MOST_PICKLE)
        else:
            with path.open("rb") as file:
                data = file.read(MOST_PICKLE)
        return next(_strangers(data), None)
    except Exception:  # whatever a broken file does to zipfile and pickletools
        return None


def _strangers(data: bytes) -> Iterator[str]:
    """Names in the pickles that `data` begins with: several stand in a file of old torch."""
    rest, texts = memoryview(data), []
    for _ in range(8):
        end = 0
        for op, value, at in itertools.islice(pickletools.genops(bytes(rest)), 10**6):
            if op.name in ("GLOBAL", "INST"):
                texts = str(value).split(" ")
            elif isinstance(value, str):
                texts = [*texts[-1:], value]
            names = op.name in ("GLOBAL", "INST", "STACK_GLOBAL") and len(texts) == 2
            if (
                names
                and texts[0].partition(".")[0] not in HARMLESS
                and ".".join(texts) not in INERT
            ):
                yield ".".join(texts)
            end = (at or 0) + 1
        rest = rest[end:]


def _state(values: Any, depth: int = MOST_WRAPPERS) -> tuple[str, dict[str, Tensor]] | None:
    """(wrapper that it stands under, or "", state dict) of what a file holds."""
    if not isinstance(values, dict) or not values or not depth:
        return None
    if all(isinstance(key, str) and isinstance(value, Tensor) for key, value in values.items()):
        return "", values
    for wrapper in WRAPPERS:
        if inner := _state(values.get(wrapper), depth - 1):
            return wrapper, inner[1]
    return None


def _check_tensors(state: Mapping[str, Tensor], path: Path) -> None:
    """Plain tensors of real, finite numbers, as many as the file can hold."""
    strange = [
        key
        for key, value in state.items()
        if value.layout != torch.strided
        or value.is_meta
        or value.is_quantized
        or value.is_complex()
    ]
    if strange:
        raise CheckpointImportError(
            f"{path}: {some(strange, 5)} is sparse, quantized, complex or without values; save plain tensors."
        )
    if sum(value.nbytes for value in state.values()) > SHARED * path.stat().st_size:
        raise CheckpointImportError(
            f"{path}: its tensors are far larger than the file; download it again."
        )
    broken = [
        key
        for key, value in state.items()
        if value.is_floating_point() and not value.float().isfinite().all()
    ]
    if broken:
        raise CheckpointImportError(
            f"{path}: {some(broken, 5)} holds NaN or infinity; take another checkpoint of that run."
        )
