"""ldm_dream: super-resolution with diffusion models trained with DREAM. The file to read first is
`training/train.py`.

What a program imports is here, and told in docs/python.md: `Upscaler`, `Stopped`, `list_models`,
`UserError`, `Image`, `read_image`, `write_image`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"
__all__ = [
    "Image",
    "Stopped",
    "Upscaler",
    "UserError",
    "list_models",
    "read_image",
    "write_image",
]

if TYPE_CHECKING:
    from ldm_dream.data.images import Image, read_image, write_image
    from ldm_dream.errors import UserError
    from ldm_dream.model_config import list_models
    from ldm_dream.upscaling.upscaler import Upscaler
    from ldm_dream.upscaling.watch import Stopped

_PLACES = {
    "Image": "data.images",
    "Stopped": "upscaling.watch",
    "Upscaler": "upscaling.upscaler",
    "UserError": "errors",
    "list_models": "model_config",
    "read_image": "data.images",
    "write_image": "data.images",
}


def __getattr__(name: str) -> object:
    """Loaded on use: `import ldm_dream.config.run` must not import torch."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
