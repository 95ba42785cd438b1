"""A model that is looked at, and must not learn or drop anything meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def held(model: nn.Module) -> Iterator[None]:
    """Parameters without gradients and evaluation mode; afterwards as before, module by module."""
    modes = {m: m.training for m in model.modules()}
    learnable = [p for p in model.parameters() if p.requires_grad]
    model.eval()
    for p in learnable:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
        for p in learnable:
            p.requires_grad_(True)
