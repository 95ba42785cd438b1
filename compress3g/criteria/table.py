"""Every criterion by name: what it needs, how its scores are made and meant to be compared."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from ..core import Budget, Gates, Keep, Units, select
from ._weights import Loss
from .allocation import by_layer, by_pq_index
from .amp import Contributions, amp
from .flap import flap
from .hesso import learn_hesso
from .magnitude import magnitude
from .observe import Stats, observe
from .pdp import learn_pdp
from .random import random
from .taylor import fisher, taylor, taylor_signed
from .vib import VIBGates, learn_vib
from .wanda import wanda

Needs: TypeAlias = Literal["nothing", "forward", "loss", "steps"]
Scope: TypeAlias = Literal["global", "layer"]
Allocation: TypeAlias = Literal["auto", "global", "layer", "pq"]


@dataclass(frozen=True, slots=True)
class Evidence:
    """What scores may be made of: weights, what one calibration pass saw, or steps of training."""

    model: nn.Module
    units: Sequence[Units]
    generator: torch.Generator
    stats: Stats | None = None
    heads: Gates | None = None  # of Contributions
    batches: Sequence[Any] = ()
    loss: Loss | None = None
    budget: Budget | None = None
    steps: int = 0

    @property
    def seen(self) -> Stats:
        """The pass's statistics."""
        assert self.stats is not None, "gather() made no pass: the criterion's `needs` is wrong"
        return self.stats

    def lesson(self) -> tuple[nn.Module, Sequence[Units], Sequence[Any], Loss]:
        """What a criterion that trains gates is given."""
        assert self.loss is not None, "gather() was given no loss"
        return self.model, self.units, self.batches, self.loss

    @property
    def target(self) -> Budget:
        """What may stay in the end."""
        assert self.budget is not None, "gather() was given no budget"
        return self.budget


@dataclass(frozen=True, slots=True)
class Criterion:
    """One row.

    paper: arXiv id; needs: nothing, a forward pass, a loss too, or steps of training under a loss
    that is least at the dense model; scores: also with multipliers to fold into what stays;
    signed: first order, which means nothing where a loss has no direction (drawn labels,
    projections);
    contributions: needs `Contributions`; scope, normalize, per_cost: how its scores are meant to be
    compared; compensate: readers' biases take over the mean of what goes.
    """

    paper: str
    needs: Needs
    scores: Callable[[Evidence], Gates | tuple[Gates, Gates]]
    signed: bool = False
    contributions: bool = False
    scope: Scope = "global"
    normalize: Literal["none", "z"] = "none"
    per_cost: bool = False
    compensate: bool = False


CRITERIA: Mapping[str, Criterion] = {
    "random": Criterion("-", "nothing", lambda e: random(e.units, e.generator), scope="layer"),
    "magnitude": Criterion(
        "1608.08710", "nothing", lambda e: magnitude(e.model, e.units), scope="layer"
    ),
    "magnitude_both": Criterion(
        "1608.08710", "nothing", lambda e: magnitude(e.model, e.units, both=True), scope="layer"
    ),
    "wanda": Criterion(
        "2306.11695", "forward", lambda e: wanda(e.model, e.units, e.seen), scope="layer"
    ),
    "amp": Criterion(
        "2504.21174",
        "forward",
        lambda e: amp(e.units, e.seen, e.heads or {}),
        contributions=True,
        scope="layer",
    ),
    "flap": Criterion(
        "2312.11983",
        "forward",
        lambda e: flap(e.model, e.units, e.seen),
        normalize="z",
        compensate=True,
    ),
    # Not per cost: first derivatives of many columns cancel, so wide units would always go first.
    "taylor": Criterion("1905.10650", "loss", lambda e: taylor(e.seen), signed=True),
    "taylor_signed": Criterion("1906.10771", "loss", lambda e: taylor_signed(e.seen), signed=True),
    "fisher": Criterion("2204.09656", "loss", lambda e: fisher(e.seen), per_cost=True),
    "hesso": Criterion(
        "2312.09411",
        "steps",
        lambda e: learn_hesso(*e.lesson(), e.target, steps=e.steps),
    ),
    "vib": Criterion(
        "2406.05276",
        "steps",
        lambda e: _noisy(learn_vib(*e.lesson(), steps=e.steps, generator=e.generator)),
    ),
    "pdp": Criterion(
        "2305.11203",
        "steps",
        lambda e: learn_pdp(*e.lesson(), e.target.keep, steps=e.steps),
        scope="layer",
    ),
}


def _noisy(gates: VIBGates) -> tuple[Gates, Gates]:
    return gates.scores(), {name: mu.detach() for name, mu in gates.hard().items()}


def score(criterion: Criterion, evidence: Evidence) -> tuple[Gates, Gates | None]:
    """The scores, on the CPU, and the multipliers to fold into what stays, if there are any."""
    found = criterion.scores(evidence)
    scores, multipliers = found if isinstance(found, tuple) else (found, None)
    return {name: s.cpu() for name, s in scores.items()}, multipliers


def choose(
    scores: Gates,
    units: Sequence[Units],
    budget: Budget,
    criterion: Criterion,
    allocation: Allocation = "auto",
) -> Keep:
    """The units that stay within the budget.

    allocation: "global" ranks the units of the whole model as the criterion says, "layer" takes the
    same share of every layer, "pq" goes by the PQ index of each group's scores, "auto" does as the
    criterion's paper.
    """
    scope = criterion.scope if allocation == "auto" else allocation
    if scope == "layer":
        return by_layer(scores, units, budget)
    if scope == "pq":
        return by_pq_index(scores, units, budget)
    flat = [replace(u, inside=None) for u in units]  # layers that hold them are not up for choice
    return select(scores, flat, budget, normalize=criterion.normalize, per_cost=criterion.per_cost)


def gather(
    model: nn.Module,
    units: Sequence[Units],
    criteria: Iterable[Criterion],
    batches: Sequence[Any] = (),
    *,
    loss: Loss | None = None,
    run: Callable[[nn.Module, Any], object] | None = None,
    valid: Callable[[Any], Bool[Tensor, "b t"]] | None = None,
    generator: torch.Generator,
    budget: Budget | None = None,
    steps: int = 0,
) -> Evidence:
    """What all of `criteria` need, in one pass over `batches`; no pass when none looks at it."""
    asked = list(criteria)
    needs = {c.needs for c in asked}
    alone = Evidence(model, units, generator, None, None, batches, loss, budget, steps)
    if needs <= {"nothing", "steps"}:
        return alone
    heads = Contributions(model, units) if any(c.contributions for c in asked) else None
    how: dict[str, Any] = {"loss": loss} if "loss" in needs else {"run": run}
    stats = observe(model, units, batches, valid=valid, also=heads, **how)
    return replace(alone, stats=stats, heads=None if heads is None else heads.mean())
