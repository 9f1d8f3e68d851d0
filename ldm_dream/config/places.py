"""What an entry of data.train, data.val and data.lr says: a place, and which of its names. Imports no
torch.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, NamedTuple

from pydantic import AfterValidator

from ldm_dream.config.strict import Name

STANDS_FOR = "{}"  # in an entry: any text, the same for a picture and its LR picture


def _one_open_part(entry: str) -> str:
    if entry.count(STANDS_FOR) > 1:
        raise ValueError(f"{entry} has {STANDS_FOR} more than once; give one that stands for all")
    return entry


Entry = Annotated[Name, AfterValidator(_one_open_part)]


class Place(NamedTuple):
    """path: of a folder, a picture, a list or an LMDB. pattern: of the names in it, with one `{}`;
    None: all of them.
    """

    path: Path
    pattern: str | None


def place_of(entry: str) -> Place:
    """`~/photos/{}_HR` -> (/home/me/photos, `{}_HR`)."""
    path = Path(os.path.expanduser(entry))
    is_open = [STANDS_FOR in part for part in path.parts]
    if True not in is_open:
        return Place(path, None)
    at = is_open.index(True)
    return Place(Path(*path.parts[:at]), "/".join(path.parts[at:]))
