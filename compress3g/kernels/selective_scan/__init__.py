"""The selective scan of state-space models, with the decay over pruned positions."""

from ..registry import import_all
from ._scan import selective_scan

import_all("selective_scan")

__all__ = ["selective_scan"]
