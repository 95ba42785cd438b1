"""A phase of a run: one field trained from its initial values to the end of the phase."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Bool
from torch import Tensor

from ..kernels.hash_grid import Levels
from .config import TrainConfig


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Phase:
    """Which grid is trained during [begin, end) of the run, and how space is sampled meanwhile."""

    name: str
    levels: Levels
    march_step: float  # distance between samples, in units of the cube
    kept: Bool[Tensor, "z y x"] | None = None  # the mask that ranked levels lie inside
    begin: float = 0.0
    end: float = 1.0
    occupancy_every: int = 16  # steps between updates of the occupancy grid
    warm_up: int = 128  # steps in which every cell is refreshed, not a quarter

    @staticmethod
    def whole(config: TrainConfig) -> Phase:
        """The only phase of a run without rewind."""
        levels = Levels.geometric(log2_size=config.log2_hashmap, finest=config.finest)
        return Phase(name="main", levels=levels, march_step=3**0.5 / config.march)
