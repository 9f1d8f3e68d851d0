"""Nothing waits for the device: not a training step's loss and gradients, nor one sampler step for
the one before it.

The meta device stands for an accelerator. Its tensors have shapes and no values, so whatever asks
for a value (`item`, `bool`, `nonzero`, `cpu`, a mask as index) fails by itself; what goes there from
the host is seen by a dispatch mode. Kernels are not looked into: there is none for that device.
"""

import contextlib
from contextlib import closing

import numpy as np
import pytest
import test_systems
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ldm_dream.config.process import Sampling
from ldm_dream.config.run import DiffusionRun
from ldm_dream.data.pairs import Batch
from ldm_dream.loss import diffusion_loss, with_extra_pass
from ldm_dream.model_folder import LoadedModel
from ldm_dream.networks import build_network
from ldm_dream.networks.autoencoders import build_autoencoder
from ldm_dream.sampler import gaussian, sample_steps, seeded
from ldm_dream.training import diffusion
from ldm_dream.training.diffusion import DiffusionObjective
from ldm_dream.training.distributed import Rank
from ldm_dream.training.latents import LatentDataset
from ldm_dream.training.start import Start
from ldm_dream.training.trainer import Trainer
from ldm_dream.upscaling.engine import Options
from ldm_dream.upscaling.pictures import Source, unpack
from ldm_dream.upscaling.tiling import Tiles
from ldm_dream.upscaling.upscaler import Upscaler
from ldm_dream.upscaling.watch import Watch
from runs import diffusion_run

META = torch.device("meta")
LDM = {
    "autoencoder": test_systems.VQGAN_TINY,
    "network": {
        "kind": "ldm", "image_size": 8, "in_channels": 4, "out_channels": 4, "cond_channels": 7, "model_channels": 32,
        "channel_mult": [1, 2], "num_res_blocks": 1, "attention_resolutions": [4], "num_head_channels": 16,
    },
    "condition": ["lr", "z_lr"], "process": test_systems.DDPM, "prediction": "eps",
}  # fmt: skip
SYSTEMS = {**test_systems.SYSTEMS, "ldm": LDM}


SAMPLED = [
    (name, kind)
    for name, parts in SYSTEMS.items()
    for kind in DiffusionRun(**parts).process.samplers
]
BY_INDEX = torch.ops.aten.index.Tensor, torch.ops.aten.index_put_.default


class Waiting(AssertionError):
    pass


def _has_mask(index) -> bool:
    return any(isinstance(x, torch.Tensor) and x.dtype == torch.bool for x in tree_leaves(index))


class NoFreshNumbers(TorchFunctionMode):
    """Raises Waiting where numbers of Python become a tensor of the device."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        if function in (torch.tensor, torch.as_tensor) and made.device == META:
            raise Waiting(f"{function.__name__} of numbers of the host")
        return made


class NoCrossing(TorchDispatchMode):
    """Raises Waiting where host and device meet, but for copies that say that nobody waits."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        made = function(*args, **kwargs)
        tensors = [x for x in tree_leaves((args, kwargs, made)) if isinstance(x, torch.Tensor)]
        # a single number of the host travels with the launch
        places = {x.device for x in tensors if x.dim() or x.device == META}
        if len(places) > 1 and not (kwargs.get("non_blocking") and made.device == META):
            raise Waiting(f"{function} on {places}")
        if function in BY_INDEX and META in places and _has_mask(args[1]):
            raise Waiting(f"{function} by a mask, whose count is asked for")
        return made


@contextlib.contextmanager
def no_waiting():
    with NoFreshNumbers(), NoCrossing():
        yield


@pytest.fixture(autouse=True)
def no_autocast(monkeypatch):
    """Which the meta device does not have."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda _: False)


def system(name: str, **loss) -> tuple[DiffusionObjective, Batch]:
    """On the meta device, with a batch of 8."""
    run = DiffusionRun(loss={"strength": 1.0, **loss}, **SYSTEMS[name])
    decoder = build_autoencoder(run.autoencoder).requires_grad_(False).to(META)
    made = DiffusionObjective(run, decoder)
    made.model.to(META)
    hr = torch.empty(8, 3, 32, 32, device=META)
    return made, Batch(hr, hr[..., ::4, ::4].contiguous())


@pytest.mark.parametrize("name", ["sr3", "idm", "ldm", "resshift-native"])
def test_training_waits_for_nothing(name):
    made, batch = system(name)
    generator = torch.Generator().manual_seed(0)
    made.latents(batch)  # sends tables of the resizing, once
    with no_waiting():
        loss, _ = made.loss(batch, 1, generator)
        loss.backward()
    assert all(p.grad is not None for p in made.model.parameters())


@pytest.mark.parametrize("cached", [0, 4])
def test_a_step_of_the_loop_waits_for_nothing(cached, tmp_path, monkeypatch):
    """Batch, losses of two micro-batches, clipping, optimizer, average, means for the log."""
    made = diffusion_run(tmp_path, accumulate=2)
    data = made.data.model_copy(update={"cache_latents": cached, "val": ()})
    run = made.model_copy(update={"data": data})
    monkeypatch.setattr(Trainer, "_generator", lambda *_: torch.Generator().manual_seed(0))
    # `to` keeps parameters on a real device and makes others on this one
    monkeypatch.setattr(diffusion, "build_network", lambda cfg: build_network(cfg).to(META))
    # the fused optimizer does not know the meta device
    plain = torch.optim.AdamW
    monkeypatch.setattr(torch.optim, "AdamW", lambda *args, fused, **given: plain(*args, **given))
    trainer = Trainer(Start(run), Rank(0, 1, META), tmp_path / "run")
    if cached:  # what is encoded once is kept in main memory
        made = torch.zeros(2, 4, 8, 8, dtype=torch.float16)
        monkeypatch.setattr(LatentDataset, "_encoded", lambda _, hr, lr: (lr, made))
    with closing(trainer.load_from(0)):
        trainer.means.add(trainer.step(0))
        with no_waiting():
            trainer.means.add(trainer.step(1))
    assert all(sums.device == META for sums in trainer.means.sums.values())


@pytest.mark.parametrize("min_lam", [0.1, 1.0])
def test_samples_that_stay_plain_are_known_on_the_host(min_lam):
    made, batch = system("sr3", min_lam=min_lam)
    z, passes = batch.hr, []
    inputs = made.denoiser.prepare(z, z)
    made.denoiser.call = lambda z_t, *_: passes.append(len(z_t)) or z_t.clone()
    with no_waiting():
        diffusion_loss(made.denoiser, z, inputs, torch.arange(0, 2000, 250), z, made.run.loss)
    assert passes == [8, 8] if min_lam < 1 else [8]


def test_compiled_passes_see_four_batch_sizes():
    """Every sample that is to be rectified is in the pass; what fills it up has lam = 0."""
    for total in (1, 2, 8, 10, 63):
        sizes = set()
        for count in range(total + 1):
            lam = torch.where(torch.randperm(total) < count, 0.9, 0.2).view(-1, 1, 1, 1)
            chosen, kept = with_extra_pass(lam, lam >= 0.5, META)
            exact, same = with_extra_pass(lam, lam >= 0.5, torch.device("cpu"))
            assert torch.equal(kept, same) and torch.equal(kept, lam * (lam > 0.5))
            assert len(exact) == count and {*exact.tolist()} <= {*chosen.tolist()}
            assert len({*chosen.tolist()}) == len(chosen)
            sizes.add(len(chosen))
        assert sizes <= {0, *(-(-quarters * total // 4) for quarters in (1, 2, 3, 4))}


@pytest.mark.parametrize(("name", "kind"), SAMPLED)
def test_no_sampler_step_waits_for_the_one_before(name, kind):
    made, _ = system(name)
    made.model.eval()
    if kind != "ancestral":  # once is enough for the network
        made.denoiser.call = lambda z_t, *_: z_t.clone()
    z_lr = torch.empty(2, made.autoencoder.channels, 16, 16, device=META)
    inputs = made.denoiser.prepare(torch.empty(2, 3, 16, 16, device=META), z_lr)
    noise = gaussian(z_lr) if kind == "ancestral" else seeded(1, z_lr)
    sampling = Sampling(kind=kind, steps=3, eta=0.5, variance="forward")
    steps = sample_steps(made.denoiser, inputs, sampling, noise, clip=1.0)
    next(steps)
    with no_waiting():
        assert len(list(steps)) == 2


@pytest.mark.parametrize("name", ["idm", "resshift-native"])
def test_bands_of_tiles_stay_on_the_device(name):
    made, _ = system(name)
    run = made.run.model_copy(update={"sampler": Sampling(kind="ancestral", steps=3)})
    parts = (module.to_empty(device="cpu") for module in (made.model, made.autoencoder))
    upscaler = Upscaler(LoadedModel(run, *parts, made.process), device="cpu")
    upscaler.engine.denoiser.call = lambda z_t, *_: z_t.clone()
    upscaler.engine.device = META
    for module in (upscaler.engine.denoiser.network, upscaler.engine.autoencoder):
        module.to(META)
    source = Source(unpack(np.zeros((32, 8, 3), np.uint8)))
    height, width = (side * 4 // upscaler.engine.autoencoder.factor for side in source.size)
    tiles = Tiles.plan(height, width, height / 2, 4, 8)
    list(upscaler.engine.in_tiles(source, tiles, Options(), Watch())())
    bands = upscaler.engine.in_tiles(source, tiles, Options(), Watch())()
    first = next(bands)
    with no_waiting():
        others = list(bands)
    assert len(others) == len(tiles.bands) - 1 > 0
    assert {band.device for band in (first, *others)} == {META}


FAULTS = {
    "item": lambda x: x.sum().item(),
    "bool": lambda x: bool((x == 0).any()),
    "cpu": lambda x: x.cpu(),
    "tolist": lambda x: x.tolist(),
    "numpy": lambda x: x.numpy(),
    "mask": lambda x: x[x > 0],
    "count": lambda x: (x > 0).nonzero(),
    "fresh numbers": lambda x: torch.tensor([1.0, 2.0], device=x.device),
    "copy to the device": lambda x: torch.ones(2).to(x.device),
    "index of the host": lambda x: x[torch.tensor([0])],
    "copy into": lambda x: x.copy_(torch.ones(2)),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_way_of_waiting_is_found(fault):
    with pytest.raises((Waiting, RuntimeError, TypeError)), no_waiting():
        FAULTS[fault](torch.empty(2, device=META))


# ------------------------------------------------------------------------------- launches of a loss


class Count(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.operations += 1
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_loss_is_few_operations_around_the_network(name, record_property):
    made, batch = system(name)
    z0, z_lr = made.latents(batch)
    inputs, t = made.denoiser.prepare(batch.lr, z_lr), made.process.draw(8, torch.Generator())
    made.denoiser.call = lambda z_t, *_: torch.empty_like(z0)
    with Count() as count:
        diffusion_loss(made.denoiser, z0, inputs, t, torch.empty_like(z0), made.run.loss)
    record_property("operations", count.operations)
    assert count.operations <= 100
