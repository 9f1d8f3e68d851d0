"""Laws that every network keeps: nothing leaves the device, attention is SDPA, channels_last stays;
with and without padding.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ldm_dream.config.networks import IDMConfig, LDMConfig, ResShiftNetConfig, SR3Config
from ldm_dream.networks import NETWORKS, build_network, compile_blocks, recompute_blocks
from ldm_dream.networks.layers import Attention, LastConv2d
from ldm_dream.networks.ldm import Attention as LDMAttention
from ldm_dream.networks.resshift import WindowAttention
from runs import predict

LEVELS = {
    "channel_mult": (1, 2),
    "num_res_blocks": 1,
    "image_size": 16,
    "attention_resolutions": (16, 8),
    "dropout": 0.1,
}
SWIN = {"swin_embed_dim": 32, "num_head_channels": 16, "window_size": 4}
CONFIGS = {
    "sr3": SR3Config(model_channels=32, **LEVELS),
    "idm": IDMConfig(
        model_channels=32, encoder_blocks=1, encoder_channels=8, max_scale=4, **LEVELS
    ),
    "ldm": LDMConfig(model_channels=32, num_head_channels=16, **LEVELS),
    "resshift": ResShiftNetConfig(model_channels=32, **SWIN, **LEVELS),
    "ldm-layer": LDMConfig(model_channels=32, num_head_channels=16, norm="layer", **LEVELS),
    "resshift-layer": ResShiftNetConfig(
        model_channels=32, norm="layer", cond_factor=2, **SWIN, **LEVELS
    ),
    "resshift-folded": ResShiftNetConfig(model_channels=32, patch_size=2, **SWIN, **LEVELS),
}
ATTENTIONS = (Attention, LDMAttention, WindowAttention)

every_network = pytest.mark.parametrize("name", CONFIGS)
every_size = pytest.mark.parametrize("size", [(16, 16), (18, 14)], ids=["fits", "padded"])


def inputs(name: str, size: tuple[int, int], device: str = "cpu") -> tuple[Tensor, Tensor, Tensor]:
    """z_t, t, cond; the pictures in channels_last."""
    cfg = CONFIGS[name]
    cond = [side * cfg.cond_factor if cfg.cond_factor else side // 2 for side in size]
    t = torch.full((2,), 0.5) if NETWORKS[cfg.kind].sees_noise_level else torch.tensor([3, 7])
    z_t, cond = (
        torch.randn(2, 3, *sides).to(memory_format=torch.channels_last) for sides in (size, cond)
    )
    return z_t.to(device), t.to(device), cond.to(device)


def test_each_network_has_its_tiny_config_here():
    assert {cfg.kind for cfg in CONFIGS.values()} == set(NETWORKS)


class Strangers(TorchDispatchMode):
    """The operations that read or write a tensor which is not on the device."""

    def __init__(self, device: str):
        super().__init__()
        self.device, self.names = device, set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        tensors = (leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, Tensor))
        if any(tensor.device.type != self.device for tensor in tensors):
            self.names.add(str(func))
        return result


@every_network
@every_size
@pytest.mark.parametrize("training", [False, True])
def test_no_operation_of_forward_and_backward_leaves_the_device(name, size, training):
    """On the meta device, where reading a number raises too."""
    network = build_network(CONFIGS[name]).to("meta").train(training)
    z_t, t, cond = inputs(name, size, "meta")
    with Strangers("meta") as strangers:
        output = predict(network, z_t, t, cond)
        output.sum().backward()
    assert output.shape == z_t.shape and output.is_meta
    assert strangers.names == set()


@pytest.mark.parametrize(
    "slip",
    [
        lambda x: x * x.new_zeros(()).cpu(),
        lambda x: x + torch.zeros(1).to(x.device),
        lambda x: x.item(),
    ],
)
def test_what_leaves_the_device_is_seen(slip):
    with Strangers("meta") as strangers:
        try:
            slip(torch.zeros((), device="meta"))
        except (RuntimeError, NotImplementedError) as error:
            strangers.names.add(type(error).__name__)
    assert strangers.names


@every_network
def test_what_a_network_makes_of_t_and_cond_has_a_row_for_each_sample(name):
    network = build_network(CONFIGS[name])
    z_t, t, cond = inputs(name, (16, 16))
    made = [network.embed(t), *network.prepare(cond, (16, 16))]
    assert [len(x) for x in made] == [2] * len(made)


@torch.no_grad()
@every_network
def test_the_order_in_which_modules_were_registered_says_nothing(name):
    """The children of the network and of its U-Net registered in reverse: the same output."""
    network = build_network(CONFIGS[name]).eval()
    for layer in (m for m in network.modules() if isinstance(m, nn.Conv2d) and not m.weight.any()):
        nn.init.normal_(layer.weight, std=0.05)  # those that end a branch begin as nothing
    arguments = inputs(name, (16, 16))
    want = predict(network, *arguments)
    for module in [network, *network.children()]:
        if not isinstance(module, nn.Sequential | nn.ModuleList | nn.ModuleDict):
            module._modules = dict(reversed(module._modules.items()))
    assert torch.equal(predict(network, *arguments), want)


class Calls(TorchFunctionMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.names.append(getattr(func, "__name__", str(func)))
        return func(*args, **(kwargs or {}))


@every_network
def test_every_attention_is_one_scaled_dot_product_attention(name):
    network = build_network(CONFIGS[name])
    layers = sum(isinstance(module, ATTENTIONS) for module in network.modules())
    with Calls() as calls:
        predict(network, *inputs(name, (16, 16)))
    assert layers >= 4 and calls.names.count("scaled_dot_product_attention") == layers
    assert "softmax" not in calls.names


@every_network
@every_size
@pytest.mark.parametrize("autocast", [False, True])
def test_channels_last_reaches_every_convolution(name, size, autocast):
    network = build_network(CONFIGS[name]).to(memory_format=torch.channels_last)
    seen, lost = [], []

    def look(module_name: str):
        def hook(module, args):
            seen.append(module_name)
            if not args[0].is_contiguous(memory_format=torch.channels_last):
                lost.append(module_name)

        return hook

    convolutions = {
        key: module for key, module in network.named_modules() if isinstance(module, nn.Conv2d)
    }
    for key, module in convolutions.items():
        module.register_forward_pre_hook(look(key))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        predict(network, *inputs(name, size))
    assert set(seen) == set(convolutions)
    assert lost == []


@torch.no_grad()
@pytest.mark.parametrize("name", ["sr3", "resshift"])
def test_dynamic_blocks_need_no_new_version_for_another_size(name):
    torch._dynamo.reset()
    network, versions = build_network(CONFIGS[name]).eval(), []

    def counted(graph: torch.fx.GraphModule, example: list) -> torch.fx.GraphModule:
        versions.append(graph)
        return graph

    compile_blocks(network, dynamic=True, backend=counted)
    for size in ((24, 40), (40, 24)):
        predict(network, *inputs(name, size))
    before = len(versions)
    for size in ((56, 48), (16, 24), (104, 96)):
        predict(network, *inputs(name, size))
    assert 0 < before == len(versions)


@torch.no_grad()
@every_network
def test_the_last_convolution_is_not_rounded_under_autocast(name):
    """A change of its weights that bfloat16 does not hold reaches the result."""
    network = build_network(CONFIGS[name]).eval()
    arguments = inputs(name, (16, 16))
    last = [module for module in network.modules() if isinstance(module, LastConv2d)]
    assert len(last) == 1
    nn.init.constant_(last[0].weight, 1.0)
    nn.init.zeros_(last[0].bias)
    with torch.autocast("cpu", torch.bfloat16):
        before = predict(network, *arguments)
        last[0].weight.mul_(1 + 2**-10)
        after = predict(network, *arguments)
    assert after.dtype == torch.float32
    torch.testing.assert_close(after, before * (1 + 2**-10))


@every_network
def test_recomputed_blocks_keep_less_and_give_the_same_gradients(name):
    """Dropout included: it is drawn again as it was."""
    found = []
    for recomputed in (False, True):
        torch.manual_seed(0)
        network = build_network(CONFIGS[name]).train()
        if recomputed:
            recompute_blocks(network)
        held = 0

        def keep(x: Tensor) -> Tensor:
            nonlocal held
            held += x.numel()
            return x

        args = inputs(name, (16, 16))
        torch.manual_seed(1)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            output = predict(network, *args)
        output.square().sum().backward()
        found.append((held, [p.grad for p in network.parameters()]))
    assert found[1][0] < 0.75 * found[0][0], "less is held for the backward pass"
    for plain, again in zip(found[0][1], found[1][1]):
        assert (plain is None) == (again is None) and (plain is None or torch.equal(plain, again))


def test_recomputed_blocks_compile():
    """Each is still one graph, and gives the gradients of the plain network."""
    found = []
    for compiled in (False, True):
        torch.manual_seed(0)
        network = build_network(CONFIGS["sr3"].model_copy(update={"dropout": 0.0})).train()
        if compiled:
            recompute_blocks(network)
            compile_blocks(network, backend="aot_eager")
        predict(network, *inputs_for(1)).square().sum().backward()
        found.append([p.grad for p in network.parameters() if p.grad is not None])
    for plain, again in zip(*found, strict=True):
        torch.testing.assert_close(again, plain, atol=1e-4, rtol=1e-3)


def inputs_for(seed: int):
    torch.manual_seed(seed)
    return inputs("sr3", (16, 16))
