"""Tiny random denoisers without a pipeline, and scores of their units; pipelines.py makes those."""

from __future__ import annotations

from typing import Any

import torch

from ..core.architectures import ARCHITECTURES, dense  # noqa: F401
from .pipelines import captions, classes  # noqa: F401

FAMILIES = [name for name in ARCHITECTURES if "2DModel" in name or "2DCondition" in name]


class Pipe:
    """As much of a pipeline as surgery looks at."""

    def __init__(self, transformer: Any) -> None:
        self.transformer = transformer

    def register_modules(self, **parts: Any) -> None:
        vars(self).update(parts)


def dense_copy(name: str, seed: int = 0) -> Any:
    """A fresh model of a family, at no risk of being shared between tests."""
    torch.manual_seed(seed)
    return ARCHITECTURES[name].build()


def random_scores(units: Any, seed: int = 0) -> Any:
    g = torch.Generator().manual_seed(seed)
    return {u.name: torch.rand(u.size, generator=g) for u in units}
