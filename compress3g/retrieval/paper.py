"""HPC-ColPali as printed (2506.21601): codes on both sides, Hamming distance of their numbers.

For comparison tables only. Both scores are tables [T, K] of similarities between a query token and
a centroid, so the code scan of every other mode runs them.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Float32, Integer

from .codebook import Codebook


def quantised_similarity(
    query: Float[np.ndarray, "t d"], codebook: Codebook
) -> Float32[np.ndarray, "t k"]:
    """Inner products of the centroids nearest to the query tokens with all centroids."""
    return np.asarray(codebook.centroids[codebook.assign(query)] @ codebook.centroids.T)


def hamming_similarity(
    query_codes: Integer[np.ndarray, "t"],
    k: int,
    numbers: Integer[np.ndarray, "k"] | None = None,
) -> Float32[np.ndarray, "t k"]:
    """Equal bits of two centroid numbers, b - Hamming distance, with b = ceil(log2 K).

    numbers: what each centroid is called (ordering.py); by default its position, as in the paper,
    where nothing makes near centroids have near numbers.

    >>> hamming_similarity(np.array([0, 3]), 4)
    array([[2., 1., 1., 0.],
           [0., 1., 1., 2.]], dtype=float32)
    """
    called = np.arange(k) if numbers is None else np.asarray(numbers, np.int64)
    bits = int(called.max()).bit_length() if len(called) > 1 else 1
    different = np.bitwise_count(called[query_codes][:, None] ^ called[None])
    return np.asarray(bits - different, np.float32)
