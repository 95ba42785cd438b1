"""What several commands of `compress3g mamba` are given, and how it is opened."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .config import PruneConfig, PruneOptions

if TYPE_CHECKING:
    from .checkpoint import Checkpoint
    from .data import Pictures

PATH = click.Path(path_type=Path)
JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
CKPT = click.option(
    "--ckpt", type=PATH, required=True, help="Published .pth, .safetensors, or a folder of ours."
)
DATA = click.option(
    "--data", type=PATH, required=True, help="Folder of classes, .npz (X, Y) or idx file."
)
DEVICE = click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda:N")
_BACKEND = click.option("--backend", default="auto", show_default=True, help="Of the kernels.")
THREADS = click.option(
    "--threads", type=click.IntRange(1, 1024), help="CPU threads (default: all)."
)
LIMIT = click.option("--limit", type=click.IntRange(1), help="Only that many pictures.")
BATCH = click.option("--batch", type=click.IntRange(1), default=50, show_default=True)


def use_threads(threads: int | None) -> None:
    """Makes kernels and torch use that many processors."""
    if threads:
        import torch

        torch.set_num_threads(threads)


def open_checkpoint(path: Path, device: str = "cpu") -> Checkpoint:
    """What `load_checkpoint` makes of it, on a device. Raises ConfigError for one that is not."""
    from ..engine import run
    from .checkpoint import load_checkpoint

    place = run.device(device)
    found = load_checkpoint(path)
    found.model.to(place)
    return found


def open_pictures(path: Path, limit: int | None) -> Pictures:
    """The data set, or its first pictures."""
    from .data import first, open_data

    found = open_data(path)
    return found if limit is None else first(found, limit)


def chosen_pruning(checkpoint: Checkpoint, options: PruneOptions) -> PruneConfig | None:
    """What the command line says, or else what the model was saved with."""
    return options.config(checkpoint.model) or checkpoint.pruning


def backend_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Gives a command --device, --backend and --threads."""
    made: Callable[..., Any] = DEVICE(_BACKEND(THREADS(command)))
    return made
