"""What the importer must know of a published system, as one row: how its keys look and what they
are called here, what the shapes say, which run the weights belong to, on what terms they come.

The rows stand in `systems/`, one file each; `published.py` does the work and knows none by name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor, nn

from ldm_dream.config.autoencoder import AutoencoderConfig, VQGANConfig
from ldm_dream.config.networks import NetworkConfig
from ldm_dream.config.process import DDPMConfig
from ldm_dream.config.run import Run
from ldm_dream.errors import shown

Config = NetworkConfig | AutoencoderConfig
State = Mapping[str, Tensor]  # key -> tensor
NOTHING = r"^$"  # matches no key


class Models(NamedTuple):
    """The models in a published file, each under its own published keys."""

    network: State  # or the autoencoder, where the file is of one
    first_stage: State = {}  # the autoencoder beside the network; empty where the file has none


class Facts(NamedTuple):
    """What is known of a file beside its network's config."""

    filename: str
    autoencoder: str | None = None  # name or folder of an imported one, for networks on latents
    first_stage: VQGANConfig | None = None  # the one in the file
    schedule: DDPMConfig | None = None  # noise schedule of its buffers

    @property
    def description(self) -> str:
        return f"imported from {shown(self.filename)}"

    def vqgan(self, published: VQGANConfig) -> VQGANConfig:
        """The autoencoder to use: the imported one, else that of the file, else `published`."""
        if self.autoencoder:
            return VQGANConfig(pretrained=self.autoencoder)
        return self.first_stage or published


def all_told(config: Any, facts: Facts) -> dict[str, Any]:
    """`PublishedSystem.untold` of a system whose shapes tell all."""
    return {}


def schedule_of(facts: Facts, published: DDPMConfig, is_known: bool) -> dict[str, Any]:
    """`PublishedSystem.untold` of a noise schedule that the file does not carry."""
    if facts.schedule:
        return {}
    names = ("num_timesteps", "beta_start", "beta_end")
    return {f"process.{name}": getattr(published, name) if is_known else None for name in names}


def alone(state: State, path: str) -> Models:
    """`PublishedSystem.models` of a file that holds one model and nothing else."""
    return Models(state)


@dataclass(frozen=True)
class PublishedSystem:
    """One published system. Regular expressions are searched in its keys."""

    name: str  # for messages
    licence: str  # terms that its publishers state
    mark: str  # regular expression that some key of this system, and of no later row, matches
    config: type  # what read_config returns
    read_config: Callable[[State], Any]  # KeyError, ValueError: the shapes fit no network
    build: Callable[[Any], nn.Module]  # config -> the module whose keys are ours
    run: Callable[[Any, Facts], Run]  # config, facts -> run; CheckpointImportError: none is known
    # config, facts -> keys of the run that neither shapes nor file tell, with what the authors' own
    # published model has; None: the model is another, and the user must tell
    untold: Callable[[Any, Facts], dict[str, Any]] = all_told
    renames: tuple[tuple[str, str], ...] = ()  # (published, ours) pieces of keys, in their order
    # keys that hold nothing the network needs, or a function of the state where they depend on depth
    drops: str | Callable[[State], str] = NOTHING
    prefix: str = ""  # what stands before every published key that is kept
    # state, path -> its models; CheckpointImportError
    models: Callable[[State, str], Models] = alone

    def marks(self, state: State) -> bool:
        """Whether the state dict is of this system."""
        return any(re.search(self.mark, key) for key in state)

    def dropped(self, state: State) -> set[str]:
        """Keys of `state` that `drops` names."""
        pattern = self.drops if isinstance(self.drops, str) else self.drops(state)
        return {key for key in state if re.search(pattern, key)}

    def ours(self, key: str) -> str:
        """Published key -> ours."""
        key = key.removeprefix(self.prefix)
        for published, own in self.renames:
            key = key.replace(published, own)
        return key

    def published(self, key: str) -> str:
        """Our key -> the published one."""
        for published, own in self.renames:
            key = key.replace(own, published)
        return self.prefix + key
