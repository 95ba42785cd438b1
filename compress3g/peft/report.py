"""What a cut did, in numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What the cut did.

    kept: units left of every site, and of how many; held: sites that were not up for choice;
    params: of the base model before and after; sites: of heads and neurons alone; trained: of the
    adapter; correlations: Spearman's, of other scores of units with the gates; criterion: by which
    heads and neurons went; losses: of what "auto" chose from; skipped: steps whose gradients were
    not finite; refit_s: seconds of a cut with a refit; step_ms: median training step before and
    after, once measured.
    """

    steps: int
    skipped: int
    kept: dict[str, tuple[int, int]]
    held: tuple[str, ...]
    params: tuple[int, int]
    sites: tuple[int, int]
    trained: tuple[int, int]
    adapters: tuple[int, int]
    ranks: tuple[int, int]
    correlations: dict[str, float]
    criterion: str
    losses: dict[str, float]
    budget: str | None = None
    cost: float | None = None
    refit_s: float | None = None
    step_ms: tuple[float, float] | None = None

    def to_json(self) -> dict[str, Any]:
        """All of it."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Report:
        """The inverse of `to_json`, after a file: JSON has no tuples."""
        fixed: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in value.items()
        }
        return cls(**{**fixed, "kept": {n: tuple(pair) for n, pair in value["kept"].items()}})

    @property
    def line(self) -> str:
        """What went, in one line."""
        return (
            f"cut after {self.steps} steps: heads and neurons {_change(self.sites)}, "
            f"adapter {_change(self.trained)}"
        )

    def __str__(self) -> str:
        rows = [
            ("cut", f"after {self.steps} steps"),
            ("base", _change(self.params)),
            ("sites", _change(self.sites)),
            ("adapter", _change(self.trained)),
            ("layers with it", _change(self.adapters)),
            ("ranks", _change(self.ranks)),
        ]
        if self.refit_s is not None:
            rows.append(("refit", f"{self.refit_s:.1f} s"))
        if self.step_ms is not None:
            before, after = self.step_ms
            rows.append(("step", f"{before:.1f} -> {after:.1f} ms ({before / after:.2f} x)"))
        return "\n".join(f"{name:16}{value}" for name, value in rows)


def _change(pair: tuple[float, float]) -> str:
    return f"{pair[0]:,} -> {pair[1]:,} ({pair[1] / max(1, pair[0]):.1%})"
