"""Handwritten digits in five colours on a small canvas: captions, images, and a score for both.

A scene is one, two or four digits; its caption says all of them ("a red seven above a blue three").
The scans are those of scikit-learn's `load_digits` (8x8, 1,797 scans, 13 writers; UCI, CC BY 4.0).
The last quarter of the file is held out, and so is every fifth scene, by a hash of its caption.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

CANVAS, CELL = 16, 8
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
COLOURS = {
    "red": (1.0, 0.1, 0.1),
    "green": (0.1, 1.0, 0.2),
    "blue": (0.2, 0.3, 1.0),
    "yellow": (1.0, 0.9, 0.1),
    "white": (1.0, 1.0, 1.0),
}
# Top left corners of the cells, and what the caption says between the digits.
LAYOUTS = {
    "one": (((4, 4),), ()),
    "above": (((0, 4), (8, 4)), ("above",)),
    "beside": (((4, 0), (4, 8)), ("beside",)),
    "square": (((0, 0), (0, 8), (8, 0), (8, 8)), ("and", "above", "and")),
}
OBJECTS = {1: ("one",), 2: ("above", "beside"), 4: ("square",)}
_TRAINING = 1348  # of the 1,797 scans: the file is in the order of its writers


@dataclass(frozen=True, slots=True)
class Scene:
    """A layout and its (colour, digit) pairs in reading order.

    >>> Scene("above", (("red", 7), ("blue", 3))).caption
    'a red seven above a blue three'
    """

    layout: str
    objects: tuple[tuple[str, int], ...]

    @property
    def caption(self) -> str:
        between = (*LAYOUTS[self.layout][1], "")
        phrases = [f"a {colour} {WORDS[digit]}" for colour, digit in self.objects]
        return " ".join(f"{p} {b}" for p, b in zip(phrases, between, strict=True)).strip()

    @property
    def held_out(self) -> bool:
        """Whether training never shows this combination."""
        return zlib.crc32(self.caption.encode()) % 5 == 0


def scenes(
    objects: int, count: int, generator: np.random.Generator, *, held_out: bool
) -> list[Scene]:
    """Random scenes of one, two or four objects, on one side of the split."""
    found: list[Scene] = []
    colours, layouts = list(COLOURS), OBJECTS[objects]
    while len(found) < count:
        drawn = generator.integers(1 << 30, size=2 * objects + 1).tolist()
        pairs = zip(drawn[:objects], drawn[objects:-1], strict=True)
        scene = Scene(
            layouts[drawn[-1] % len(layouts)],
            tuple((colours[colour % len(colours)], digit % 10) for colour, digit in pairs),
        )
        if scene.held_out == held_out:
            found.append(scene)
    return found


@lru_cache
def scans(*, held_out: bool) -> tuple[tuple[Tensor, ...], Tensor, Tensor]:
    """Scans by digit, all scans (n, 8, 8) in [0, 1], and their labels."""
    from sklearn.datasets import load_digits

    data = load_digits()
    part = slice(_TRAINING, None) if held_out else slice(0, _TRAINING)
    images = torch.from_numpy(data.images[part] / 16).float()
    labels = torch.from_numpy(data.target[part])
    return tuple(images[labels == digit] for digit in range(10)), images, labels


def draw(
    wanted: Sequence[Scene], generator: np.random.Generator, *, held_out: bool = False
) -> Tensor:
    """Images (n, 3, 16, 16) in [0, 1] of the scenes, each digit a random scan."""
    by_digit = [scan.numpy() for scan in scans(held_out=held_out)[0]]
    palette = {name: np.array(rgb, np.float32)[:, None, None] for name, rgb in COLOURS.items()}
    images = np.zeros((len(wanted), 3, CANVAS, CANVAS), np.float32)
    for image, scene in zip(images, wanted, strict=True):
        for (y, x), (colour, digit) in zip(LAYOUTS[scene.layout][0], scene.objects, strict=True):
            scan = by_digit[digit][generator.integers(len(by_digit[digit]))]
            image[:, y : y + CELL, x : x + CELL] = scan * palette[colour]
    return torch.from_numpy(images)


class Classifier(nn.Module):
    """Logits of ten digits from grey cells (n, 8, 8)."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *(
                nn.Conv2d(1, 32, 3, padding=1),
                nn.ReLU(),
                nn.Conv2d(32, 32, 3, padding=1),
                nn.ReLU(),
            ),
            *(nn.MaxPool2d(2), nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.Flatten()),
            *(nn.Linear(64 * 16, 64), nn.ReLU()),
        )
        self.head = nn.Sequential(nn.Dropout(0.3), nn.Linear(64, 10))

    def forward(self, cells: Tensor) -> Tensor:
        return self.head(self.features(cells[:, None]))

    @classmethod
    def load(cls, path: Path) -> Classifier:
        made = cls()
        made.load_state_dict(load_file(path))
        return made.eval()


def train_classifier(steps: int = 2500, seed: int = 0) -> Classifier:
    """Trained on the training scans, turned, shifted and dimmed; never on generated images."""
    torch.manual_seed(seed)
    _, images, labels = scans(held_out=False)
    model = Classifier()
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps)
    for _ in range(steps):
        index = torch.randint(len(images), (64,))
        loss = F.cross_entropy(model(_varied(images[index])), labels[index])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def _varied(cells: Tensor) -> Tensor:
    n = len(cells)
    turn = 0.15 * torch.randn(n)
    scale = 1 + 0.08 * torch.randn(n, 2)
    matrix = torch.zeros(n, 2, 3)
    matrix[:, 0, 0], matrix[:, 0, 1] = turn.cos() * scale[:, 0], -turn.sin()
    matrix[:, 1, 0], matrix[:, 1, 1] = turn.sin(), turn.cos() * scale[:, 1]
    matrix[:, :, 2] = 0.15 * torch.randn(n, 2)
    grid = F.affine_grid(matrix, [n, 1, CELL, CELL], align_corners=False)
    moved = F.grid_sample(cells[:, None], grid, align_corners=False)[:, 0]
    return (moved * (0.8 + 0.3 * torch.rand(n, 1, 1)) + 0.05 * torch.randn_like(cells)).clamp(0, 1)


@torch.no_grad()
def correct(images: Tensor, wanted: Sequence[Scene], classifier: Classifier) -> Tensor:
    """Which images (n, 3, 16, 16) in [0, 1] show their scene exactly: bool (n,).

    Every cell has the right digit, by the classifier, and the right colour, the nearest in angle;
    what is no cell is dark, less than 0.1 on average.
    """
    right = torch.zeros(len(images), dtype=torch.bool)
    palette = F.normalize(torch.tensor(list(COLOURS.values())), dim=1)
    names = list(COLOURS)
    for i, (image, scene) in enumerate(zip(images, wanted, strict=True)):
        left = image.clone()
        cells = []
        for y, x in LAYOUTS[scene.layout][0]:
            cells.append(image[:, y : y + CELL, x : x + CELL])
            left[:, y : y + CELL, x : x + CELL] = 0
        found = torch.stack(cells)
        digits = classifier(found.amax(1)).argmax(1).tolist()
        tones = (F.normalize(found.sum((2, 3)), dim=1) @ palette.T).argmax(1).tolist()
        seen = tuple((names[tone], digit) for tone, digit in zip(tones, digits, strict=True))
        empty = CANVAS * CANVAS - len(cells) * CELL * CELL
        dark = empty == 0 or float(left.amax(0).sum()) / empty < 0.1
        right[i] = seen == scene.objects and dark
    return right


@torch.no_grad()
def features(images: Tensor, wanted: Sequence[Scene], classifier: Classifier) -> Tensor:
    """The classifier's 64 features of every cell of the images, for a Frechet distance."""
    cells = [
        image[:, y : y + CELL, x : x + CELL].amax(0)
        for image, scene in zip(images, wanted, strict=True)
        for y, x in LAYOUTS[scene.layout][0]
    ]
    return classifier.features(torch.stack(cells)[:, None])


def frechet(a: Tensor, b: Tensor) -> float:
    """Frechet distance of two sets of features (n, d), each taken as a Gaussian."""
    a, b = a.double(), b.double()
    ca, cb = torch.cov(a.T), torch.cov(b.T)
    # tr sqrt(A B): the sum of the roots of the eigenvalues of A B, real and not negative.
    roots = torch.linalg.eigvals(ca @ cb).real.clamp_min(0).sqrt().sum()
    return float((a.mean(0) - b.mean(0)).square().sum() + ca.trace() + cb.trace() - 2 * roots)
