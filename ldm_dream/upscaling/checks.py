"""Numbers that a caller gives: whether they are possible."""

from __future__ import annotations

from numbers import Integral

from ldm_dream.upscaling.devices import UpscaleError


def check_whole(name: str, value: object, least: int) -> None:
    """Raises UpscaleError unless `value` is a whole number from `least`. Those of numpy count; True
    and False do not.
    """
    if not isinstance(value, Integral) or isinstance(value, bool) or int(value) < least:
        raise UpscaleError(
            f"{name}={value!r} is not possible; give a whole number from {least}."
        )
