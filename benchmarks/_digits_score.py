"""Which images of the shipped text-to-image model show what their caption says.

compress3g diffusion eval pipelines/digits_t2i SMALL --prompts captions.txt
        --score benchmarks/_digits_score.py:right
"""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path

import torch
from _digits import LAYOUTS, WORDS, Classifier, Scene, correct
from torch import Tensor

MODEL = Path(__file__).parent.parent / "pipelines" / "digits_t2i"


@lru_cache
def _judge() -> Classifier:
    return Classifier.load(MODEL / "classifier.safetensors")


def scene(caption: str) -> Scene:
    """The scene that has this caption. ValueError when there is none."""
    pairs = re.findall(rf"(\w+) ({'|'.join(WORDS)})\b", caption)
    objects = tuple((colour, WORDS.index(digit)) for colour, digit in pairs)
    for layout, (cells, _) in LAYOUTS.items():
        if len(cells) == len(objects) and Scene(layout, objects).caption == caption.strip():
            return Scene(layout, objects)
    raise ValueError(f"{caption!r} is no caption of a scene of digits")


def right(images: Tensor, captions: list[str]) -> Tensor:
    """1 for images (n, 3, h, w) in [0, 1] that are right in every digit and colour, else 0."""
    with torch.no_grad():
        return correct(images, [scene(c) for c in captions], _judge()).float()
