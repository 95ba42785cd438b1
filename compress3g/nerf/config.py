"""What a training run is made of: one frozen dataclass, from which options and TOML keys follow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..engine.fields import check_ranges, option
from ..errors import ConfigError

PrunerName = Literal["rewind", "saliency", "projected", "paper"]


# Both ends included.
_RANGES: dict[str, tuple[float, float]] = {
    "steps": (1, 10**9),
    "seconds": (1e-3, 1e8),
    "log2_hashmap": (3, 24),
    "finest": (16, 8192),
    "samples": (256, 1 << 22),
    "learning_rate": (1e-8, 1),
    "march": (16, 8192),
    "occupancy": (8, 256),
    "saliency_res": (2, 256),
    "sparsity": (1e-6, 0.999),
    "rho": (0, 1e6),
    "dual_lr": (0, 1e6),
    "saliency_lr": (1e-8, 10),
    "prune_start": (0, 0.99),
    "rewind_limit": (0.01, 0.9),
    "visible": (1e-6, 0.999),
    "seed": (0, 2**63 - 1),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """Everything that decides a run besides the scene."""

    hollow: bool = option(False, "Prune space while training (HollowNeRF).")
    pruner: PrunerName = option("rewind", "How --hollow finds the space worth features.")
    steps: int | None = option(None, "Train this many steps (default 2000).")
    seconds: float | None = option(None, "Train this long instead, seconds of wall time.")
    log2_hashmap: int = option(15, "Log2 of the entries per level, T; paper 14 to 19.")
    finest: int = option(1024, "Resolution of the finest level, cells per axis.")
    samples: int | None = option(
        None, "Samples per step; rays adapt to it (default 16384, on a GPU 262144)."
    )
    learning_rate: float = option(1e-2, "Of Adam, decaying to a tenth over the run.")
    march: int = option(384, "Samples along a diagonal of the box; 1024 suits 800-pixel images.")
    occupancy: int = option(64, "Cells per axis of the occupancy grid and of the mask.")
    hull: bool = option(
        True, "Carve space by the images' alpha before training, where they have one."
    )
    saliency_res: int = option(64, "Vertices per axis of the saliency grid, R.")
    sparsity: float | None = option(
        None, "Share of G to keep, C (default 0.05, pruner paper 0.04)."
    )
    rho: float = option(1e-2, "Penalty weight of the constraint S(G) < C.")
    dual_lr: float = option(1e-3, "Step of dual ascent on gamma.")
    saliency_lr: float = option(0.3, "Adam's rate for the saliency grid.")
    prune_start: float = option(0.07, "Share of the run before pruning starts.")
    rewind_limit: float = option(0.1, "Largest share of the run for the first phase of rewind.")
    visible: float = option(0.01, "Rendering weight from which rewind keeps a cell.")
    seed: int = option(0, "Of everything random.")

    def __post_init__(self) -> None:
        """Raise ConfigError naming the field for every value nothing can be trained with."""
        check_ranges(self, _RANGES)
        if self.steps is not None and self.seconds is not None:
            raise ConfigError("--steps and --seconds exclude each other: give one of them")
