"""Late interaction over sign bits: Hamming distances, and float queries against signs."""

from ._hamming import scan, score

__all__ = ["scan", "score"]
