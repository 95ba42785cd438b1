"""What the trainer asks of a pruner; each method does nothing unless a pruner needs it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from jaxtyping import Bool, Float
from torch import Tensor

from ...kernels.ray_march import Samples
from ..gates import GateName
from ..saliency import SaliencyGrid

if TYPE_CHECKING:
    from ..trainer import Trainer


class Pruner:
    """Decides which space is worth features. The default prunes nothing."""

    gate: GateName = "none"

    def saliency(self) -> SaliencyGrid | None:
        """A fresh saliency grid for the field, None where the pruner works without one."""
        return None

    def start(self, trainer: Trainer) -> None:
        """Begin the run; may begin it with a phase of the pruner's own."""

    def before_step(self, trainer: Trainer) -> None:
        """Set what the coming step needs, such as learning rates."""

    def watch(self, trainer: Trainer, samples: Samples, weight: Float[Tensor, "n"]) -> None:
        """See what the step's samples contribute to their rays."""

    def penalty(self, trainer: Trainer) -> Float[Tensor, ""] | None:
        """What is added to the loss, None for nothing."""
        return None

    def after_step(self, trainer: Trainer) -> None:
        """Dual ascent, projections, changes of phase."""

    def gamma(self) -> float | None:
        """The multiplier of the constraint, None where there is none."""
        return None

    def kept(self, trainer: Trainer) -> Bool[Tensor, "z y x"]:
        """Cells whose features can matter. Without pruning: all that are allowed at all."""
        side = trainer.occupancy.side
        return trainer.occupancy.allowed.view(side, side, side)

    def picture(self, trainer: Trainer) -> Float[Tensor, "z y x"]:
        """Saliency in [0, 1] to be looked at; a cube."""
        return self.kept(trainer).float()

    def mask_bits(self, trainer: Trainer) -> int:
        """Bits that must be stored beside the parameters to know the kept cells."""
        return 0

    def state_dict(self) -> dict[str, Any]:
        """Numbers and tensors from which the pruner goes on, by name."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`."""
