"""Volume rendering of packed samples: weights, colours and their gradients."""

from ._composite import composite, weights

__all__ = ["composite", "weights"]
