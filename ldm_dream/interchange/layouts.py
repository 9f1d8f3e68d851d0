"""Published key layouts as tables: which keys one has, what they are called here, what carries
nothing, what the shapes say.

One row a system in LAYOUTS; `importers.py` does the work.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from ldm_dream.config.model import TAESDConfig, VQGANConfig
from ldm_dream.config.networks import IDMConfig, LDMConfig, ResShiftNetConfig, SR3Config
from ldm_dream.interchange.ldm import ldm_config
from ldm_dream.networks import build_network
from ldm_dream.networks.autoencoders import build_autoencoder

Config = ResShiftNetConfig | SR3Config | IDMConfig | LDMConfig | VQGANConfig | TAESDConfig


@dataclass(frozen=True)
class Layout:
    """One published key layout. `renames` are (published, ours) pieces of a key, replaced in their
    order.
    """

    name: str
    mark: str  # regular expression that some key of this layout, and of no other, matches
    renames: tuple[tuple[str, str], ...]
    drops: (
        str | Callable[[Mapping[str, Tensor]], str]
    )  # regular expression of keys that hold nothing the network needs
    read_config: Callable[[Mapping[str, Tensor]], Config]
    build: Callable[[Config], nn.Module]
    prefix: str = ""  # what stands before every key that is kept

    def dropped(self, state: Mapping[str, Tensor]) -> set[str]:
        """Keys of `state` that `drops` names; where those depend on the depth of the network, it is
        a function of the state.
        """
        pattern = self.drops if isinstance(self.drops, str) else self.drops(state)
        return {key for key in state if re.search(pattern, key)}

    def ours(self, key: str) -> str:
        key = key.removeprefix(self.prefix)
        for published, own in self.renames:
            key = key.replace(published, own)
        return key

    def published(self, key: str) -> str:
        for published, own in self.renames:
            key = key.replace(own, published)
        return self.prefix + key


# ------------------------------------------------------------------------------ configs from shapes


def resshift_config(state: Mapping[str, Tensor]) -> ResShiftNetConfig:
    """What the shapes of ResShift's U-Net say. Dropout leaves no trace; without an extractor, z_t
    is as wide as the output.
    """
    model_channels = state["time_embed.0.weight"].shape[1]
    out_channels = state["out.2.weight"].shape[0]
    widths: list[list[int]] = [[]]  # output channels of each residual block, level by level
    swin_levels = {}
    for i in range(1, _count(state, "input_blocks")):
        if _has(state, f"input_blocks.{i}.0.op"):
            widths.append([])
            continue
        widths[-1].append(state[f"input_blocks.{i}.0.in_layers.2.weight"].shape[0])
        if _has(state, f"input_blocks.{i}.1"):
            swin_levels[len(widths) - 1] = f"input_blocks.{i}.1"
    levels = len(widths)
    layers = {**swin_levels, levels - 1: swin_levels.get(levels - 1, "middle_block.1")}
    windows = {
        level: _window(state, layer)
        for level, layer in {**layers, levels: "middle_block.1"}.items()
    }
    image_size = _image_size(state, layers, windows, levels)

    embed = state["middle_block.1.patch_embed.proj.weight"].shape[0]
    heads = state["middle_block.1.blocks.0.attn.relative_position_bias_table"].shape[1]
    extractor = [
        int(key.split(".")[1])
        for key in state
        if re.match(r"feature_extractor\.\d+\.op\.weight", key)
    ]
    in_channels = out_channels
    cond_channels = state["input_blocks.0.0.weight"].shape[1] - in_channels
    if extractor:
        cond_channels = state["feature_extractor.0.weight"].shape[1]
        in_channels = (
            state["input_blocks.0.0.weight"].shape[1]
            - state[f"feature_extractor.{max(extractor)}.op.weight"].shape[0]
        )
    return ResShiftNetConfig(
        image_size=image_size,
        in_channels=in_channels,
        out_channels=out_channels,
        cond_channels=cond_channels,
        cond_factor=2 ** len(extractor),
        model_channels=model_channels,
        channel_mult=tuple(
            _ratio(level[0], model_channels, "channels of a level over model_channels")
            for level in widths
        ),
        num_res_blocks=_one_or_each([len(level) for level in widths]),
        attention_resolutions=tuple(image_size >> level for level in swin_levels),
        swin_depth=_count(state, "middle_block.1.blocks"),
        swin_embed_dim=embed,
        num_head_channels=_ratio(embed, heads, "swin_embed_dim over heads"),
        window_size=max(windows.values()),
        mlp_ratio=state["middle_block.1.blocks.0.mlp.fc1.weight"].shape[0] / embed,
        legacy_mask=True,
    )


def _window(state: Mapping[str, Tensor], layer: str) -> int:
    rows = state[f"{layer}.blocks.0.attn.relative_position_bias_table"].shape[0]
    return (round(rows**0.5) + 1) // 2  # rows = (2 * window - 1) ** 2


def _image_size(
    state: Mapping[str, Tensor], layers: dict[int, str], windows: dict[int, int], levels: int
) -> int:
    """Training size of z_t. A shifted block keeps its mask [windows,N,N]; without any, one window
    covers the deepest level.
    """
    for level, layer in layers.items():
        if f"{layer}.blocks.1.attn_mask" in state:
            return (
                round(state[f"{layer}.blocks.1.attn_mask"].shape[0] ** 0.5) * windows[level]
                << level
            )
    return windows[levels] << (levels - 1)


def vqgan_config(state: Mapping[str, Tensor]) -> VQGANConfig:
    """What the shapes of a VQGAN say. `resolution` leaves no trace and only places attention, so it
    keeps its default.
    """
    ch = state["encoder.conv_in.weight"].shape[0]
    levels = _count(state, "encoder.down")
    resolution = VQGANConfig.model_fields["resolution"].default
    mults = [
        _ratio(
            state[f"encoder.down.{i}.block.0.conv1.weight"].shape[0],
            ch,
            "channels of a level over ch",
        )
        for i in range(levels)
    ]
    return VQGANConfig(
        ch=ch,
        ch_mult=tuple(mults),
        num_res_blocks=_one_or_each(
            [_count(state, f"encoder.down.{i}.block") for i in range(levels)]
        ),
        attn_resolutions=tuple(
            resolution >> i for i in range(levels) if _has(state, f"encoder.down.{i}.attn")
        ),
        mid_attention=_has(state, "encoder.mid.attn_1"),
        z_channels=state["encoder.conv_out.weight"].shape[0],
        embed_dim=state["quant_conv.weight"].shape[0],
        n_embed=state["quantize.embedding.weight"].shape[0],
    )


def idm_config(state: Mapping[str, Tensor]) -> IDMConfig:
    """What the shapes of IDM say. Training size, groups, dropout and the largest scale leave no
    trace and keep their defaults.
    """
    model_channels, all_channels = state["denoise_fn.downs.0.weight"].shape[:2]
    cond_channels = state["encoder.head.0.weight"].shape[1]
    widths, attention = _sr3_levels(state)
    blocks = _one_or_each([len(level) for level in widths])
    if not isinstance(blocks, int):
        raise ValueError(
            f"levels have {blocks} residual blocks, where IDM has the same number in each"
        )
    image_size = IDMConfig.model_fields["image_size"].default
    return IDMConfig(
        in_channels=all_channels - cond_channels,
        out_channels=state["denoise_fn.final_conv.block.3.weight"].shape[0],
        cond_channels=cond_channels,
        model_channels=model_channels,
        channel_mult=tuple(
            _ratio(level[0], model_channels, "channels of a level over model_channels")
            for level in widths
        ),
        num_res_blocks=blocks,
        attention_resolutions=tuple(image_size >> level for level in attention),
        encoder_blocks=_count(state, "encoder.body") - 1,
        encoder_channels=state["encoder.head.0.weight"].shape[0],
    )


def idm_drops(state: Mapping[str, Tensor]) -> str:
    """The schedule's buffers, and what never reaches the output: 46 tensors with 16,789,215
    parameters in the published network.

    An MLP and layers of the U-Net that nothing calls; EDSR's mean shift; all of a StyleGAN
    convolution but its activation; the last stage of the LR branch; the proportions of level 0,
    which has no decoder.
    """
    last = _count(state, "denoise_fn.conv_body_down") - 1
    schedule = r"^(betas|ddim_c1|\w*alphas_cumprod\w*|posterior_\w+)$"
    uncalled = (
        r"^imnet\.|^encoder\.(sub|add)_mean\.|^denoise_fn\.final_(down1|down2|linear|styleconv)\."
    )
    unread = rf"\.style\.(modulated_conv\.|weight$)|\.conv_body_down\.{last}\.|\.condition_(scale1|scale2|shift)\.0\."
    return f"{schedule}|{uncalled}|{unread}"


def sr3_config(state: Mapping[str, Tensor]) -> SR3Config:
    """What the shapes of SR3's U-Net say. Not in them: dropout; norm_groups, which is 16 in the
    published 64 -> 512 network (one block a level, no attention), 32 in the others; `image_size`,
    which only places attention: all have it at size 16, if any.
    """
    inner = state["denoise_fn.downs.0.weight"].shape[0]
    levels, attn = _sr3_levels(state)
    image_size = 16 << attn[0] if attn else 128
    out_channels = state["denoise_fn.final_conv.block.3.weight"].shape[0]
    return SR3Config(
        image_size=image_size,
        in_channels=out_channels,
        out_channels=out_channels,
        cond_channels=state["denoise_fn.downs.0.weight"].shape[1] - out_channels,
        model_channels=inner,
        channel_mult=tuple(
            _ratio(level[0], inner, "channels of a level over model_channels") for level in levels
        ),
        num_res_blocks=len(levels[0]),
        attention_resolutions=tuple(image_size >> level for level in attn),
        norm_groups=16 if len(levels[0]) == 1 and not attn else 32,
    )


def _sr3_levels(state: Mapping[str, Tensor]) -> tuple[list[list[int]], list[int]]:
    """Of the way down in SR3's U-Net, which IDM shares: output channels of each block, level by
    level; levels with attention.
    """
    widths: list[list[int]] = [[]]
    attention = set()
    for i in range(1, _count(state, "denoise_fn.downs")):
        layer = f"denoise_fn.downs.{i}"
        if _has(state, f"{layer}.conv"):
            widths.append([])
            continue
        widths[-1].append(state[f"{layer}.res_block.block2.block.3.weight"].shape[0])
        if _has(state, f"{layer}.attn"):
            attention.add(len(widths) - 1)
    return widths, sorted(attention)


def taesd_config(state: Mapping[str, Tensor]) -> TAESDConfig:
    """What the shapes of a TAESD say."""
    return TAESDConfig(
        latent_channels=state["encoder.14.weight"].shape[0],
        group_norm_branch=_has(state, "encoder.11.pool"),
    )


def _has(state: Mapping[str, Tensor], prefix: str) -> bool:
    return any(key.startswith(prefix + ".") for key in state)


def _count(state: Mapping[str, Tensor], prefix: str) -> int:
    """Children of `prefix`, which are numbered from 0."""
    numbers = [
        int(match[1]) for key in state if (match := re.match(rf"{re.escape(prefix)}\.(\d+)\.", key))
    ]
    return max(numbers, default=-1) + 1


def _ratio(part: int, whole: int, what: str) -> int:
    if part % whole:
        raise ValueError(f"{what} is {part} / {whole}, which is no whole number")
    return part // whole


def _one_or_each(counts: list[int]) -> int | tuple[int, ...]:
    return counts[0] if len(set(counts)) == 1 else tuple(counts)


# ------------------------------------------------------------------------------------------ layouts


RESSHIFT = Layout(
    name="ResShift U-Net",
    mark=r"^middle_block\.1\.blocks\.\d+\.",
    renames=((".patch_embed.proj.", ".patch_embed."), (".patch_unembed.proj.", ".patch_unembed.")),
    # follow from the sizes; the official code does not read them either
    drops=r"\.(attn_mask|relative_position_index)$",
    read_config=resshift_config,
    build=build_network,
)
IDM = Layout(
    name="IDM",
    mark=r"^denoise_fn\.conv_body_first\.",
    renames=(
        ("denoise_fn.", "unet."),
        ("noise_level_mlp.1.", "noise_level_mlp.0."),
        ("noise_level_mlp.3.", "noise_level_mlp.2."),
        (".noise_func.noise_func.0.", ".noise_func."),
        (".block1.block.", ".block1."),
        (".block2.block.", ".block2."),
        (".final_conv.block.", ".final_conv."),
        (".conv.", ".op."),
        ("encoder.head.0.", "encoder.head."),
        ("encoder.tail.0.", "encoder.tail."),
    ),
    drops=idm_drops,
    read_config=idm_config,
    build=build_network,
)
SR3 = Layout(  # stands behind IDM in LAYOUTS, which has these keys too
    name="SR3 U-Net (SR3, DREAM)",
    mark=r"^denoise_fn\.noise_level_mlp\.",  # the authors' other network, "ddpm", has a time_mlp
    renames=(
        (".res_block.noise_func.noise_func.0.", ".noise."),
        (".res_block.block1.block.0.", ".norm1."),
        (".res_block.block1.block.3.", ".conv1."),
        (".res_block.block2.block.0.", ".norm2."),
        (".res_block.block2.block.3.", ".conv2."),
        (".res_block.res_conv.", ".res_conv."),
        ("final_conv.block.0.", "norm_out."),
        ("final_conv.block.3.", "conv_out."),
        ("noise_level_mlp.1.", "noise_level_mlp.0."),
        ("noise_level_mlp.3.", "noise_level_mlp.2."),
    ),
    drops=r"^[^.]+$",  # the schedule's buffers, whose length depends on it
    read_config=sr3_config,
    build=build_network,
    prefix="denoise_fn.",
)
VQGAN = Layout(
    name="VQGAN (LDM vq-f4, ResShift vq-f4 and vq-f8, taming)",
    mark=r"^quantize\.embedding\.",
    renames=(),
    drops=r"^loss\.",  # LPIPS and discriminator, which LDM and taming save along
    read_config=vqgan_config,
    build=build_autoencoder,
)
TAESD = Layout(
    name="TAESD (TAEF1, TAEF2, ...)",
    mark=r"^(encoder|decoder)\.\d+\.conv\.0\.",
    renames=(),
    drops=r"^$",
    read_config=taesd_config,
    build=build_autoencoder,
)
LDM = Layout(
    name="LDM-SR U-Net",
    mark=r"^middle_block\.1\.qkv\.",
    renames=(),
    drops=r"^$",
    read_config=ldm_config,
    build=build_network,
)
LAYOUTS = (RESSHIFT, IDM, SR3, VQGAN, TAESD, LDM)
