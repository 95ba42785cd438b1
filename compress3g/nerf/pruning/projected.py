"""Pruning to an exact number of voxels: three-block ADMM with a top-k projection."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ...core import ADMM, Budget, Units, select, top_projection
from ..config import TrainConfig
from ..gates import GateName
from ..saliency import SaliencyGrid
from ._pruner import Pruner

if TYPE_CHECKING:
    from ..trainer import Trainer

_EVERY = 8  # steps between projections
_HARD = 0.6  # share of the run after which the k voxels are fixed and the others closed
_CLOSED = -30.0  # sigmoid of it is 1e-13


class ProjectedPruner(Pruner):
    """a <- top-k(p + u), u <- u + p - a, loss + rho/2 mean (p - a + u)^2; then p = 0 off the k.

    Unlike the augmented Lagrangian it ends with exactly k = C R^3 open vertices.
    """

    gate: GateName = "p"

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self._units = [Units("vertices", config.saliency_res**3, cost={"units": 1.0})]
        self._budget = Budget(config.sparsity or 0.05, kind="units")
        # The penalty of the core is a sum over voxels; per voxel it must not grow with R.
        rho = config.rho / config.saliency_res**3
        self.admm = ADMM(top_projection(self._units, self._budget), rho)
        self.open: Tensor | None = None

    def saliency(self) -> SaliencyGrid:
        """G of R^3 ones."""
        return SaliencyGrid(self.config.saliency_res)

    def before_step(self, trainer: Trainer) -> None:
        """Set G's learning rate."""
        decay = trainer.learning_rate() / self.config.learning_rate
        trainer.optimizer.param_groups[1]["lr"] = self.config.saliency_lr * decay**0.5

    def penalty(self, trainer: Trainer) -> Float[Tensor, ""] | None:
        """rho/2 ||p - a + u||^2 between the start of pruning and the final projection."""
        if trainer.done() < self.config.prune_start or self.open is not None:
            return None
        return self.admm.penalty(_p(trainer))

    @torch.no_grad()
    def after_step(self, trainer: Trainer) -> None:
        """Project now and then; at the end of the search project for good."""
        done = trainer.done()
        if self.open is None and done >= _HARD:
            self.open = self._chosen(trainer)
        if self.open is not None:
            grid = trainer.field.saliency
            assert grid is not None
            grid.logits[~self.open] = _CLOSED
        elif done >= self.config.prune_start and trainer.step % _EVERY == 0:
            self.admm.update(_p(trainer))

    def _chosen(self, trainer: Trainer) -> Bool[Tensor, "v"]:
        keep = select(_p(trainer), self._units, self._budget)["vertices"]
        chosen = torch.zeros(self._units[0].size, dtype=torch.bool, device=trainer.device)
        chosen[keep] = True
        return chosen

    def kept(self, trainer: Trainer) -> Bool[Tensor, "z y x"]:
        """Cells between the vertices of G that have an open vertex."""
        r = self.config.saliency_res
        chosen = self._chosen(trainer) if self.open is None else self.open
        corners = chosen.view(1, 1, r, r, r).float()
        return torch.nn.functional.max_pool3d(corners, 2, 1)[0, 0] > 0

    def picture(self, trainer: Trainer) -> Float[Tensor, "z y x"]:
        """p at the vertices of G."""
        r = self.config.saliency_res
        return _p(trainer)["vertices"].detach().view(r, r, r)

    def state_dict(self) -> dict[str, Any]:
        """The three blocks, and the final choice once it is made."""
        state: dict[str, Any] = {"step": self.admm.step}
        blocks = self.admm.state_dict()
        state |= {f"{block}.{n}": t for block in "au" for n, t in blocks[block].items()}
        return state if self.open is None else {**state, "open": self.open}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`."""
        blocks = {
            block: {n[2:]: t for n, t in state.items() if n.startswith(f"{block}.")}
            for block in "au"
        }
        self.admm.load_state_dict({"step": state["step"], **blocks})
        self.open = state.get("open")


def _p(trainer: Trainer) -> dict[str, Tensor]:
    grid = trainer.field.saliency
    assert grid is not None, "the field of a projected pruner has a saliency grid"
    return {"vertices": grid.logits.sigmoid().view(-1)}
