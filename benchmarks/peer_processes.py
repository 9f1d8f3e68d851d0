"""Methods at work in turns, each in a process of its own. One that fails or dies is left out from then
on, with one sentence, and the others go on.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from ldm_dream.errors import UserError

Processes = dict[str, Executor]  # name of a method -> its process


def process() -> Executor:
    """One new process, which knows nothing of this one. It raises BrokenProcessPool if it is killed."""
    return ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))


def in_turns(processes: Processes, work: Callable[..., Any], *given: Any) -> dict[str, Any]:
    """Name -> what work(name, *given) returns in its process, one after the other. A method that raises
    is taken out of `processes`. Raises UserError where none is left.
    """
    found = {}
    for name in [*processes]:
        try:
            found[name] = processes[name].submit(work, name, *given).result()
        except Exception as error:  # whatever it is: the figures of the others are not lost for it
            del processes[name]
            print(f"without {name}: {_sentence(error)}", flush=True)
    if not processes:
        raise UserError("no method is left to measure; name one in --peers or -n.")
    return found


def _sentence(error: Exception) -> str:
    if isinstance(error, BrokenProcessPool):
        return "its process was killed, maybe for want of memory."
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
