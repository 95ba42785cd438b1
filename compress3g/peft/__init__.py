"""Parameter-efficient fine-tuning: what can be removed from adapters."""

from .units import units_of

__all__ = ["units_of"]
