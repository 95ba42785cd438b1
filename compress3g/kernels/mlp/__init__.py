"""Small perceptrons without bias, fused: the two networks of a hash-grid field."""

from ._mlp import mlp, padded

__all__ = ["mlp", "padded"]
