"""Training under a budget: HollowNeRF's augmented Lagrangian, and ADMM with an exact projection."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import BudgetError
from .budget import Budget, Schedule, select
from .masks import Gates
from .units import Units


@dataclass(frozen=True, slots=True)
class Residual:
    """How far from the constraint: ||m - a|| and rho ||a - a_before||, relative to ||m||."""

    primal: float
    dual: float


@dataclass(slots=True)
class AugmentedLagrangianBudget:
    """Keeps the mean openness S below C by a penalty and one multiplier gamma.

        minimise  L + rho/2 max(S - C, 0)^2 + gamma (S - C)
        after each step  gamma <- max(0, gamma + dual_rate * violation)

    The whole "ADMM" of HollowNeRF (2308.10122, section 3.4); S is a mean, not a sum, for its
    C = 0.04 to be a share. The paper has one rho; `dual_rate` is a second. violation="log" uses
    C ln(S / C), which pulls harder far from C. With `reset_below`, gamma drops to zero as soon as
    S < C, and `update` says so: the optimiser's momentum should be forgotten too.
    """

    target: float
    _: KW_ONLY
    rho: float
    dual_rate: float | None = None
    violation: Literal["linear", "log"] = "linear"
    gamma_max: float = math.inf
    reset_below: bool = False
    gamma: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        if not 0 < self.target < 1:
            raise BudgetError(f"the mean openness must be below a C in (0, 1), got {self.target}")

    def penalty(self, openness: Float[Tensor, ""]) -> Float[Tensor, ""]:
        """rho/2 max(S - C, 0)^2 + gamma (S - C), differentiable in S; gamma is a constant here."""
        excess = openness - self.target
        return self.rho / 2 * excess.clamp(min=0).square() + self.gamma * excess

    def update(self, openness: float) -> bool:
        """One step of dual ascent; True when gamma was reset because S < C."""
        if self.reset_below and openness < self.target:
            self.gamma = 0.0
            return True
        gap = openness - self.target
        if self.violation == "log":
            gap = self.target * math.log(max(openness, 1e-12) / self.target)
        rate = self.rho if self.dual_rate is None else self.dual_rate
        self.gamma = min(self.gamma_max, max(0.0, self.gamma + rate * gap))
        return False

    def state_dict(self) -> dict[str, float]:
        """The multiplier."""
        return {"gamma": self.gamma}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Go on from `state_dict`."""
        self.gamma = float(state["gamma"])


class ADMM:
    """Keeps variables m near a set S, in the scaled three-block form.

        a <- P_S(m + u);   u <- u + m - a;   loss += rho/2 ||m - a + u||^2

    At the end use `project(m)`, not m: with a finite rho the primal residual does not reach zero.
    """

    def __init__(self, project: Callable[[Gates], Gates], rho: float | Schedule) -> None:
        self.project = project
        self._rho = rho
        self.step = 0
        self._a: dict[str, Tensor] = {}
        self._u: dict[str, Tensor] = {}

    @property
    def rho(self) -> float:
        """The penalty weight of the current step."""
        return self._rho.at(self.step) if isinstance(self._rho, Schedule) else float(self._rho)

    def penalty(self, m: Gates) -> Float[Tensor, ""]:
        """rho/2 ||m - a + u||^2, differentiable in m only; 0 before the first update."""
        terms = [(m[n] - self._a[n] + self._u[n]).square().sum() for n in self._a]
        return self.rho / 2 * sum(terms, torch.zeros((), device=next(iter(m.values())).device))

    @torch.no_grad()
    def update(self, m: Gates) -> Residual:
        """One projection and one dual step; the relative residuals."""
        before = self._a
        fixed = {n: v.detach() for n, v in m.items()}
        u = self._u or {n: torch.zeros_like(v) for n, v in fixed.items()}
        self._a = dict(self.project({n: v + u[n] for n, v in fixed.items()}))
        self._u = {n: u[n] + v - self._a[n] for n, v in fixed.items()}
        self.step += 1
        size = max(_norm(fixed), 1e-12)
        moved = {n: a - before[n] if before else a for n, a in self._a.items()}
        gap = {n: v - self._a[n] for n, v in fixed.items()}
        return Residual(_norm(gap) / size, self.rho * _norm(moved) / size)

    def state_dict(self) -> dict[str, Any]:
        """Step, a and u."""
        return {"step": self.step, "a": dict(self._a), "u": dict(self._u)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`, bit for bit."""
        self.step, self._a, self._u = int(state["step"]), dict(state["a"]), dict(state["u"])


def _norm(tensors: Mapping[str, Tensor]) -> float:
    return math.sqrt(sum(float(t.double().square().sum()) for t in tensors.values()))


def top_projection(units: Sequence[Units], budget: Budget) -> Callable[[Gates], Gates]:
    """Projection on the cardinality ball: the largest within the budget stay, the rest become 0."""

    def project(m: Gates) -> Gates:
        keep = select({n: v.abs() for n, v in m.items()}, units, budget)
        return {n: torch.zeros_like(v).index_copy(0, keep[n], v[keep[n]]) for n, v in m.items()}

    return project


def l1_projection(radius: float) -> Callable[[Gates], Gates]:
    """Projection on the l1 ball of all numbers together (Duchi et al., ICML 2008, figure 1).

    >>> l1_projection(1.0)({"a": torch.tensor([2.0, -1.0, 0.0])})
    {'a': tensor([1., -0., 0.])}
    """
    if not radius > 0:
        raise BudgetError(f"an l1 ball needs a positive radius, got {radius}")

    def project(m: Gates) -> Gates:
        magnitude = torch.cat([v.abs().reshape(-1) for v in m.values()]).double()
        if float(magnitude.sum()) <= radius:
            return dict(m)
        ordered = magnitude.sort(descending=True).values
        count = torch.arange(1, len(ordered) + 1, device=ordered.device)
        cut = (ordered.cumsum(0) - radius) / count
        theta = cut[(ordered > cut).nonzero()[-1, 0]]
        return {n: v.sign() * (v.abs() - theta.to(v.dtype)).clamp(min=0) for n, v in m.items()}

    return project
