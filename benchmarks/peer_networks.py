"""Two published networks that no package brings, as plain modules that take the authors' weights.

IMDN (Hui et al., ACM MM 2019; github.com/Zheng222/IMDN 0db43e1, model/block.py and architecture.py):
six blocks that put a quarter of their channels aside after each convolution.
Fast-SRGAN (github.com/HasnainRaz/Fast-SRGAN 2c09baa, the network of models/model.pt): residual blocks,
two pixel shuffles. Its norms have no weights: that they are instance norms is known by the result
(26.1 dB on a picture of Set5, 8.0 without them).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

WIDTH, KEPT = 64, 16  # channels; those that an IMDN block puts aside


class Imdn(nn.Module):
    """RGB [n, 3, h, w] in [0, 1] -> [n, 3, 4h, 4w] in about [0, 1]."""

    def __init__(self):
        super().__init__()
        self.fea_conv = _conv(3, WIDTH)
        self.blocks = [f"IMDB{i}" for i in range(1, 7)]
        for name in self.blocks:
            self.add_module(name, _Distilling())
        self.c = nn.Sequential(nn.Conv2d(6 * WIDTH, WIDTH, 1), nn.LeakyReLU(0.05))
        self.LR_conv = _conv(WIDTH, WIDTH)
        self.upsampler = nn.Sequential(_conv(WIDTH, 3 * 16), nn.PixelShuffle(4))

    def forward(self, x: Tensor) -> Tensor:
        first = h = self.fea_conv(x)
        found = []
        for name in self.blocks:
            h = self.get_submodule(name)(h)
            found.append(h)
        return self.upsampler(self.LR_conv(self.c(torch.cat(found, 1))) + first)


class _Distilling(nn.Module):
    def __init__(self):
        super().__init__()
        self.c1, self.c2, self.c3, self.c4 = (
            _conv(i, o)
            for i, o in ((WIDTH, WIDTH), *[(WIDTH - KEPT, WIDTH)] * 2, (WIDTH - KEPT, KEPT))
        )
        self.c5 = nn.Conv2d(WIDTH, WIDTH, 1)
        self.cca = _Contrast()

    def forward(self, x: Tensor) -> Tensor:
        rest, kept = x, []
        for conv in (self.c1, self.c2, self.c3):
            aside, rest = nn.functional.leaky_relu(conv(rest), 0.05).split((KEPT, WIDTH - KEPT), 1)
            kept.append(aside)
        return self.c5(self.cca(torch.cat([*kept, self.c4(rest)], 1))) + x


class _Contrast(nn.Module):
    """Weighs channels by their deviation and mean over the picture."""

    def __init__(self):
        super().__init__()
        few = WIDTH // 16
        self.conv_du = nn.Sequential(
            nn.Conv2d(WIDTH, few, 1), nn.ReLU(), nn.Conv2d(few, WIDTH, 1), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        deviation = x.std((2, 3), correction=0, keepdim=True)
        return x * self.conv_du(deviation + x.mean((2, 3), keepdim=True))


class FastSrgan(nn.Module):
    """RGB [n, 3, h, w] in [0, 1] -> [n, 3, 4h, 4w] in [0, 1]; inside, [-1, 1]."""

    def __init__(self):
        super().__init__()
        self.neck = nn.Sequential(_conv(3, WIDTH), nn.PReLU())
        self.stem = nn.Sequential(*(_Residual() for _ in range(8)))
        self.bottleneck = nn.Sequential(_conv(WIDTH, WIDTH, bias=False), nn.InstanceNorm2d(WIDTH))
        self.upsampling = nn.Sequential(_Doubling(), _Doubling())
        self.head = nn.Sequential(_conv(WIDTH, 3), nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        first = self.neck(x * 2 - 1)
        h = self.bottleneck(self.stem(first)) + first
        return (self.head(self.upsampling(h)) + 1) / 2


class _Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = (_conv(WIDTH, WIDTH, bias=False) for _ in range(2))
        self.relu1, self.norm = nn.PReLU(), nn.InstanceNorm2d(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv2(self.relu1(self.norm(self.conv1(x))))) + x


class _Doubling(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.relu = _conv(WIDTH, 4 * WIDTH), nn.PReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(nn.functional.pixel_shuffle(self.conv(x), 2))


def _conv(before: int, after: int, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(before, after, 3, padding=1, bias=bias)
