"""The shape of a multi-resolution grid: which resolution lives where in one flat table."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

from ...errors import ConfigError

PRIMES = (1, 2654435761, 805459861)


@dataclass(frozen=True, slots=True)
class Levels:
    """Resolutions N_l (cells per axis), first entries, and entry counts of all levels.

    A level with (N_l + 1)^3 <= its entry count is dense, index x + y (N+1) + z (N+1)^2; any other
    is hashed, (x ^ y 2654435761 ^ z 805459861) mod 2^32 mod T, T a power of two. A ranked level
    looks its entry up: vertex x + y (N+1) + z (N+1)^2 is entry ranks[first_rank + vertex] of an
    int32 tensor that comes with the table. `first_ranks` is -1 for levels without.
    """

    resolutions: tuple[int, ...]
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    features: int
    first_ranks: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.first_ranks:
            object.__setattr__(self, "first_ranks", (-1,) * len(self.resolutions))

    @property
    def entries(self) -> int:
        """Entries of all levels together: rows of the table."""
        return self.offsets[-1] + self.sizes[-1]

    @property
    def width(self) -> int:
        """Features of one encoded point: levels x features."""
        return len(self.resolutions) * self.features

    def dense(self, level: int) -> bool:
        """Whether this level has one entry per vertex."""
        return (self.resolutions[level] + 1) ** 3 <= self.sizes[level]

    @property
    def ranks(self) -> int:
        """Length of the tensor of ranks: vertices of all ranked levels together."""
        ranked = zip(self.resolutions, self.first_ranks, strict=True)
        return sum((cells + 1) ** 3 for cells, first in ranked if first >= 0)

    def mask(self, level: int) -> int:
        """T - 1 for a hashed level, 0 for a dense or a ranked one."""
        return 0 if self.first_ranks[level] >= 0 or self.dense(level) else self.sizes[level] - 1

    @staticmethod
    def geometric(
        *,
        count: int = 16,
        features: int = 2,
        log2_size: int = 19,
        coarsest: int = 16,
        finest: int = 1024,
    ) -> Levels:
        """Levels N_l = ceil(N_min b^l), b = (N_max / N_min)^(1 / (L - 1)), of 2^log2_size at most.

        Entry counts are rounded up to a multiple of 8. HollowNeRF (2308.10122) uses 16 levels from
        16 to 1024; with this rule all 24 parameter counts of its Table 1 come out to the digit.

        >>> Levels.geometric(log2_size=15).entries
        467464
        """
        if not (count >= 1 and features >= 1 and 1 <= coarsest <= finest and 3 <= log2_size <= 24):
            raise ConfigError(
                f"a grid of {count} levels of {features} features from {coarsest} to {finest} with "
                f"2^{log2_size} entries is impossible: need coarsest <= finest and 3 <= log2 size "
                "<= 24"
            )
        growth = (finest / coarsest) ** (1 / (count - 1)) if count > 1 else 1.0
        # The small subtraction keeps N_max exact: 16 b^15 is 1024.0000000000002 in floating point.
        resolutions = tuple(math.ceil(coarsest * growth**level - 1e-6) for level in range(count))
        return Levels._of(resolutions, 1 << log2_size, features)

    @staticmethod
    def ranked(
        resolutions: tuple[int, ...], sizes: tuple[int, ...], features: int = 2, *, hashed: int = 0
    ) -> Levels:
        """Levels that look their entries up, of any size, but for the last `hashed` ones."""
        starts = itertools.accumulate(sizes, initial=0)
        looked_up = len(resolutions) - hashed
        ranks = itertools.accumulate(((n + 1) ** 3 for n in resolutions[:looked_up]), initial=0)
        first_ranks = (*tuple(ranks)[:-1], *[-1] * hashed)
        return Levels(resolutions, tuple(starts)[:-1], sizes, features, first_ranks)

    @staticmethod
    def single(vertices: int, features: int = 1) -> Levels:
        """One dense level with `vertices` per axis on the faces of the box (align_corners=True)."""
        if vertices < 2:
            raise ConfigError(f"a dense grid needs at least 2 vertices per axis, got {vertices}")
        return Levels((vertices - 1,), (0,), (vertices**3,), features)

    @staticmethod
    def _of(resolutions: tuple[int, ...], limit: int, features: int) -> Levels:
        sizes = tuple(-(-min(limit, (n + 1) ** 3) // 8) * 8 for n in resolutions)
        offsets = tuple(sum(sizes[:level]) for level in range(len(sizes)))
        return Levels(resolutions, offsets, sizes, features)
