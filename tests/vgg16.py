"""A VGG16 of random weights in a file, under torchvision's names."""

from pathlib import Path

import torch

LAYERS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
WIDTHS = (3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)


def vgg16_file(folder: Path) -> Path:
    """Its activations keep the size of what went in."""
    generator, state = torch.Generator().manual_seed(0), {}
    for layer, before, after in zip(LAYERS, WIDTHS, WIDTHS[1:]):
        weight = torch.randn(after, before, 3, 3, generator=generator)
        state[f"features.{layer}.weight"] = weight * (2 / (9 * before)) ** 0.5
        state[f"features.{layer}.bias"] = torch.zeros(after)
    torch.save(state, folder / "vgg16.pth")
    return folder / "vgg16.pth"
