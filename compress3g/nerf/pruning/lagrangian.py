"""Pruning by a trained saliency grid under S(G) < C: HollowNeRF's augmented Lagrangian.

    minimise  MSE(W, H, G)   subject to   S(G) = mean_v sigmoid(G_v) < C     (2308.10122, 3.4)

`paper` is the method as printed; `saliency` the same constraint with what short runs need: the p
gate, a fast learning rate for G, a late start and a violation that pulls harder far from C.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ...core import AugmentedLagrangianBudget
from ..config import TrainConfig
from ..gates import GateName
from ..saliency import SaliencyGrid
from ._pruner import Pruner

if TYPE_CHECKING:
    from ..trainer import Trainer

_CUT = 1e-2  # a vertex counts as open above this share of the 99.9th percentile of p
_CLAMP = (-14.0, 12.0)  # beyond it sigmoid' is nothing and Adam would only wind up


class SaliencyPruner(Pruner):
    """Gate p, Adam on G at its own rate, dual ascent on C ln(S / C), reset once S < C."""

    gate: GateName = "p"

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.budget = AugmentedLagrangianBudget(
            config.sparsity or 0.05,
            rho=config.rho,
            dual_rate=config.dual_lr,
            violation="log",
            gamma_max=1.0,
            reset_below=True,
        )

    def saliency(self) -> SaliencyGrid:
        """G of R^3 ones."""
        return SaliencyGrid(self.config.saliency_res)

    def rate(self, trainer: Trainer) -> float:
        """Learning rate of G: decays with the square root of the table's decay."""
        decay = trainer.learning_rate() / self.config.learning_rate
        return float(self.config.saliency_lr * decay**0.5)

    def start_share(self) -> float:
        """Share of the run that passes before space is pruned."""
        return self.config.prune_start

    def before_step(self, trainer: Trainer) -> None:
        """Set G's learning rate."""
        trainer.optimizer.param_groups[1]["lr"] = self.rate(trainer)

    def penalty(self, trainer: Trainer) -> Float[Tensor, ""] | None:
        """rho/2 max(S - C, 0)^2 + gamma (S - C) once pruning has started."""
        if trainer.done() < self.start_share():
            return None
        return self.budget.penalty(_grid(trainer).logits.sigmoid().mean())

    @torch.no_grad()
    def after_step(self, trainer: Trainer) -> None:
        """gamma <- max(0, gamma + rate violation), and G kept where it can still move."""
        grid = _grid(trainer)
        grid.logits.clamp_(*_CLAMP)
        if trainer.done() < self.start_share():
            return
        if self.budget.update(float(grid.logits.sigmoid().mean())):
            # Adam's momentum would carry S far below C after the pressure is gone.
            trainer.optimizer.state[grid.logits]["first"].zero_()

    def gamma(self) -> float:
        """The multiplier."""
        return self.budget.gamma

    def kept(self, trainer: Trainer) -> Bool[Tensor, "z y x"]:
        """Cells between the vertices of G with a corner above 1 % of the 99.9th percentile of p."""
        p = _grid(trainer).volume()
        limit = _CUT * p.flatten().kthvalue(max(1, round(0.999 * p.numel()))).values
        return torch.nn.functional.max_pool3d(p[None, None], 2, 1)[0, 0] > limit

    def picture(self, trainer: Trainer) -> Float[Tensor, "z y x"]:
        """p at the vertices of G."""
        return _grid(trainer).volume()

    def state_dict(self) -> dict[str, Any]:
        """The multiplier."""
        return dict(self.budget.state_dict())

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`."""
        self.budget.load_state_dict(state)


class PaperPruner(SaliencyPruner):
    """The method as printed: tanh gate, linear dual ascent from the first step, C = 0.04.

    alpha of the gate is 1e4 for the first third of the run and 1e5 after it (section 4.1: 1000 of
    3000 epochs). The paper states no rho; one value serves for penalty and dual ascent.
    """

    gate: GateName = "tanh"

    def __init__(self, config: TrainConfig) -> None:
        super().__init__(config)
        self.budget = AugmentedLagrangianBudget(config.sparsity or 0.04, rho=config.rho)

    def rate(self, trainer: Trainer) -> float:
        """G learns at the rate of everything else."""
        return trainer.learning_rate()

    def start_share(self) -> float:
        """From the first step."""
        return 0.0

    def before_step(self, trainer: Trainer) -> None:
        """Sharpen the gate after a third of the run."""
        super().before_step(trainer)
        alpha = 1e4 if trainer.done() < 1 / 3 else 1e5
        if alpha != trainer.field.alpha:
            trainer.field.alpha = alpha
            # Weak cells have just become dense: nothing may be skipped by what they were.
            trainer.refresh_occupancy()


def _grid(trainer: Trainer) -> SaliencyGrid:
    grid = trainer.field.saliency
    assert grid is not None, "the field of a saliency pruner has a saliency grid"
    return grid
