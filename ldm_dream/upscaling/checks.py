"""Numbers that a caller gives: whether they are possible. Those of numpy are; True and False are not."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any

from ldm_dream.upscaling.devices import UpscaleError


def check_whole(
    name: str, value: object, least: int, most: float = math.inf, hint: str = ""
) -> None:
    """Raises UpscaleError, which ends with `hint`, unless `value` is a whole number in that range."""
    if (
        isinstance(value, bool)
        or not isinstance(value, Integral)
        or not least <= int(value) <= most
    ):
        raise _impossible(name, value, f"whole number from {least}{hint}")


def check_positive(name: str, value: Any, most: float = math.inf, hint: str = "") -> None:
    """Raises UpscaleError, which ends with `hint`, unless `value` is above 0 and at most `most`."""
    if not (_is_number(value) and 0 < value <= most):
        raise _impossible(name, value, f"number above 0{hint}")


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _impossible(name: str, value: object, wanted: str) -> UpscaleError:
    given = value if isinstance(value, Real) else repr(value)
    return UpscaleError(f"{name}={given} is not possible; give a {wanted}.")
