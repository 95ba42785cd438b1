"""Published scores of what may go, on one calibration pass."""

from .observe import Stats, observe

__all__ = ["Stats", "observe"]
