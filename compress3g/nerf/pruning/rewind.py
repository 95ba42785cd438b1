"""Rewind: find the space worth features with a throw-away grid, then start anew inside it.

A mask helps a hash grid only if it is there from the first steps: empty space supplies 95 % of the
feature gradient at step 10, 11 % at step 400. So a first, short phase trains a coarse grid of its
own; as soon as the mask it suggests is stable, table, networks and optimiser are initialised again
and trained with the mask on, samples outside it never taken, every row of the table inside it. This
is the lottery ticket's rewind (1803.03635), for space.

The mask is a by-product: training samples leave their rendering weights in their cells. Recall is
what counts: a few visible cells that are missing cost more than twice as many cells as needed, so
the limit is low, and carving follows later.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ...kernels.hash_grid import Levels
from ...kernels.ray_march import Samples
from ..config import TrainConfig
from ..inside import fitted_levels
from ..occupancy import dilate
from ..phase import Phase
from ..visibility import cell_of
from ._pruner import Pruner

if TYPE_CHECKING:
    from ..trainer import Trainer

_LOOKS = 16  # times the mask is looked at, evenly, until the first phase must end
_FIRST_LOOK = 6
_LEAST_SAMPLES = 1 << 20  # a mask found sooner has holes, however short the run
_LATEST = 0.4  # share of the run after which samples are not waited for
_LARGEST = 0.3  # share of space beyond which a mask says nothing yet
_STABLE = 0.92  # intersection over union of two successive masks
_REFINE = (0.15, 0.3, 0.5)  # shares of the second phase at which the mask is carved again
_COARSE = Levels.geometric(count=8, log2_size=15, finest=128)
_COARSE_MARCH = 110  # samples along the diagonal: the coarse grid resolves no more
_FADE = 0.98  # of the running maximum, per step: the haze of the first steps must be forgotten


class RewindPruner(Pruner):
    """A mask of visible cells from a first phase of at most `rewind_limit` of the run.

    reinitialise: False keeps the table and never searches with another; fit: False keeps the levels
    of a plain grid. Both are controls for experiments.
    """

    def __init__(self, config: TrainConfig, *, reinitialise: bool = True, fit: bool = True) -> None:
        self.config = config
        self.reinitialise, self.fit = reinitialise, fit
        self.visible = torch.zeros(config.occupancy**3)
        self.before: Tensor | None = None  # the mask at the last look
        self.searching = True
        self._looked = 0
        self._refined = 0

    def start(self, trainer: Trainer) -> None:
        """Begin with the throw-away grid, sampled as coarsely as it can resolve."""
        self.visible = self.visible.to(trainer.device)
        if self.reinitialise:
            trainer.start_phase(
                Phase(
                    name="search",
                    levels=_COARSE,
                    march_step=3**0.5 / _COARSE_MARCH,
                    end=self.config.rewind_limit,
                    warm_up=32,
                )
            )

    def watch(self, trainer: Trainer, samples: Samples, weight: Float[Tensor, "n"]) -> None:
        """Keep the largest rendering weight of late in every cell: a mask for nothing."""
        cell = cell_of(samples.x, trainer.occupancy.side)
        self.visible.mul_(_FADE).scatter_reduce_(0, cell, weight, "amax")

    def after_step(self, trainer: Trainer) -> None:
        """Look at the mask, begin anew when it is stable, carve it again later."""
        done = trainer.done()
        if self.searching:
            look = int(done / self.config.rewind_limit * _LOOKS)
            learnt = trainer.samples >= _LEAST_SAMPLES or done >= _LATEST
            if look > self._looked and look >= _FIRST_LOOK and learnt:
                self._look(trainer, last=look >= _LOOKS)
            self._looked = max(look, self._looked)
        elif self._refined < len(_REFINE) and trainer.phase_done() >= _REFINE[self._refined]:
            self._refined += 1
            seen = self._mask(self.config.visible / 2)
            if seen.any():
                trainer.occupancy.narrow(seen)

    def _look(self, trainer: Trainer, *, last: bool) -> None:
        before, self.before = self.before, self._mask(self.config.visible)
        if last or (before is not None and _stable(before, self.before)):
            self.searching = False
            self._begin_anew(trainer)

    def _begin_anew(self, trainer: Trainer) -> None:
        kept = self.before
        if kept is not None and kept.any():  # a phase of a few steps may have seen nothing yet
            trainer.occupancy.allow(kept)
        if not self.reinitialise:
            return
        # Not the field before: it was trained on samples of all space, and at other levels.
        main = replace(Phase.whole(self.config), begin=trainer.done())
        if self.fit:
            kept = trainer.occupancy.allowed
            levels = fitted_levels(kept, main.levels.entries, finest=self.config.finest)
            main = replace(main, levels=levels, kept=kept.clone())
        trainer.start_phase(main)

    def _mask(self, limit: float) -> Bool[Tensor, "z y x"]:
        side = self.config.occupancy
        return dilate(self.visible.view(side, side, side) > limit)

    def mask_bits(self, trainer: Trainer) -> int:
        """One bit per cell."""
        return int(trainer.occupancy.side**3)

    def picture(self, trainer: Trainer) -> Float[Tensor, "z y x"]:
        """Visibility of the kept cells."""
        kept = self.kept(trainer)
        return self.visible.view_as(kept) * kept

    def state_dict(self) -> dict[str, Any]:
        """Where the search stands."""
        state: dict[str, Any] = {
            "searching": int(self.searching),
            "looked": self._looked,
            "refined": self._refined,
            "visible": self.visible,
        }
        return state if self.before is None else {**state, "before": self.before}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`."""
        self.searching, self._looked = bool(state["searching"]), int(state["looked"])
        self._refined = int(state["refined"])
        device, before = self.visible.device, state.get("before")
        self.visible = state["visible"].to(device)
        self.before = None if before is None else before.to(device)


def _stable(before: Bool[Tensor, "*n"], now: Bool[Tensor, "*n"]) -> bool:
    """Whether two successive masks agree, and leave something out."""
    union = max(1, int((before | now).sum()))
    agree = int((before & now).sum()) / union > _STABLE
    # A field that has learnt nothing yet is a haze: it keeps all of space, and steadily.
    return agree and float(now.float().mean()) < _LARGEST
