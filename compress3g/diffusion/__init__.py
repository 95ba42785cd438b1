"""Diffusion models: what can be removed from denoisers."""

from .units import units_of

__all__ = ["units_of"]
