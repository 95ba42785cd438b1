"""Diffusion models: masks learnt through whole samplers, and pipelines that have lost weights."""

from typing import Any

from ..criteria import refit
from .config import EcoDiffConfig
from .ecodiff import learn_masks
from .finetune import FinetuneConfig, Finetuned, finetune
from .ip_adapter import load_ip_adapter
from .learned import Learned
from .lora import load_lora
from .pipelines import denoiser_of, generate, open_pipeline
from .prune import prune
from .pruned_models import save
from .report import race, report
from .sampling import Replay
from .scores import PruneConfig, before_cut, scores_of
from .trajectory import Recording, rollout
from .units import skipped_of, units_of

__all__ = [
    "EcoDiffConfig", "FinetuneConfig", "Finetuned", "Learned", "PruneConfig", "Recording", "Replay",
    "before_cut", "denoiser_of", "finetune", "generate", "learn_masks", "load_ip_adapter",
    "load_lora", "open_pipeline", "prune", "race", "refit", "report", "rollout", "save",
    "scores_of", "skipped_of", "units_of",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """What diffusers asks of a library that model_index.json names: its classes and their base."""
    if name in ("ModelMixin", "SchedulerMixin", "DiffusionPipeline"):
        import diffusers

        return getattr(diffusers, name)
    from .pruned_models import class_named

    return class_named(name)
