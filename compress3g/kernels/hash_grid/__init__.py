"""Multi-resolution hash grid: features of points, trilinear per level (Instant-NGP 2201.05989)."""

from ._levels import Levels
from ._encode import encode

__all__ = ["Levels", "encode"]
