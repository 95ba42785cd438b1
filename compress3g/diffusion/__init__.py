"""Diffusion models: what can be removed from denoisers, and pipelines that have lost it."""

from typing import Any

from .lora import load_lora
from .pipelines import denoiser_of, generate, open_pipeline
from .prune import prune
from .pruned_models import save
from .report import race, report
from .scores import PruneConfig, scores_of
from .units import skipped_of, units_of

__all__ = [
    "PruneConfig", "denoiser_of", "generate", "load_lora", "open_pipeline", "prune", "race",
    "report", "save", "scores_of", "skipped_of", "units_of",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """What diffusers asks of a library that model_index.json names: its classes and their base."""
    if name in ("ModelMixin", "SchedulerMixin", "DiffusionPipeline"):
        import diffusers

        return getattr(diffusers, name)
    from .pruned_models import class_named

    return class_named(name)
