"""A model, pruned or not, as one graph of torch's own operators."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from ..engine.checkpoint import atomic_write
from ..errors import ConfigError
from ..kernels import registry
from .patch import pruning_of


def export(
    model: nn.Module, *, batch: int = 1, scan: Literal["chunked", "looped"] = "chunked"
) -> torch.export.ExportedProgram:
    """The program of `torch.export` for `batch` images of the model's size.

    The numbers of tokens are fixed by the schedule; which tokens stay still depends on the image.
    The scan is written out in torch's operators, so that the program runs without this package:
    `chunked` in many small ones, `looped` in one that repeats a step.
    Raises ConfigError for a schedule by threshold, whose numbers depend on the image.
    """
    pruning = pruning_of(model)
    if pruning is not None and pruning.config.schedule.mode == "threshold":
        raise ConfigError("a schedule by threshold has no fixed shapes: use mode ratio or count")
    config: Any = model.config
    images = torch.randn(batch, config.channels, *config.image)
    model.eval()
    written_out = registry.use(selective_scan=scan, causal_conv="reference")
    with torch.no_grad(), written_out:
        return torch.export.export(model, (images,), strict=False)


def save_program(path: Path, program: torch.export.ExportedProgram) -> None:
    """Writes a .pt2 file, whole or not at all, for `torch.export.load`."""
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    atomic_write(path, lambda file: file.write(buffer.getvalue()))
