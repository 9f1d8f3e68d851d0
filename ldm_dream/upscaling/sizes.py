"""How large a result is to be: so many times the picture, or a width, a height or megapixels.

Proportions are kept in every case, up to the rounding to whole pixels. Numbers that a caller gives are
checked here, too: those of numpy are taken, True and False are not.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from numbers import Integral, Real
from typing import Any

from ldm_dream.upscaling.devices import UpscaleError

MOST = 10**9  # of each number; what is too large for a machine is said when the picture is known
_LIKE = {"scale": 4, "width": 3840, "height": 2160, "megapixels": 24}


@dataclass(frozen=True)
class Size:
    """One of scale (times each side), megapixels (millions of pixels in all), or width and height in
    pixels: one of them tells the other, and with both the result is the largest that fits into
    them. Raises UpscaleError.
    """

    scale: float | None = None
    width: int | None = None
    height: int | None = None
    megapixels: float | None = None

    def __post_init__(self) -> None:
        given = {name: value for name, value in asdict(self).items() if value is not None}
        for name, value in given.items():
            hint = f" up to {MOST}, for example {_LIKE[name]}"
            if name in ("width", "height"):
                check_whole(name, value, 1, MOST, hint)
            else:
                check_positive(name, value, MOST, hint)
        if not given or (len(given) > 1 and set(given) != {"width", "height"}):
            said = " and ".join(f"{name}={value}" for name, value in given.items()) or "no size"
            raise UpscaleError(
                f"{said} cannot be asked for; give one of scale, width, height or megapixels, "
                "or width and height to fit the result into both."
            )

    def of(self, size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) of the picture -> of the result."""
        times = self.times(size)
        height, width = (max(1, round(side * times)) for side in size)
        return height, width

    def times(self, size: tuple[int, int]) -> float:
        """By how much both sides of a picture of (height, width) grow."""
        if self.scale is not None:
            return self.scale
        if self.megapixels is not None:
            return math.sqrt(self.megapixels * 1e6 / (size[0] * size[1]))
        sides = ((self.height, size[0]), (self.width, size[1]))
        return min(wanted / side for wanted, side in sides if wanted is not None)


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
