"""What a runner takes from outside: case.json, where no key is ignored in silence, and the
intermediates of a network, which watching must not change.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

# of case.json: says where the numbers come from, and changes none; and all that begins with PROSE
RECORD = {"case", "split", "source", "seed", "inputs", "outputs", "must_match", "tensors"}
RECORD |= {"versions", "libraries", "verification", "stubs", "dummy_denoiser", "injection"}
RECORD |= {"levels", "formulae", "first_stage", "scale_format", "official_limits", "v_prediction"}
RECORD |= {"omitted_keys", "unused_but_stored_keys", "buffers_in_state_dict", "t_injected"}
RECORD |= {"min_abs_residual", "index_margin_min_squared_distance_gap", "distinct_codes_used"}
RECORD |= {"nearest_sample_tie_margin", "max_change_if_the_standard_swin_mask_were_used"}
PROSE = ("notes", "departures")


class UnknownKey(ValueError):
    """A case asks for something that its runner does not compute."""


class Case(Mapping[str, Any]):
    """A dictionary of case.json that knows which of its keys were read. Those inside it are Cases
    too; other values come as they are.

    A key is read, or named as `known`, or held to the one value that is computed here (`only`).
    After the run, `finish` raises UnknownKey with all that is left.
    """

    def __init__(self, values: dict[str, Any], where: str = ""):
        self._values, self._where = values, where
        self._inside: dict[str, Any] = {}  # what was read
        self._known: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        if key not in self._inside:
            self._inside[key] = self._wrap(self._values[key], self._path(key))
        return self._inside[key]

    def __contains__(self, key: object) -> bool:  # to ask whether a key is there is not to read it
        return key in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def known(self, *keys: str) -> None:
        """These may be there and change nothing of what is compared."""
        self._known |= {*keys}

    def only(self, **values: Any) -> None:
        """Where these keys are there, they have the one value that is computed here. Raises
        UnknownKey, with the key.
        """
        for key, value in values.items():
            if self._values.get(key, value) != value:
                got = f"{self._path(key)} is {self._values[key]!r}"
                raise UnknownKey(f"{got}, but the runner computes {value!r} only")
        self.known(*values)

    def join(self, name: str, *parts: Case) -> Case:
        """Several parts as one dictionary, where a later one goes before. Its keys count for theirs."""
        values = {key: value for part in parts for key, value in part.items()}
        self._inside[name] = Case(values, self._path(name))
        return self._inside[name]

    def unread(self) -> list[str]:
        """Paths of the keys that are left, in every dictionary that was reached."""
        left = self._values.keys() - self._inside.keys() - self._known
        found = [self._path(key) for key in self._values if key in left]
        for value in self._inside.values():
            for part in value if isinstance(value, list) else [value]:
                found += part.unread() if isinstance(part, Case) else []
        return found

    def finish(self) -> None:
        left = self.unread()
        if left:
            raise UnknownKey(f"the runner knows nothing of {', '.join(left)}")

    def _path(self, key: str) -> str:
        return f"{self._where}.{key}" if self._where else key

    def _wrap(self, value: Any, where: str) -> Any:
        if isinstance(value, dict):
            return Case(value, where)
        if isinstance(value, list) and any(isinstance(part, dict) for part in value):
            return [self._wrap(part, f"{where}[{i}]") for i, part in enumerate(value)]
        return value


def read_case(values: dict[str, Any]) -> Case:
    """case.json as a whole, where what only records is known."""
    case = Case(values)
    case.known(*(key for key in values if key in RECORD or key.startswith(PROSE)))
    return case


@contextmanager
def watching(modules: Mapping[str, nn.Module]) -> Iterator[dict[str, Tensor]]:
    """-> {name: output of the module's last call}. The network goes on with its own outputs: what a
    forward hook returns would replace them, so these return nothing.
    """
    seen: dict[str, Tensor] = {}

    def watch(name: str):
        def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            seen[name] = output

        return hook

    handles = [module.register_forward_hook(watch(name)) for name, module in modules.items()]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
