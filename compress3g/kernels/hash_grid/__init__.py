"""Multi-resolution hash grid: features of points, trilinear per level (Instant-NGP 2201.05989)."""

from ._encode import encode
from ._levels import Levels

__all__ = ["Levels", "encode"]
