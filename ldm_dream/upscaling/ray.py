"""Pictures of a folder or an object store, upscaled by Ray Data on all machines that Ray has.

    from ldm_dream.upscaling.ray import Pool, upscale_store
    rows = upscale_store("s3://photos/raw", "s3://photos/x4", Pool(workers=8, gpus=1))
    rows.write_parquet("s3://photos/x4-report")

The rows are made as they are asked for, one a picture; a picture that fails is a row too. A worker
takes a few names at a time, fetches a picture, upscales it and stores the result, the three beside
one another (`folder.py`). Where it is lost, Ray starts another one with the same names, which leaves
out what is stored. Needs the extra `bulk`.
"""

from __future__ import annotations

import logging
import os
import posixpath
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ldm_dream.data.images import check_quality, kind_left_out
from ldm_dream.errors import UserError, shown
from ldm_dream.processes import this_process
from ldm_dream.upscaling.engine import Options
from ldm_dream.upscaling.folder import Result, Work, upscale_all
from ldm_dream.upscaling.planning import (
    BatchError,
    Job,
    Naming,
    result_names,
    why_png_by_name,
)
from ldm_dream.upscaling.upscaler import Upscaler
from ldm_dream.writing import whole_file

if TYPE_CHECKING:
    import ray.data  # pyright: ignore[reportMissingImports]
    from pyarrow.fs import FileSystem  # pyright: ignore[reportMissingImports]

log = logging.getLogger(__name__)

NAMES = 16  # that a worker takes at a time
WHOLE_ON_CLOSE = ("s3", "gcs", "abfs")  # stores where a file is there only when it is whole


@dataclass(frozen=True)
class Files(Naming):
    """How results are named and written. quality: as for `write_image`."""

    quality: int | None = None
    keep_metadata: bool = True


class MissingRay(UserError, ImportError):
    """The extra is not installed."""


@dataclass(frozen=True)
class Pool:
    """workers: processes, each with a model. cpus, gpus: of each."""

    workers: int = 1
    cpus: int = 1
    gpus: float = 0


def upscale_store(
    source: str,
    target: str,
    pool: Pool = Pool(),
    load: Callable[[], Upscaler] = Upscaler.from_pretrained,
    scale: float | None = None,
    files: Files = Files(),
    **options: Any,
) -> ray.data.Dataset:
    """All pictures below `source` that have no result below `target` -> rows `source`, `target`,
    `status`, `error`, `width`, `height` (of the result, 0 where there is none), `seconds`.

    source, target: a folder that all machines see, or an address that pyarrow knows (s3://, gs://,
    hdfs://; fsspec+NAME:// for the others); neither lies in the other. load: makes the upscaler, in
    each worker. options: as for the Upscaler. Raises BatchError, MissingRay, ImageError (quality),
    UpscaleError or TypeError (options).
    """
    data = _ray_data()
    how = Options(**options)
    how.size(1, scale)  # what is not possible ends here
    _check_apart(source, target)
    names = _named(_pictures(source), files)
    check_quality(files.quality, [Path(result) for _, result in names])
    stored = set(_files(target))
    left = [pair for pair in names if pair[1] not in stored]
    if not names:
        raise BatchError(f"{shown(source)}: holds no picture; name another place.")
    log.info("%d pictures, %d of them done before.", len(names), len(names) - len(left))
    blocks = max(1, min(len(left), max(pool.workers, len(left) // NAMES)))
    rows = data.from_items(
        [{"source": name, "target": result} for name, result in left], override_num_blocks=blocks
    )
    return rows.map_batches(
        Worker,
        fn_constructor_args=(source, target, load, pool, scale, files, how),
        batch_size=NAMES,
        compute=data.ActorPoolStrategy(size=pool.workers),
        num_cpus=pool.cpus,
        num_gpus=pool.gpus,
    )


class Worker:
    """An actor of Ray: called with names, it gives their rows."""

    def __init__(
        self,
        source: str,
        target: str,
        load: Callable[[], Upscaler],
        pool: Pool,
        scale: float | None,
        files: Files,
        how: Options,
    ):
        torch.set_num_threads(max(1, pool.cpus))
        self.source, self.target = _place(source), _place(target)
        upscaler = load()
        size, upscale = how.size(upscaler.scale, scale), partial(upscaler, scale=scale)
        upscale = partial(upscale, **asdict(how))
        self.work = Work(upscale, size, True, files.keep_metadata, files.quality)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        pairs = list(zip(batch["source"].tolist(), batch["target"].tolist()))
        with tempfile.TemporaryDirectory() as desk:
            rows = [_row(*pair, result) for pair, result in self._results(pairs, Path(desk))]
        return {name: np.array([row[name] for row in rows]) for name in rows[0]}

    def _results(
        self, pairs: list[tuple[str, str]], desk: Path
    ) -> Iterator[tuple[tuple[str, str], Result]]:
        jobs = [
            Job(
                desk / f"{number}-in{posixpath.splitext(name)[1]}",
                desk / f"{number}-out{posixpath.splitext(result)[1]}",
            )
            for number, (name, result) in enumerate(pairs)
        ]
        pair_of, failed = dict(zip(jobs, pairs)), dict[Job, str]()  # failed: as the places say

        def fetched() -> Iterator[Job]:  # in the thread that reads
            for job, (name, result) in pair_of.items():
                try:
                    if _is_there(self.target, result):  # stored by a worker that was lost
                        job.target.touch()
                    else:
                        job.source.write_bytes(_bytes(self.source, name))
                except OSError as error:
                    failed[job] = f"{shown(name)}: cannot be fetched: {shown(error)}"
                yield job

        def store(job: Job, result: Result) -> None:  # in the thread that writes
            try:
                if result.status == "done":
                    _put(self.target, pair_of[job][1], job.target.read_bytes())
            except OSError as error:
                failed[job] = f"{shown(pair_of[job][1])}: cannot be stored: {shown(error)}"
            job.source.unlink(missing_ok=True)
            job.target.unlink(missing_ok=True)

        work = replace(self.work, note=store)
        for job, result in zip(jobs, upscale_all(fetched(), work)):
            if job in failed:
                result = replace(result, status="failed", error=failed[job], size_out=None)
            yield pair_of[job], result


def _row(name: str, target: str, result: Result) -> dict[str, Any]:
    width, height = result.size_out or (0, 0)
    error = (result.error or "").replace(result.source, shown(name))
    error = error.replace(result.target, shown(target))
    return {
        "source": name,
        "target": target,
        "status": result.status,
        "error": error,
        "width": width,
        "height": height,
        "seconds": result.seconds,
    }


# --------------------------------------------------------------------------------------- the places


def _ray_data() -> Any:
    try:
        import ray.data  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise MissingRay("Ray is not installed; pip install 'ldm_dream[bulk]'.") from None
    return ray.data


def _place(address: str) -> tuple[FileSystem, str]:
    from pyarrow.fs import FileSystem  # pyright: ignore[reportMissingImports]

    if "://" not in address:
        address = os.path.abspath(address)
    system, root = FileSystem.from_uri(address)
    return system, os.path.realpath(root) if system.type_name == "local" else root


def _check_apart(source: str, target: str) -> None:
    """Raises BatchError where results would be inputs of the next call, or lie among the inputs."""
    (system, one), (other_system, other) = _place(source), _place(target)
    if not system.equals(other_system):
        return
    one, other = (f"/{posixpath.normpath(path).strip('/.')}/" for path in (one, other))
    if one.startswith(other) or other.startswith(one):
        raise BatchError(
            f"{shown(target)} must be a place apart from {shown(source)}, neither within the other, "
            "since results would be inputs of the next call; name another target."
        )


def _files(address: str) -> list[str]:
    """Names below a place, with `/`; none where it is not there."""
    from pyarrow.fs import FileSelector, FileType  # pyright: ignore[reportMissingImports]

    system, root = _place(address)
    found = system.get_file_info(FileSelector(root, allow_not_found=True, recursive=True))
    return [posixpath.relpath(file.path, root) for file in found if file.type == FileType.File]


def _pictures(address: str) -> list[str]:
    return sorted(
        name
        for name in _files(address)
        if "/." not in f"/{name}" and kind_left_out(name) is None  # nor hidden
    )


def _named(names: list[str], naming: Naming) -> list[tuple[str, str]]:
    """With the name of each result. No file is opened for it."""
    places = [PurePosixPath(name) for name in names]
    reasons = [why_png_by_name(place, naming) for place in places]
    results = result_names(list(zip(places, reasons)), naming, stable=True)
    pairs = list(zip(names, map(str, results)))
    taken: dict[str, str] = {}
    for name, result in pairs:
        if result in taken:
            raise BatchError(
                f"{shown(taken[result])} and {shown(name)} would both become {shown(result)}; "
                "give ext=auto or rename one."
            )
        taken[result] = name
    return pairs


def _is_there(place: tuple[FileSystem, str], name: str) -> bool:
    from pyarrow.fs import FileType  # pyright: ignore[reportMissingImports]

    system, root = place
    return system.get_file_info(posixpath.join(root, name)).type == FileType.File


def _bytes(place: tuple[FileSystem, str], name: str) -> bytes:
    system, root = place
    with system.open_input_file(posixpath.join(root, name)) as file:
        return file.read()


def _put(place: tuple[FileSystem, str], name: str, content: bytes) -> None:
    system, root = place
    path = posixpath.join(root, name)
    if system.type_name == "local":
        with whole_file(Path(path)) as draft:
            draft.write_bytes(content)
    elif system.type_name in WHOLE_ON_CLOSE:
        with system.open_output_stream(path) as file:
            file.write(content)
    else:
        folder, last = posixpath.split(path)
        beside = posixpath.join(folder, f".draft-{this_process()}-{last}")
        system.create_dir(folder, recursive=True)
        with system.open_output_stream(beside) as file:
            file.write(content)
        system.move(beside, path)
