"""Late interaction over codes: one byte per query token and centroid, one look-up per vector."""

from ._scan import ScanTable, quantise_table, scan, scan_batch, score

__all__ = ["ScanTable", "quantise_table", "scan", "scan_batch", "score"]
