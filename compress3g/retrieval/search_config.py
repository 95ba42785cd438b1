"""How an index is searched and evaluated: options follow from these."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from ..errors import ConfigError

GraphName = Literal["auto", "on", "off"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchConfig:
    """How a search is done. n0, n1, n2: pages that the graph and stages 1 and 2 pass on."""

    k: int = field(default=10, metadata={"help": "Hits to return."})
    n1: int | None = field(
        default=None, metadata={"help": "Pages that stage 1 passes on (default: 10 k, >= 200)."}
    )
    n2: int | None = field(
        default=None, metadata={"help": "Pages that stage 2 passes on (default: 4 k, >= 50)."}
    )
    graph: GraphName = field(
        default="auto",
        metadata={"help": "Scan only pages its graph finds; auto: in an index of half a million."},
    )
    n0: int | None = field(
        default=None, metadata={"help": "Pages that the graph passes on (default: 10 n1)."}
    )
    exact: bool = field(
        default=False, metadata={"help": "Score every page with its stored vectors."}
    )
    query_keep: float = field(
        default=1.0, metadata={"help": "Share of query tokens to keep, the rarest; at least 4."}
    )

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ConfigError(f"--k {self.k} is out of range: at least 1")
        if self.graph not in get_args(GraphName):
            raise ConfigError(f"--graph {self.graph}: choose from {', '.join(get_args(GraphName))}")
        for name in ("n0", "n1", "n2"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"--{name} {value} is out of range: at least 1")
        if not 0 < self.query_keep <= 1:
            raise ConfigError(f"--query-keep {self.query_keep} is out of range: above 0, at most 1")

    @property
    def depths(self) -> tuple[int, int]:
        """n1 and n2 as they will be."""
        n1 = self.n1 or max(10 * self.k, 200)
        n2 = self.n2 or max(4 * self.k, 50)
        return max(n1, self.k), max(min(n2, n1), self.k)

    @property
    def graph_depth(self) -> int:
        """n0 as it will be."""
        n1, _ = self.depths
        return max(self.n0 or 10 * n1, n1)


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalConfig:
    """What is compared. keep: share of vectors of the pruning rows, 0 for none of these."""

    keep: float = field(
        default=0.0,
        metadata={"help": "Also rank with this share of patches, chosen by each signal."},
    )
    seed: int = field(default=0, metadata={"help": "Of random pruning and of the bootstrap."})
