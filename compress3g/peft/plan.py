"""The decision: fixed counts of heads, neurons, adapters and ranks, as plain JSON."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ..core import Budget, Gates, Keep, Units, select
from ..engine.checkpoint import read_json, write_json
from ..errors import BudgetError, FormatError, ScoreError
from .config import LightPeftConfig
from .estimate import Scores

_FORMAT = 1
_HALVINGS = 10  # of a budget's search; widths move in multiples, so finer ratios change nothing


@dataclass(frozen=True, slots=True)
class Plan:
    """What stays. The same plan makes the same shapes on any process and machine.

    keep: ascending indices of heads and neurons by site, sizes: of how many; gates: multipliers of
    what stays, to be folded, or None; dropped: layers whose adapter goes; ranks: those that stay of
    every other adapter; merge_dropped: whether what adapters lose enters the base.
    """

    keep: dict[str, list[int]]
    sizes: dict[str, int]
    gates: dict[str, list[float]] | None
    dropped: tuple[str, ...]
    ranks: dict[str, list[int]]
    merge_dropped: bool = False

    @property
    def digest(self) -> str:
        """A fingerprint: equal on processes that decided alike."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    def indices(self) -> Keep:
        """`keep` as core takes it."""
        return {name: torch.tensor(kept, dtype=torch.long) for name, kept in self.keep.items()}

    def multipliers(self) -> Gates | None:
        """Gates over all units of every site, 1 where a unit goes; None when none are folded."""
        if self.gates is None:
            return None
        return {
            name: torch.ones(self.sizes[name]).index_copy(0, index, torch.tensor(self.gates[name]))
            for name, index in self.indices().items()
        }

    def to_json(self) -> dict[str, Any]:
        """All of it."""
        return {"format": _FORMAT, **asdict(self)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any], where: str = "the plan") -> Plan:
        """The inverse of `to_json`. Raises FormatError naming `where` it was read."""
        if value.get("format") != _FORMAT:
            raise FormatError(f"{where} is no plan of format {_FORMAT}")
        fields = {k: v for k, v in value.items() if k != "format"}
        try:
            return cls(**{**fields, "dropped": tuple(fields["dropped"])})
        except (TypeError, KeyError) as error:
            raise FormatError(f"{where} is no whole plan: {error}") from None

    def save(self, path: Path) -> None:
        """Writes JSON, whole or not at all."""
        write_json(path, self.to_json())

    @classmethod
    def load(cls, path: Path) -> Plan:
        """Raises FormatError when there is no plan in the file."""
        return cls.from_json(read_json(path), str(path))


def make_plan(
    scores: Scores,
    units: Sequence[Units],
    config: LightPeftConfig,
    *,
    ranking: Gates | None = None,
    multiple: int = 1,
    cost: Callable[[Keep], float] | None = None,
    limit: float = 0.0,
) -> Plan:
    """Heads, neurons, adapters and ranks that stay, by sorted index and fixed count.

    ranking: scores of heads and neurons when the criterion is none of those in `scores`. multiple:
    of kept neurons. cost: of a decision; then both ratios are the smallest equal ones with which it
    is at most `limit` (BudgetError when none is). Ties go to the earlier site and the lower index.
    Raises ScoreError for a score that is not finite, naming the first.
    """
    by = scores.units[config.criterion] if ranking is None else ranking
    for found in (by, scores.gates, scores.modules, scores.ranks):
        for name, values in found.items():
            if not bool(values.isfinite().all()):
                raise ScoreError(
                    f"a score of {name} is not finite, so nothing can be ordered by it: lower the "
                    "learning rate, or look longer"
                )
    ratios = (config.attn_ratio, config.ffn_ratio)
    if cost is not None:
        ratios = (ratio := _smallest(by, units, config, multiple, cost, limit), ratio)
    keep = keep_units(by, units, config, ratios, multiple)
    dropped = _worst(scores.modules, math.floor(config.module_ratio * len(scores.modules) + 1e-9))
    left = {n: s for n, s in scores.ranks.items() if n not in dropped}
    ranks = _keep_ranks(left, config)
    gates = None
    if config.fold == "merge":
        gates = {name: scores.gates[name][index].tolist() for name, index in keep.items()}
    return Plan(
        keep={name: index.tolist() for name, index in keep.items()},
        sizes={u.name: u.size for u in units},
        gates=gates,
        dropped=tuple(sorted({*dropped, *(n for n, kept in ranks.items() if not kept)})),
        ranks={n: kept for n, kept in ranks.items() if kept},
        merge_dropped=config.merge_dropped,
    )


def keep_units(
    scores: Gates,
    units: Sequence[Units],
    config: LightPeftConfig,
    ratios: tuple[float, float],
    multiple: int = 1,
) -> Keep:
    """What stays of heads and neurons when these shares of them go."""
    heads = [u for u in units if not is_neurons(u)]
    neurons = [u for u in units if is_neurons(u)]
    kept = {
        **_share(scores, heads, config.heads_compete, ratios[0], 1, config.min_units_per_site),
        **_share(scores, neurons, config.ffn_scope, ratios[1], multiple, config.min_units_per_site),
    }
    return {u.name: kept[u.name] for u in units}


def is_neurons(u: Units) -> bool:
    """Whether these are columns of a feed-forward layer, not heads."""
    return all(cut.chunk == 1 for cut in u.reads)


def _share(
    scores: Gates,
    units: Sequence[Units],
    scope: Literal["layer", "global"],
    ratio: float,
    multiple: int,
    floor: int,
) -> Keep:
    """Exactly n - floor(ratio n) of all (of every layer's) units, but in blocks of `multiple`.

    A site's units are sorted and taken in blocks; a block scores its mean. So rounding spares the
    best of what would go, and the total is met by taking the difference elsewhere.
    """
    if scope == "layer":
        return {
            name: index
            for u in units
            for name, index in _share(scores, [u], "global", ratio, multiple, floor).items()
        }
    if not units:
        return {}
    orders = {u.name: scores[u.name].argsort(descending=True, stable=True) for u in units}
    wide = {u.name: multiple if u.size >= 4 * multiple else 1 for u in units}
    blocks, means, floors = [], {}, 0
    for u in units:
        parts = scores[u.name][orders[u.name]].double().split(wide[u.name])
        means[u.name] = torch.stack([p.mean() for p in parts])
        least = -(-min(floor, u.size) // wide[u.name])
        means[u.name][:least] = torch.inf  # the floor comes first
        floors += least * wide[u.name]
        blocks.append(replace(u, size=len(parts), cost={"units": float(wide[u.name])}))
    total = sum(u.size for u in units)
    want = max(floors, total - math.floor(ratio * total + 1e-9))
    step = max(wide.values())
    want = min(total, -(-want // step) * step)
    whole = sum(b.size * b.cost["units"] for b in blocks)
    chosen = select(means, blocks, Budget(min(1.0, want / whole), "units", floor=1))
    return {
        u.name: orders[u.name][: len(chosen[u.name]) * wide[u.name]].sort().values for u in units
    }


def _worst(scores: Mapping[str, Tensor], count: int) -> list[str]:
    order = sorted(scores, key=lambda name: (float(scores[name]), name))
    return order[:count]


def _keep_ranks(scores: Mapping[str, Tensor], config: LightPeftConfig) -> dict[str, list[int]]:
    units = [Units(name, len(s)) for name, s in scores.items()]
    if not units:
        return {}
    groups = [[u] for u in units] if config.rank_scope == "layer" else [units]
    kept: Keep = {}
    for group in groups:
        total = sum(u.size for u in group)
        stay = total - math.floor(config.rank_ratio * total + 1e-9)
        kept |= select(scores, group, Budget(stay / total, "units", floor=0))
    return {name: index.tolist() for name, index in kept.items()}


def _smallest(
    scores: Gates,
    units: Sequence[Units],
    config: LightPeftConfig,
    multiple: int,
    cost: Callable[[Keep], float],
    limit: float,
) -> float:
    def at(ratio: float) -> float:
        return cost(keep_units(scores, units, config, (ratio, ratio), multiple))

    if at(0.0) <= limit:
        return 0.0
    low, high = 0.0, 1 - 1e-6
    if (least := at(high)) > limit:
        raise BudgetError(
            f"--budget {config.budget} is not enough for one head and one block of neurons in "
            f"every layer: the smallest that is feasible is {least:.4g}"
        )
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if at(middle) <= limit else (middle, high)
    return high
