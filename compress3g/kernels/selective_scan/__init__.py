"""The selective scan of state-space models, with the decay over pruned positions."""

from ._scan import selective_scan

__all__ = ["selective_scan"]
