"""After which blocks tokens go, and how many stay."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ..errors import ConfigError

Mode = Literal["ratio", "count", "tokens", "threshold"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneSchedule:
    """Pruning happens after block `layers[i]`, counted from 1, as far as `keep[i]` says.

    mode: `ratio` keeps the share keep[i] of the patch tokens that are left, rounded up; `count`
    keeps keep[i] tokens; `tokens` takes keep[i] tokens away; `threshold` keeps, image by image, the
    best tokens until they hold the share keep[i] of all scores. The class token comes on top.
    cls: `true` leaves the class token in its place among its neighbours; `center` moves it to the
    middle of what is left, as the published code of 2409.18962 does.

    >>> PruneSchedule().tokens(196, 24)[::5]
    (196, 157, 126, 101, 101)
    """

    layers: tuple[int, ...] = (5, 10, 15)
    keep: tuple[float, ...] = (0.8, 0.8, 0.8)
    mode: Mode = "ratio"
    cls: Literal["true", "center"] = "true"
    min_tokens: int = 1

    def __post_init__(self) -> None:
        """Raise ConfigError, with the option that says so, for what no model can follow."""
        if not self.layers or len(self.layers) != len(self.keep):
            raise ConfigError(
                f"a schedule has as many keeps as layers, got {self.layers} and {self.keep}"
            )
        if list(self.layers) != sorted(set(self.layers)) or self.layers[0] < 1:
            raise ConfigError(f"layers of a schedule ascend from 1 on, got {self.layers}")
        for value in self.keep:
            whole = self.mode in ("count", "tokens")
            least = 0 if self.mode == "tokens" else 1e-9
            most = 10**9 if whole else 1
            if not least <= value <= most:
                raise ConfigError(f"keep {value:g} is not above 0 and at most {most:g}")
            if whole and value != int(value):
                raise ConfigError(f"mode {self.mode} takes whole numbers, got keep {value:g}")
        if self.min_tokens < 1:
            raise ConfigError(f"at least one token stays, got min_tokens {self.min_tokens}")

    @property
    def dense(self) -> bool:
        """Whether nothing goes, whatever the image."""
        return (self.mode in ("ratio", "threshold") and set(self.keep) == {1.0}) or (
            self.mode == "tokens" and not any(self.keep)
        )

    def check(self, depth: int) -> None:
        """Raises ConfigError when the model has fewer blocks than the schedule needs."""
        if self.layers[-1] > depth:
            raise ConfigError(
                f"the schedule prunes after block {self.layers[-1]} but the model has {depth} "
                "blocks: give smaller --layers"
            )

    def count(self, point: int, left: int) -> int:
        """Patch tokens that stay at prune point number `point` when `left` are left before it."""
        value = self.keep[point]
        if self.mode == "tokens":
            wanted = left - int(value)
        elif self.mode == "count":
            wanted = int(value)
        elif self.mode == "threshold":
            wanted = left  # at most: images decide
        else:
            wanted = math.ceil(value * left - 1e-9)  # 0.55 * 100 is 55.00000000000001 in binary
        return min(left, max(self.min_tokens, wanted))

    def tokens(self, patches: int, depth: int) -> tuple[int, ...]:
        """Patch tokens that enter each block of a plain model."""
        return self.entering([(patches, depth)])

    def entering(self, stages: Sequence[tuple[int, int]]) -> tuple[int, ...]:
        """Patch tokens that enter each block, of stages given as (patches, blocks).

        Every stage begins with all of its patches: what was pruned comes back between stages.

        >>> PruneSchedule(layers=(1, 3), keep=(0.5, 0.5)).entering([(16, 2), (4, 2)])
        (16, 8, 4, 2)
        """
        self.check(sum(depth for _, depth in stages))
        entering: list[int] = []
        for patches, depth in stages:
            left = patches
            for _ in range(depth):
                entering.append(left)
                if len(entering) in self.layers:
                    left = self.count(self.layers.index(len(entering)), left)
        return tuple(entering)


# By 2409.18962's models; the layers of the first are inferred from file names of its code.
SCHEDULES = {
    "vim-t-11": PruneSchedule(layers=(10,), keep=(0.8,)),
    "vim-s-30": PruneSchedule(),
    "vim-s-40": PruneSchedule(keep=(0.7, 0.7, 0.7)),
}


def even_layers(depth: int, points: int = 3) -> tuple[int, ...]:
    """Blocks after which `points` prunings leave equal stretches.

    >>> even_layers(24), even_layers(8)
    ((6, 12, 18), (2, 4, 6))
    """
    return tuple(round(depth * (i + 1) / (points + 1)) for i in range(points))
