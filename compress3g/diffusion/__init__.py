"""Diffusion models: masks learnt through whole samplers, and pipelines that have lost weights."""

from typing import Any

from .config import EcoDiffConfig
from .ecodiff import learn_masks
from .learned import Learned
from .lora import load_lora
from .pipelines import denoiser_of, generate, open_pipeline
from .prune import prune
from .pruned_models import save
from .refit import refit
from .report import race, report
from .sampling import Replay
from .scores import PruneConfig, calibration, scores_of
from .trajectory import Recording, rollout
from .units import skipped_of, units_of

__all__ = [
    "EcoDiffConfig", "Learned", "PruneConfig", "Recording", "Replay", "calibration",
    "denoiser_of", "generate", "learn_masks", "load_lora", "open_pipeline", "prune", "race",
    "refit", "report", "rollout", "save", "scores_of", "skipped_of", "units_of",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """What diffusers asks of a library that model_index.json names: its classes and their base."""
    if name in ("ModelMixin", "SchedulerMixin", "DiffusionPipeline"):
        import diffusers

        return getattr(diffusers, name)
    from .pruned_models import class_named

    return class_named(name)
