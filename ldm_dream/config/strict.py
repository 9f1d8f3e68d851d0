"""What every section of a config keeps to, and the limits that several of them share. Imports no
torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Annotated, Any, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    model_validator,
)

MOST_PARAMETERS = 5_000_000_000  # of a network; in training 80 GB with gradients and Adam
GROUPS = 32  # of the group norms in most published networks


class Strict(BaseModel):
    """A section: unknown keys are refused, values are finite and never change; true is no 1."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False
    )

    @model_validator(mode="before")
    @classmethod
    def _numbers_are_numbers(cls, values: Any) -> Any:
        """true is no 1, and no number is endless."""
        for name, value in values.items() if isinstance(values, dict) else ():
            for each in value if isinstance(value, list | tuple) else (value,):
                takes = cls.model_fields[name].annotation if name in cls.model_fields else bool
                if isinstance(each, bool) and not _takes_bool(takes):
                    raise ValueError(f"{name}={value} takes neither true nor false")
                if isinstance(each, int) and abs(each) >= 2**63:
                    raise ValueError(f"{name}={value} should be below 2 ** 63")
        return values


def _takes_bool(annotation: Any) -> bool:
    return annotation is bool or any(_takes_bool(arg) for arg in get_args(annotation))


def _no_control(name: str) -> str:
    if found := re.search("[\x00-\x1f\x7f]", name):
        raise ValueError(f"{ascii(found[0])} is in no name of a file or folder")
    return name


# a file, a folder, a model, or a part of such a name
Name = Annotated[str, Field(min_length=1, max_length=4096), AfterValidator(_no_control)]
Blocks = Annotated[int, Field(ge=1, le=100)]  # residual blocks of one level
Mult = Annotated[int, Field(ge=1, le=64)]  # channels of a level over those of the first
Levels = Annotated[tuple[Mult, ...], Field(min_length=1, max_length=10)]
Side = Annotated[int, Field(ge=1, le=65_536)]  # of a picture or of features


def each_level(blocks: int | tuple[int, ...], levels: int) -> list[int]:
    """Residual blocks of every level, from one number or one for each. Raises ValueError."""
    counts = [blocks] * levels if isinstance(blocks, int) else list(blocks)
    if len(counts) != levels:
        raise ValueError(
            f"num_res_blocks has {len(counts)} numbers for {levels} levels; give one, or one a level"
        )
    return counts


def unet_weights(first: int, mults: Iterable[int], blocks: Iterable[int]) -> int:
    """Weights of the 3x3 convolutions in the blocks of a U-Net, one on the way down and one on the
    way up and one more: fewer than it really has.
    """
    return sum(9 * (first * mult) ** 2 * (2 * n + 1) for mult, n in zip(mults, blocks))


def not_too_many(count: float, of: str) -> None:
    """Raises ValueError for more parameters than any machine here could hold."""
    if count > MOST_PARAMETERS:
        raise ValueError(
            f"it would have more than {count / 1e9:,.0f} billion parameters; "
            f"{of} may have {MOST_PARAMETERS / 1e9:g} billion, so lower its channels or blocks"
        )
