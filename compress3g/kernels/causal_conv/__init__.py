"""Causal depthwise convolution over sequences with holes, for state-space models."""

from ..registry import import_all
from ._conv import causal_conv1d

import_all("causal_conv")

__all__ = ["causal_conv1d"]
