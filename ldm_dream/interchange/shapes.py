"""What `read_config` of every system asks a published state dict: which modules it has, and how many."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from torch import Tensor


def has(state: Mapping[str, Tensor], prefix: str) -> bool:
    """Whether a module of this name, or one below it, has tensors."""
    return any(key.startswith(prefix + ".") for key in state)


def count(state: Mapping[str, Tensor], prefix: str) -> int:
    """Children of `prefix`, which are numbered from 0."""
    numbers = [
        int(match[1]) for key in state if (match := re.match(rf"{re.escape(prefix)}\.(\d+)\.", key))
    ]
    return max(numbers, default=-1) + 1


def ratio(part: int, whole: int, what: str) -> int:
    """part / whole. Raises ValueError, with `what`, where that is no whole number."""
    if part % whole:
        raise ValueError(f"{what} is {part} / {whole}, which is no whole number")
    return part // whole


def one_or_each(counts: list[int]) -> int | tuple[int, ...]:
    """A number for each level as a config writes it: one where all are equal."""
    return counts[0] if len(set(counts)) == 1 else tuple(counts)


def possible_groups(channels: int) -> int:
    """A number of groups, at most 32, that divides the channels: shapes do not tell which was used."""
    return math.gcd(32, channels)
