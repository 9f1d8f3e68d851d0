"""A model of another project: one file of weights, whose network spandrel knows by its keys.

The file is read by this project's own reader, which runs no code of it. spandrel (the extra
`peers`, https://github.com/chaiNNer-org/spandrel) then builds the network out of names and shapes.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import nn

from ldm_dream.hub import PREFIX
from ldm_dream.interchange.checkpoint_file import read_checkpoint
from ldm_dream.model_config import AUTOENCODER, WEIGHTS, ModelError

if TYPE_CHECKING:
    from spandrel import ImageModelDescriptor

SUFFIXES = (".pth", ".pt", ".ckpt", ".safetensors")
# what spandrel loads and this project does not run: purpose or architecture -> why
REFUSED = {
    "FaceSR": "it restores cut-out, aligned faces and no photos; crop and align them with its own tool",
    "Inpainting": "it fills holes and needs a mask of them; use its own tool",
    "AuraSR": "it draws noise of its own, so no result could be made twice; use its own tool",
}


class PeerModel(NamedTuple):
    """net: LR in [0, 1] -> HR in [0, 1], `net.scale` times as large, float32 on the CPU."""

    net: ImageModelDescriptor
    path: Path

    @property
    def name(self) -> str:
        return str(self.path)

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        return (self.net.model,)


def is_peer(name: str) -> bool:
    """Whether a name means a file of weights: no folder, and no model of the hub."""
    named_so = Path(name).suffix.lower() in SUFFIXES and not name.startswith(PREFIX)
    return os.path.isfile(name) or (named_so and not os.path.isdir(name))


def read_peer(path: Path) -> PeerModel:
    """A file of another project. Raises CheckpointImportError for one that is broken or unsafe,
    ModelError for one that is not to be used, or without the extra.
    """
    if path.name in (WEIGHTS, AUTOENCODER) and (path.parent / "config.yaml").is_file():
        raise ModelError(f"{path}: a part of a model folder; name the folder, {path.parent}.")
    state = read_checkpoint(path)
    try:
        import spandrel
    except ImportError:
        raise ModelError(
            f"{path}: files of other projects need spandrel; "
            "install it with: pip install 'ldm_dream[peers]'."
        ) from None
    try:
        net: Any = spandrel.ModelLoader().load_from_state_dict(dict(state))
    except spandrel.UnsupportedModelError:
        raise ModelError(
            f"{path}: spandrel {spandrel.__version__} knows no network with its keys "
            f"(the first is {next(iter(state))!r}); of a diffusion model make a model folder with "
            "ldm-dream import, of another one use its own tool."
        ) from None
    except Exception as error:  # spandrel raises any kind where weights do not fit
        reason = " ".join(str(error).split())[:100]
        raise ModelError(
            f"{path}: its weights do not fit the network that spandrel {spandrel.__version__} takes "
            f"it for ({type(error).__name__}: {reason}); download it again, or use its own tool."
        ) from None
    if reason := REFUSED.get(net.purpose) or REFUSED.get(str(net.architecture.id)):
        raise ModelError(f"{path}: a model of {net.architecture.name} is not run here: {reason}.")
    channels = net.input_channels, net.output_channels
    if channels not in ((1, 1), (3, 3)):
        raise ModelError(
            f"{path}: makes {channels[1]} channels of {channels[0]}; "
            "models of grey or of RGB pictures are run here."
        )
    net.eval().model.requires_grad_(False)
    return PeerModel(net, path)
