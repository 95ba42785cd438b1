"""TAEF2, a tiny autoencoder in FLUX.2's latents (madebyollin/taesd, MIT), from its weight files.

32 latent channels at an eighth of the size. Its blocks at that size add what a group norm over the
whole picture sees; diffusers' AutoencoderTiny has no such blocks, so it cannot hold these weights.
All the other blocks it can: `student` is a decoder of that class that has them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

CHANNELS, WIDTH = 32, 64


class _Block(nn.Module):
    """Three convolutions beside the input; with `pool`, after adding what a group norm sees."""

    def __init__(self, pool: bool) -> None:
        super().__init__()
        steps: list[nn.Module] = [nn.Conv2d(WIDTH, WIDTH, 3, padding=1)]
        for _ in range(2):
            steps += [nn.ReLU(), nn.Conv2d(WIDTH, WIDTH, 3, padding=1)]
        self.conv = nn.Sequential(*steps)
        self.pool = (
            nn.Sequential(
                nn.Conv2d(WIDTH, 4 * WIDTH, 1, bias=False),
                nn.GroupNorm(4, 4 * WIDTH),
                nn.ReLU(),
                nn.Conv2d(4 * WIDTH, WIDTH, 1, bias=False),
            )
            if pool
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.pool is not None:
            x = x + self.pool(x)
        return (x + self.conv(x)).relu()


class _Clamp(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x / 3).tanh() * 3


def _load(layers: Sequence[nn.Module], file: Path) -> nn.Sequential:
    made = nn.Sequential(*layers)
    made.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    return made.float().eval().requires_grad_(False)


def encoder(folder: Path) -> nn.Sequential:
    """Latents (n, 32, h/8, w/8) of pictures (n, 3, h, w) in [0, 1]."""
    layers: list[nn.Module] = [nn.Conv2d(3, WIDTH, 3, padding=1), _Block(pool=False)]
    for level in range(3):
        layers.append(nn.Conv2d(WIDTH, WIDTH, 3, stride=2, padding=1, bias=False))
        layers += [_Block(pool=level == 2) for _ in range(3)]
    return _load([*layers, nn.Conv2d(WIDTH, CHANNELS, 3, padding=1)], folder / "taef2_encoder.pth")


def decoder(folder: Path) -> nn.Sequential:
    """Pictures (n, 3, h, w) in [0, 1], as good as, of latents (n, 32, h/8, w/8)."""
    layers: list[nn.Module] = [_Clamp(), nn.Conv2d(CHANNELS, WIDTH, 3, padding=1), nn.ReLU()]
    for level in range(3):
        layers += [_Block(pool=level == 0) for _ in range(3)]
        layers += [nn.Upsample(scale_factor=2), nn.Conv2d(WIDTH, WIDTH, 3, padding=1, bias=False)]
    layers += [_Block(pool=False), nn.Conv2d(WIDTH, 3, 3, padding=1)]
    return _load(layers, folder / "taef2_decoder.pth")


SMALL = 6  # layers of the decoder at an eighth of the size, the clamp among them


def student(teacher: nn.Sequential, layers: nn.Sequential, mean: Tensor, scale: Tensor) -> None:
    """Gives an AutoencoderTiny's decoder the teacher's weights, for latents mean + scale * z.

    What is missing is the group norms of its first three blocks. Shapes: mean, scale (32,).
    """
    with torch.no_grad():
        for i in range(1, len(teacher)):
            layers[i - 1].load_state_dict(
                {k: v for k, v in teacher[i].state_dict().items() if not k.startswith("pool")}
            )
        first: Any = layers[0]
        first.bias += (first.weight.sum((2, 3)) * mean).sum(1)
        first.weight *= scale[None, :, None, None]
