"""Removes the units of a pipeline's denoiser that score least; what is left is a pipeline still."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import nn

from ..core import Budget, Gates, Keep, Units, materialize, price, select
from ..criteria.allocation import best
from ..errors import BudgetError, ConfigError, ScoreError
from ..profile import count_flops
from .pipelines import NEUTRAL, a_call, denoiser_of
from .pruned_models import KEY, adopt, dense_skeleton, describe, is_pruned, kept_of
from .units import kind_of, units_of

KINDS = ("heads", "neurons", "groups")
_SIZES = 4  # of a group that rounding leaves to choose from
Scope = Literal["global", "layer"]
Cost = Literal["params", "flops"]


def prune(
    pipe: Any,
    scores: Gates | Any,
    *,
    ratio: float,
    scope: Scope = "global",
    round_to: int = 16,
    kinds: Sequence[str] = KINDS,
    normalize: Literal["none", "z"] = "none",
    per_cost: bool = False,
    cost: Cost = "params",
    gates: Gates | None = None,
    means: Gates | None = None,
    before_cut: Callable[[nn.Module, Sequence[Units], Keep], object] | None = None,
    method: str = "scores",
) -> Any:
    """The same pipeline, with a smaller denoiser.

    scores: one number per unit and group, higher stays, or what `learn_masks` returned (its
    `logits`); groups without scores stay whole. ratio: share of the denoiser's cost that goes, all
    of it in the denominator. cost: "params", or "flops" of a call for one prompt; what attention
    does between its projections is in the denominator, and goes unasked with its heads.
    scope: "global" ranks the units of all groups in one list, "layer" takes the same share of
    every group; at least one unit of a group stays.
    round_to: kept channels are a multiple of this in groups of at least four times as many; in
    smaller ones about as many go together. Heads stay whole.
    normalize, per_cost: as in `core.select`. gates, means: as in `core.materialize`.
    before_cut: is given the denoiser, still whole, its scored units and the decision, as `refit`
    takes them. method: a name that travels in the configuration.
    A pipeline can be pruned again: ratio then counts from what it has.
    Raises ConfigError for a ratio outside (0, 1), BudgetError naming the largest that can be
    reached, ScoreError for scores of another model, CutError when nothing can be removed.
    """
    if not 0 < ratio < 1:
        raise ConfigError(f"ratio {ratio} is not a share between 0 and 1")
    _, denoiser = denoiser_of(pipe)
    scores = getattr(scores, "logits", scores)
    run = a_call(pipe, [NEUTRAL]) if cost == "flops" else None
    units = priced_units(denoiser, kinds, run)
    _check(scores, units, denoiser)
    chosen = [u for u in units if u.name in scores]
    total = count_flops(run).total if run else sum(p.numel() for p in denoiser.parameters())
    keep = decide(
        scores, chosen, ratio * total, total,
        scope=scope, round_to=round_to, normalize=normalize, per_cost=per_cost, cost=cost,
    )  # fmt: skip
    if before_cut is not None:
        before_cut(denoiser, chosen, keep)
    dense, before = _before(denoiser)
    bare = {n for n, m in denoiser.named_modules() if getattr(m, "bias", ...) is None}
    materialize(denoiser, chosen, keep, gates=gates, means=means)
    biases = [n for n in bare if denoiser.get_submodule(n).bias is not None]
    after = {
        u.name: before[u.name][keep[u.name]] if u.name in keep else before[u.name] for u in dense
    }
    facts = {"method": method, "ratio": ratio, "cost": cost}
    adopt(pipe, describe(dense, after, _old_biases(pipe) + biases, facts))
    return pipe


def priced_units(
    denoiser: nn.Module, kinds: Sequence[str] = KINDS, run: Callable[[], object] | None = None
) -> list[Units]:
    """Units of the kinds, with their cost in parameters, and with `run`, a call, in FLOPs.

    Raises ConfigError for another kind.
    """
    for kind in kinds:
        if kind not in KINDS:
            raise ConfigError(f"{kind!r} is no kind of unit: known are {', '.join(KINDS)}")
    found = [u for u in units_of(denoiser) if kind_of(u) in kinds]
    if not found:
        raise ConfigError(f"{type(denoiser).__name__} has no {' or '.join(kinds)} to remove")
    if run is None:
        return price(denoiser, found)
    return price(denoiser, found, lambda _: run())


def _old_biases(pipe: Any) -> list[str]:
    model: Any = denoiser_of(pipe)[1]
    return list(model.config[KEY]["biases"]) if is_pruned(model) else []


def _before(denoiser: Any) -> tuple[Sequence[Units], Keep]:
    """Units of the dense denoiser, and which are left: indices always mean those of the dense."""
    dense = units_of(dense_skeleton(denoiser))
    if is_pruned(denoiser):
        return dense, kept_of(denoiser.config[KEY], dense)
    return dense, {u.name: torch.arange(u.size) for u in dense}


def _check(scores: Mapping[str, Any], units: Sequence[Units], denoiser: nn.Module) -> None:
    known = {u.name for u in units_of(denoiser)}
    strange = [name for name in scores if name not in known]
    if strange:
        raise ScoreError(
            f"{type(denoiser).__name__} has no units {strange[0]!r}: other model's scores"
        )
    if not any(u.name in scores for u in units):
        raise ScoreError("there are no scores: give those of at least one group")


def decide(
    scores: Gates,
    units: Sequence[Units],
    removed: float,
    total: float,
    *,
    scope: Scope = "global",
    round_to: int = 1,
    normalize: Literal["none", "z"] = "none",
    per_cost: bool = False,
    cost: Cost = "params",
) -> Keep:
    """The decision that removes at least `removed` of a cost, and as little more as it can.

    Rounding takes more than was asked for, so the budget is searched by bisection.
    Raises BudgetError with the largest share of `total` that can be removed.
    """
    whole = sum(u.cost[cost] * u.size for u in units)
    floors = sum(u.cost[cost] for u in units)

    def at(share: float) -> Keep:
        budget = Budget(share, cost, scope="global" if scope == "global" else "group")
        found = select(scores, units, budget, normalize=normalize, per_cost=per_cost)
        return _rounded(found, scores, units, round_to)

    def gone(keep: Keep) -> float:
        return sum(u.cost[cost] * (u.size - len(keep[u.name])) for u in units)

    low, high = min(1.0, floors / whole * (1 + 1e-6)), 1.0
    keep = at(low)
    if gone(keep) < removed * (1 - 1e-9):
        reachable = gone(keep) / total
        raise BudgetError(
            f"ratio {removed / total:.3f} cannot be reached: with one unit left in each group "
            f"(and channels in multiples of {round_to}) at most {reachable:.3f} goes"
        )
    for _ in range(30):
        middle = (low + high) / 2
        tried = at(middle)
        if gone(tried) >= removed * (1 - 1e-9):
            low, keep = middle, tried
        else:
            high = middle
    ranked = {u.name: scores[u.name] / (u.cost[cost] if per_cost else 1.0) for u in units}
    return _given_back(keep, ranked, units, gone(keep) - removed, round_to, scope, cost)


def _given_back(
    keep: Keep,
    scores: Gates,
    units: Sequence[Units],
    spare: float,
    round_to: int,
    scope: Scope,
    cost: Cost,
) -> Keep:
    """With what rounding took too much: one multiple of a group at a time, while it fits.

    Groups of one size lose their next multiple at the same share: without this, methods would be
    compared at unlike sizes. Next is the group whose best lost unit scores most ("global"), or the
    group with the smallest share left ("layer").
    """
    orders = {u.name: scores[u.name].cpu().argsort(descending=True, stable=True) for u in units}
    counts = {u.name: len(keep[u.name]) for u in units}

    def more(u: Units) -> int:
        return min(_multiple(u, round_to), u.size - counts[u.name])

    def urgency(u: Units) -> float:
        if scope == "layer":
            return -counts[u.name] / u.size
        return float(scores[u.name][orders[u.name][counts[u.name]]])

    while fitting := [u for u in units if 0 < more(u) * u.cost[cost] <= spare]:
        chosen = max(fitting, key=urgency)
        spare -= more(chosen) * chosen.cost[cost]
        counts[chosen.name] += more(chosen)
    return {name: order[: counts[name]].sort().values for name, order in orders.items()}


def _multiple(u: Units, round_to: int) -> int:
    """Units of a group that go and stay together; 1 where the group has no more than that.

    A unit may be 10 channels wide: 8 of them are whole multiples of 16. Where fewer than four such
    sizes would be left to choose from, about `round_to` channels go together instead.
    """
    if kind_of(u) == "heads":
        return 1
    chunk = u.reads[0].chunk
    multiple = round_to // math.gcd(round_to, chunk)
    if u.size < _SIZES * multiple:
        multiple = -(-round_to // chunk)
    return multiple if u.size > multiple else 1


def _rounded(keep: Keep, scores: Gates, units: Sequence[Units], round_to: int) -> Keep:
    """Kept channels down to a multiple, but at least one multiple, where a group has more."""
    rounded = dict(keep)
    for u in units:
        multiple, count = _multiple(u, round_to), len(keep[u.name])
        if multiple > 1 and count < u.size:
            wanted = max(multiple, count // multiple * multiple)
            rounded[u.name] = best(scores[u.name].cpu(), wanted)
    return rounded
