"""Numbers for centroids whose Hamming distance means something (polysemous codes, 1609.01882).

Near centroids get near numbers: first by halving along the principal axis again and again, each
half one bit, then by annealing, which swaps two numbers where that brings Hamming distances closer
to the distances of the centroids. b bits have b + 1 distances: a filter, not a ranking.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Float64, Int64

from ..errors import ConfigError, require

_LARGEST = 1 << 12  # annealing holds K x K distances


def order_centroids(
    centroids: Float[np.ndarray, "k d"], seed: int, *, anneal: bool = True
) -> Int64[np.ndarray, "k"]:
    """A different number below 2^ceil(log2 K) for every centroid.

    Raises ConfigError for more than 4096 centroids: annealing holds all pairs.
    """
    k = len(centroids)
    if k > _LARGEST:
        raise ConfigError(
            f"--binary index with {k} centroids: at most {_LARGEST}, or --binary sign"
        )
    if k < 3:
        return np.arange(k)
    bits = (k - 1).bit_length()
    numbers = np.zeros(k, np.int64)
    _halve(centroids.astype(np.float64), np.arange(k), bits, numbers)
    return _anneal(centroids.astype(np.float64), numbers, bits, seed) if anneal else numbers


def _halve(
    centroids: Float64[np.ndarray, "k d"], rows: Int64[np.ndarray, "r"], bits: int,
    numbers: Int64[np.ndarray, "k"],
) -> None:  # fmt: skip
    """Sets the lowest `bits` bits of the numbers of `rows`, which are at most 2^bits."""
    if len(rows) < 2:
        return
    x = centroids[rows] - centroids[rows].mean(0)
    axis = np.linalg.eigh(x.T @ x)[1][:, -1]
    order = rows[np.argsort(x @ axis, kind="stable")]
    half = (len(order) + 1) // 2
    numbers[order[half:]] |= 1 << (bits - 1)
    _halve(centroids, order[:half], bits - 1, numbers)
    _halve(centroids, order[half:], bits - 1, numbers)


def _anneal(
    centroids: Float64[np.ndarray, "k d"], numbers: Int64[np.ndarray, "k"], bits: int, seed: int
) -> Int64[np.ndarray, "k"]:
    """Numbers after faiss's annealing, which wants all 2^bits: copies stand for the unused."""
    faiss = require("faiss", extra="retrieval", purpose="ordering a codebook")
    used = np.sort(numbers)
    holder = np.empty(1 << bits, np.int64)
    holder[numbers] = np.arange(len(numbers))
    count = np.arange(1 << bits)
    if len(used) < len(count):
        holder = holder[used[np.bitwise_count(count[:, None] ^ used[None]).argmin(1)]]
    points = np.ascontiguousarray(centroids[holder], np.float32)
    quantizer = faiss.ProductQuantizer(points.shape[1], 1, bits)
    faiss.copy_array_to_vector(points.ravel(), quantizer.centroids)
    training = faiss.PolysemousTraining()
    training.seed = seed
    training.optimize_reproduce_distances(quantizer)
    moved = faiss.vector_to_array(quantizer.centroids).reshape(points.shape)
    free: dict[bytes, list[int]] = {}
    for number in reversed(count.tolist()):
        free.setdefault(moved[number].tobytes(), []).append(number)
    rows = centroids.astype(np.float32)
    return np.array([free[row.tobytes()].pop() for row in rows])
