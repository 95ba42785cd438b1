"""Hugging Face transformers: what can be removed from them, and a command that does it."""

from .units import units_of

__all__ = ["units_of"]
