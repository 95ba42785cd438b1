"""Every criterion by name: what it needs, how its scores are made and meant to be compared."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from ..core import Gates, Units
from .amp import Contributions, amp
from .flap import flap
from .magnitude import magnitude
from .observe import Stats, observe
from .random import random
from .taylor import fisher, taylor, taylor_signed
from .wanda import wanda

Needs: TypeAlias = Literal["nothing", "forward", "loss"]
Scope: TypeAlias = Literal["global", "layer"]


@dataclass(frozen=True, slots=True)
class Evidence:
    """What scores may be made of: weights, and what one calibration pass saw."""

    model: nn.Module
    units: Sequence[Units]
    generator: torch.Generator
    stats: Stats | None = None
    heads: Gates | None = None  # of Contributions

    @property
    def seen(self) -> Stats:
        """The pass's statistics."""
        assert self.stats is not None, "gather() made no pass: the criterion's `needs` is wrong"
        return self.stats


@dataclass(frozen=True, slots=True)
class Criterion:
    """One row.

    paper: arXiv id; needs: nothing, a forward pass, or a loss too; signed: means nothing where the
    loss has no direction (a drawn label or probe); scope, normalize, per_cost: how `select` should
    compare its scores; compensate: readers' biases take over the mean of what goes.
    """

    paper: str
    needs: Needs
    scores: Callable[[Evidence], Gates]
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
    "taylor": Criterion("1905.10650", "loss", lambda e: taylor(e.seen), per_cost=True),
    "taylor_signed": Criterion(
        "1906.10771", "loss", lambda e: taylor_signed(e.seen), signed=True, per_cost=True
    ),
    "fisher": Criterion("2204.09656", "loss", lambda e: fisher(e.seen), per_cost=True),
}


def gather(
    model: nn.Module,
    units: Sequence[Units],
    criteria: Iterable[Criterion],
    batches: Iterable[Any],
    *,
    loss: Callable[[nn.Module, Any], Tensor] | None = None,
    run: Callable[[nn.Module, Any], object] | None = None,
    valid: Callable[[Any], Bool[Tensor, "b t"]] | None = None,
    generator: torch.Generator,
) -> Evidence:
    """What all of `criteria` need, in one pass over `batches`; no pass when they need nothing."""
    asked = list(criteria)
    needs = {c.needs for c in asked}
    if needs <= {"nothing"}:
        return Evidence(model, units, generator)
    heads = Contributions(model, units) if any(c.contributions for c in asked) else None
    how: dict[str, Any] = {"loss": loss} if "loss" in needs else {"run": run}
    stats = observe(model, units, batches, valid=valid, also=heads, **how)
    return Evidence(model, units, generator, stats, None if heads is None else heads.mean())
