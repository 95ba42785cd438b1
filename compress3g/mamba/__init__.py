"""State-space models: what can be removed from them."""

from .units import units_of

__all__ = ["units_of"]
