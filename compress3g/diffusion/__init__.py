"""Diffusion models: what can be removed from denoisers."""

from .pipelines import denoiser_of, generate, open_pipeline
from .units import skipped_of, units_of

__all__ = ["denoiser_of", "generate", "open_pipeline", "skipped_of", "units_of"]
