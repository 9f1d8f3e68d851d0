"""Placeholder until the card is merged."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Facts:
    name: str
    step: int
    command: str
    commit: str | None
    versions: dict
    pictures: dict[str, int]
    validation: dict[str, float] | None
    validation_step: int | None
    history: list[dict[str, Any]]


def card(run, facts: Facts) -> str:
    return f"# {facts.name}\n"
