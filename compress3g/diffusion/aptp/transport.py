"""Which prompt gets which code in training: optimal transport (APTP 2406.12042, section 3.3)."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor


def transport(
    similarity: Float[Tensor, "B N"], *, epsilon: float = 0.05, iterations: int = 3
) -> tuple[Float[Tensor, "B N"], Float[Tensor, "N"]]:
    """The plan Q that uses all codes alike, and what to add to similarities for the same choice.

        max over Q  Tr(Q^T C) + epsilon H(Q),   rows of Q sum to 1/B, columns to 1/N

    by Sinkhorn's algorithm in logarithms, from exp(C / epsilon); rows are normalised last, so that
    every prompt has all of its mass. Q = exp((C + f + g) / epsilon): the second result is g, the
    price of each code, with mean 0.
    """
    count, codes = similarity.shape
    log_q = similarity.double() / epsilon
    g = torch.zeros(codes, dtype=torch.float64, device=similarity.device)
    for _ in range(iterations):
        step = log_q.logsumexp(0) + math.log(codes)
        log_q, g = log_q - step, g - epsilon * step
        log_q = log_q - log_q.logsumexp(1, keepdim=True) - math.log(count)
    return log_q.exp().float(), (g - g.mean()).float()


class Recent:
    """The last embeddings of earlier batches: transport of a batch smaller than N means nothing."""

    def __init__(self, size: int) -> None:
        self._size = size
        self.rows: Tensor | None = None

    def with_new(self, new: Float[Tensor, "B U"]) -> Float[Tensor, "M U"]:
        """The new rows, then those before; the first `size` of them are kept."""
        both = new if self.rows is None else torch.cat([new, self.rows])
        self.rows = both[: self._size].detach()
        return both
