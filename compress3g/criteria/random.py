"""The control: whoever cannot beat it has measured nothing."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..core import Gates, Units


def random(units: Sequence[Units], generator: torch.Generator) -> Gates:
    """Uniform numbers."""
    return {u.name: torch.rand(u.size, generator=generator) for u in units}
