"""Processes for tests, forked from one that has imported torch once: a new interpreter takes seconds.

A process starts as that one is after its imports, whatever the tests did to this one.
"""

import multiprocessing
import os
import socket
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

IMPORTED = multiprocessing.get_context("forkserver")
IMPORTED.set_forkserver_preload(["ldm_dream.training.train"])


def in_a_new_process(function: Callable, *arguments: Any) -> Any:
    """-> what `function` of a test module returns there; what it raises is raised here."""
    with ProcessPoolExecutor(1, IMPORTED) as pool:
        return pool.submit(function, *arguments).result()


def as_ranks(world: int, function: Callable, *arguments: Any) -> list[int | None]:
    """`function` in `world` processes at once, told what torchrun tells; -> their exit statuses."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    processes = [
        IMPORTED.Process(target=_rank, args=(number, world, port, function, *arguments))
        for number in range(world)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return [process.exitcode for process in processes]


def _rank(number: int, world: int, port: int, function: Callable, *arguments: Any) -> None:
    place = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": world}
    place |= {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "OMP_NUM_THREADS": 1}
    os.environ |= {name: str(value) for name, value in place.items()}
    raise SystemExit(function(*arguments))
