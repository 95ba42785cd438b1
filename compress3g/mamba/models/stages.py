"""Models of several stages: where tokens may go, and what a stage costs."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from ..schedule import even_layers


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Blocks that share a grid of patches; a plain model is one stage."""

    depth: int
    patches: int  # of one sequence
    sequences: int = 1  # per image: windows
    width: int  # of a token, d
    inner: int  # channels inside a mixer, E


def doubled(width: int, stages: int) -> tuple[int, ...]:
    """Width of each stage, d: twice as much in each next one."""
    return tuple(width * 2**i for i in range(stages))


def halved(image: tuple[int, int], stages: int) -> tuple[tuple[int, int], ...]:
    """Patches of each stage along height and width; a stem halves the sides before the first.

    Every stride of 2 rounds up.

    >>> halved((224, 200), 3)
    ((56, 50), (28, 25), (14, 13))
    """
    found = []
    high, wide = (-(-side // 2) for side in image)
    for _ in range(stages):
        high, wide = -(-high // 2), -(-wide // 2)
        found.append((high, wide))
    return tuple(found)


def ends(depths: Sequence[int]) -> frozenset[int]:
    """Numbers, from 1 on, of the blocks after which a stage ends.

    >>> sorted(ends((2, 2, 8, 2)))
    [2, 4, 12, 14]
    """
    return frozenset(sum(depths[: i + 1]) for i in range(len(depths)))


def spread(depths: Sequence[int], usable: Collection[int] | None = None) -> tuple[int, ...]:
    """Where tokens go when nobody says: three blocks evenly over the longest stage.

    usable: only these, and of several stages never the last block of one. When none of the three is
    among them, the first usable block.

    >>> spread((24,)), spread((2, 2, 8, 2)), spread((8, 4), usable=(1, 2, 3, 4))
    ((6, 12, 18), (6, 8, 10), (2, 4))
    """
    if len(depths) == 1 and usable is None:
        return even_layers(depths[0])
    longest = max(range(len(depths)), key=depths.__getitem__)
    numbers = set(range(1, sum(depths) + 1) if usable is None else usable)
    numbers -= ends(depths)
    before = sum(depths[:longest])
    wanted = {before + i for i in even_layers(depths[longest])} & numbers
    return tuple(sorted(wanted or set(sorted(numbers)[:1])))
