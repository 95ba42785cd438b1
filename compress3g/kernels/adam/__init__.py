"""Adam (1412.6980) for large tables of which a step touches little."""

from ._adam import SparseAdam

__all__ = ["SparseAdam"]
