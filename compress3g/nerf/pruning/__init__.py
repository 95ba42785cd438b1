"""Four ways to find the space worth features; all of them serve the same trainer."""

from ..config import TrainConfig
from ._pruner import Pruner
from .lagrangian import PaperPruner, SaliencyPruner
from .projected import ProjectedPruner
from .rewind import RewindPruner

__all__ = [
    "PaperPruner",
    "ProjectedPruner",
    "Pruner",
    "RewindPruner",
    "SaliencyPruner",
    "make_pruner",
]

_PRUNERS: dict[str, type[Pruner]] = {
    "rewind": RewindPruner,
    "saliency": SaliencyPruner,
    "projected": ProjectedPruner,
    "paper": PaperPruner,
}


def make_pruner(config: TrainConfig) -> Pruner:
    """The pruner that the configuration names; one that prunes nothing without `hollow`."""
    if not config.hollow:
        return Pruner()
    return _PRUNERS[config.pruner](config)  # type: ignore[call-arg]
