"""Causal depthwise convolution over sequences with holes, for state-space models."""

from ._conv import causal_conv1d

__all__ = ["causal_conv1d"]
