"""What an index is made of: one frozen dataclass, from which options and TOML keys follow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, get_args

from ..engine.fields import option
from ..errors import ConfigError

LARGEST = 1 << 16  # centroids
ResidualName = Literal["none", "res1", "res2", "res4", "pq16", "pq32", "int8", "f16"]
SignalName = Literal["indegree", "last_row", "last_indegree", "norm"]  # what an encoder can tell
SaliencyName = Literal[SignalName, "rare", "random"]
BinaryName = Literal["none", "sign"]
StoreName = Literal["none", "f16", "int8"]

_MANY_PAGES = 50_000


_NAMES = {
    "residual": ResidualName, "store": StoreName, "binary": BinaryName, "saliency": SaliencyName,
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexConfig:
    """Everything that decides how vectors are stored; the defaults are the preset `balanced`."""

    k: int | Literal["auto"] = option("auto", "Centroids; auto: 4096, above 50,000 pages 16384.")
    residual: ResidualName = option("pq16", "What of a vector is kept besides its code.")
    store: StoreName = option("none", "Keep the vectors themselves too, for exact search.")
    binary: BinaryName = option("none", "Bits a vector for Hamming search, besides codes.")
    pool: int = option(1, "Merge the patches of a page to one in so many.")
    keep: float | Literal["auto"] = option(1.0, "Share of patches to keep by saliency, or auto.")
    saliency: SaliencyName = option("indegree", "What --keep goes by.")
    graph: bool = option(False, "A graph over pages too, for searches of very large collections.")
    patches: bool = option(
        True, "Keep a code per patch, for heat maps; else one per distinct code."
    )
    grow: bool = option(
        True, "Train the codebook anew as the index grows, and keep bytes of vectors until then."
    )
    seed: int = option(0, "Of everything random.")

    def __post_init__(self) -> None:
        """Raise ConfigError naming the option for every value no index can be made with."""
        whole = isinstance(self.k, int) and 1 <= self.k <= LARGEST
        share = not isinstance(self.keep, str) and 0 < self.keep <= 1
        checks = {
            "k": (self.k == "auto" or whole, f"auto, or 1 to {LARGEST}"),
            "pool": (isinstance(self.pool, int) and self.pool >= 1, "1 or more"),
            "keep": (self.keep == "auto" or share, "auto, or a share above 0 and up to 1"),
        }
        for name, kinds in _NAMES.items():
            checks[name] = getattr(self, name) in get_args(kinds), ", ".join(get_args(kinds))
        for name, (good, allowed) in checks.items():
            if not good:
                raise ConfigError(f"--{name} {getattr(self, name)} is unknown here: give {allowed}")
        if self.residual != "none" and not self.patches:
            raise ConfigError(
                f"--residual {self.residual} belongs to a code per patch: "
                "give --patches, or --residual none"
            )

    @property
    def signals(self) -> tuple[SignalName, ...]:
        """What an encoder has to tell of every vector, to prune by or to compare prunings with."""
        if self.store != "none":
            return get_args(SignalName)
        wanted = tuple(n for n in get_args(SignalName) if n == self.saliency)
        return wanted if self.keep != 1.0 else ()

    def centroids(self, pages: int) -> int:
        """K for a corpus of so many pages."""
        if self.k != "auto":
            return self.k
        return 4096 if pages <= _MANY_PAGES else 16384


PRESETS: Mapping[str, IndexConfig] = MappingProxyType(
    {
        # 2506.21601 as printed, codes only
        "paper": IndexConfig(k=256, residual="none", keep=0.6, saliency="last_indegree"),
        "tiny": IndexConfig(k=256, residual="none", patches=False),
        "balanced": IndexConfig(),
        "lossless": IndexConfig(residual="res4", store="f16"),
    }
)
