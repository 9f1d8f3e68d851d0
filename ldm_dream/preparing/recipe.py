"""What a recipe is: which pictures of a publisher's archives become which sets of pictures."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

from ldm_dream.errors import UserError
from ldm_dream.preparing.pictures import Cut


class PrepareError(UserError, ValueError):
    """A data set that cannot be prepared as asked; its text is complete for the user."""


@dataclass(frozen=True)
class Options:
    """What the user may choose. None: the recipe's own. sizes: sides of squares in pixels. scale:
    of the LR pictures. limit: most pictures a set. eval_count: pictures to evaluate on.
    """

    sizes: tuple[int, ...] | None = None
    scale: int | None = None
    limit: int | None = None
    eval_count: int = 100


@dataclass(frozen=True)
class Part:
    """One set to make. output: its folder's name. pattern: regular expression that is found in the
    path of a picture, as FOLDER_OR_ARCHIVE/PATH_INSIDE; its groups, joined by "-", are the
    picture's name. archive: where the pictures come from, for the user. count: how many its
    publisher names. megapixels: of what is made of one picture, about.

    is_evaluation: always a folder of files. is_listed: with a list of some to evaluate on. share: of pictures that no
    publisher divided, "held out" for evaluation or the "rest". digits: names are filled up with
    zeros. limit: most pictures, unless the user says. optional: not missed.
    """

    output: str
    pattern: str
    cut: Cut
    archive: str
    megapixels: float
    count: int | None = None
    is_evaluation: bool = False
    is_listed: bool = False
    share: str = ""
    digits: int = 0
    limit: int | None = None
    optional: bool = False
    configs: tuple[str, ...] = ()

    def name_of(self, path: str) -> str | None:
        """The name of a picture of this part; None for any other."""
        found = re.search(self.pattern, path)
        return "-".join(filter(None, found.groups())).zfill(self.digits) if found else None


@dataclass(frozen=True)
class Recipe:
    """page: where its publishers give it. terms: in a few words; the page decides. archives: regular
    expression for the names of archives that are opened where they lie in a folder. makes: the
    parts for some sizes, or for a scale.
    """

    name: str
    title: str
    page: str
    terms: str
    archives: str
    makes: Callable[[tuple[int, ...], int], list[Part]] = field(repr=False)
    sizes: tuple[int, ...] = ()
    scale: int | None = None

    def parts(self, options: Options) -> list[Part]:
        """Raises PrepareError for an option that this recipe has no use for."""
        if options.sizes is not None and not self.sizes:
            raise PrepareError(f"{self.name} has no sizes to choose; leave --sizes out.")
        if options.scale is not None and self.scale is None:
            raise PrepareError(f"{self.name} has no scale to choose; leave --scale out.")
        sizes, scale = options.sizes or self.sizes, options.scale or self.scale or 1
        if any(not 8 <= side <= 1024 for side in sizes):
            raise PrepareError(
                f"--sizes {','.join(map(str, sizes))}: give sides of 8 to 1024 pixels."
            )
        if self.scale and scale not in (2, 3, 4):
            raise PrepareError(f"--scale {scale}: {self.name} comes in 2, 3 and 4.")
        return self.makes(sizes, scale)
