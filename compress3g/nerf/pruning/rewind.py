"""Rewind: find the space worth features with a throw-away grid, then start anew inside it.

A mask helps a hash grid only if it is there from the first steps: empty space supplies 95 % of the
feature gradient at step 10, 11 % at step 400. So a first, short phase trains a coarse grid of its
own; as soon as the mask it suggests is stable, table, networks and optimiser are initialised again
and trained with the mask on, samples outside it never taken. This is the lottery ticket's rewind
(1803.03635), for space.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from jaxtyping import Bool, Float
from torch import Tensor

from ...kernels.hash_grid import Levels
from ..config import TrainConfig
from ..occupancy import dilate
from ..phase import Phase
from ..visibility import visibility
from ._pruner import Pruner

if TYPE_CHECKING:
    from ..trainer import Trainer

_LOOKS = 12  # times the mask is looked at, evenly, until the first phase must end
_FIRST_LOOK = 4
_LARGEST = 0.3  # share of space beyond which a mask says nothing yet
_STABLE = 0.92  # intersection over union of two successive masks
_REFINE = (0.15, 0.3, 0.5)  # shares of the second phase at which the mask is carved again
_COARSE = Levels.geometric(count=8, log2_size=15, finest=128)
_COARSE_MARCH = 110  # samples along the diagonal: the coarse grid resolves no more


class RewindPruner(Pruner):
    """A mask of visible cells from a first phase of at most `rewind_limit` of the run."""

    def __init__(self, config: TrainConfig, *, reinitialise: bool = True) -> None:
        self.config = config
        self.reinitialise = reinitialise
        self.visible: Tensor | None = None
        self.searching = True
        self._looked = 0
        self._refined = 0

    def start(self, trainer: Trainer) -> None:
        """Begin with the throw-away grid, sampled as coarsely as it can resolve."""
        if self.reinitialise:
            trainer.start_phase(
                Phase(
                    name="search",
                    levels=_COARSE,
                    march_step=3**0.5 / _COARSE_MARCH,
                    end=self.config.rewind_limit,
                    occupancy_every=8,
                    warm_up=1 << 30,
                )
            )

    def after_step(self, trainer: Trainer) -> None:
        """Look at the mask, begin anew when it is stable, carve it again later."""
        done = trainer.done()
        if self.searching:
            look = int(done / self.config.rewind_limit * _LOOKS)
            if look > self._looked and look >= _FIRST_LOOK:
                self._look(trainer, last=look >= _LOOKS)
            self._looked = max(look, self._looked)
        elif self._refined < len(_REFINE) and trainer.phase_done() >= _REFINE[self._refined]:
            self._refined += 1
            self._carve(trainer)

    def _look(self, trainer: Trainer, *, last: bool) -> None:
        before, self.visible = self.visible, visibility(trainer)
        if last or (before is not None and _stable(self._mask(before), self._mask())):
            self.searching = False
            if self._mask().any():  # a phase of a few steps may have seen nothing yet
                trainer.occupancy.allow(self._mask())
            if self.reinitialise:
                main = Phase.whole(self.config)
                trainer.start_phase(replace(main, begin=trainer.done()))

    def _mask(self, visible: Tensor | None = None) -> Bool[Tensor, "z y x"]:
        seen = self.visible if visible is None else visible
        assert seen is not None
        return dilate(seen > self.config.visible)

    def _carve(self, trainer: Trainer) -> None:
        """Drop kept cells that the better model shows to be invisible."""
        self.visible = visibility(trainer)
        seen = dilate(self.visible > self.config.visible / 2)
        if seen.any():
            trainer.occupancy.narrow(seen)

    def mask_bits(self, trainer: Trainer) -> int:
        """One bit per cell."""
        return int(trainer.occupancy.side**3)

    def picture(self, trainer: Trainer) -> Float[Tensor, "z y x"]:
        """Visibility of the kept cells."""
        kept = self.kept(trainer)
        return kept.float() if self.visible is None else self.visible * kept

    def state_dict(self) -> dict[str, Any]:
        """Where the search stands."""
        state: dict[str, Any] = {
            "searching": int(self.searching),
            "looked": self._looked,
            "refined": self._refined,
        }
        return state if self.visible is None else {**state, "visible": self.visible}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`."""
        self.searching, self._looked = bool(state["searching"]), int(state["looked"])
        self._refined, self.visible = int(state["refined"]), state.get("visible")


def _stable(before: Bool[Tensor, "*n"], now: Bool[Tensor, "*n"]) -> bool:
    """Whether two successive masks agree, and leave something out."""
    union = max(1, int((before | now).sum()))
    agree = int((before & now).sum()) / union > _STABLE
    # A field that has learnt nothing yet is a haze: it keeps all of space, and steadily.
    return agree and float(now.float().mean()) < _LARGEST
