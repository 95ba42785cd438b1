"""Two ways to put the rest of a vector into bytes: a few bits a dimension, or a few pieces.

Both turn it first, by a rotation that may be the identity: the kernels see a turned query instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8

from ..errors import require

WORDS = 256  # of one piece: a byte
_LEARNED_FROM = 1 << 14  # rows of the sample, for levels of single numbers
_LLOYD = 30


@dataclass(frozen=True, eq=False)
class Buckets:
    """`bits` bits a dimension: which of 2^bits levels [2^bits] is next to it, lowest bits first."""

    rotation: Float32[np.ndarray, "d d"]
    levels: Float32[np.ndarray, "l"]

    @property
    def bits(self) -> int:
        """Bits of a dimension."""
        return len(self.levels).bit_length() - 1

    @property
    def bytes(self) -> int:
        """Bytes of a vector."""
        return len(self.rotation) * self.bits // 8

    @cached_property
    def _cuts(self) -> Float32[np.ndarray, "l-1"]:
        return (self.levels[1:] + self.levels[:-1]) / 2

    def pack(self, r: Float32[np.ndarray, "n d"]) -> UInt8[np.ndarray, "n b"]:
        """Bytes; dimension d takes bits d * bits .. of the row, counted from the lowest."""
        number = np.zeros(r.shape, np.uint8)
        turned = r @ self.rotation.T
        for cut in self._cuts:
            number += turned > cut
        flat = number.reshape(len(r), -1, 8 // self.bits)
        shifts = np.arange(0, 8, self.bits, dtype=np.uint8)
        packed: UInt8[np.ndarray, "n b"] = np.bitwise_or.reduce(flat << shifts, axis=2)
        return packed

    def unpack(self, stored: UInt8[np.ndarray, "n b"]) -> Float32[np.ndarray, "n d"]:
        """The residuals that the bytes stand for."""
        shifts = np.arange(0, 8, self.bits, dtype=np.uint8)
        number = (stored[:, :, None] >> shifts) & (len(self.levels) - 1)
        return self.levels[number.reshape(len(stored), -1)] @ self.rotation


@dataclass(frozen=True, eq=False)
class Pieces:
    """One byte for each of m pieces of consecutive dimensions: the nearest of 256 words of it.

    words: [m, 256, D / m].
    """

    rotation: Float32[np.ndarray, "d d"]
    words: Float32[np.ndarray, "m w s"]

    @property
    def bytes(self) -> int:
        """Bytes of a vector."""
        return len(self.words)

    @cached_property
    def _quantizer(self) -> Any:
        faiss = require("faiss", extra="retrieval", purpose="product quantisation")
        made = faiss.ProductQuantizer(len(self.rotation), len(self.words), 8)
        faiss.copy_array_to_vector(np.ascontiguousarray(self.words).ravel(), made.centroids)
        return made

    def pack(self, r: Float32[np.ndarray, "n d"]) -> UInt8[np.ndarray, "n m"]:
        """The nearest word of every piece."""
        packed: UInt8[np.ndarray, "n m"] = self._quantizer.compute_codes(
            np.ascontiguousarray(r @ self.rotation.T)
        )
        return packed

    def unpack(self, stored: UInt8[np.ndarray, "n m"]) -> Float32[np.ndarray, "n d"]:
        """The residuals that the bytes stand for."""
        pieces = np.arange(len(self.words))
        return self.words[pieces, stored].reshape(len(stored), -1) @ self.rotation

    def tables(self, query: Float32[np.ndarray, "t d"]) -> Float32[np.ndarray, "t m w"]:
        """Inner products of the pieces of the turned query with all words."""
        pieces = (query @ self.rotation.T).reshape(len(query), len(self.words), -1)
        return np.einsum("tms,mws->tmw", pieces, self.words, optimize=True)


def fit_buckets(
    r: Float32[np.ndarray, "n d"], bits: int, rotation: Float32[np.ndarray, "d d"]
) -> Buckets:
    """Levels that lose least of all numbers of the turned residuals alike.

    Cut points start at quantiles (2112.01488) and then move to the middle between the means of
    their buckets (Lloyd), which for bell-shaped numbers loses 12 % less at two bits.
    """
    numbers = np.sort((r[:: max(1, len(r) // _LEARNED_FROM)] @ rotation.T).ravel())
    sums = np.concatenate(([0], np.cumsum(numbers, dtype=np.float64)))
    cuts = np.quantile(numbers, np.arange(1, 1 << bits) / (1 << bits))
    for _ in range(_LLOYD):
        edge = np.concatenate(([0], np.searchsorted(numbers, cuts), [len(numbers)]))
        count = np.diff(edge)
        # An empty bucket, of numbers that are all alike, takes the place of its cut.
        empty = np.append(cuts, cuts[-1])
        levels = np.where(count > 0, np.diff(sums[edge]) / np.maximum(count, 1), empty)
        cuts = (levels[1:] + levels[:-1]) / 2
    return Buckets(rotation, levels.astype(np.float32))


def fit_pieces(
    r: Float32[np.ndarray, "n d"], pieces: int, rotation: Float32[np.ndarray, "d d"], seed: int
) -> Pieces:
    """Words by faiss's k-means in every piece of the turned residuals."""
    faiss = require("faiss", extra="retrieval", purpose="product quantisation")
    made = faiss.ProductQuantizer(r.shape[1], pieces, 8)
    made.cp.seed, made.cp.min_points_per_centroid = seed, 1
    turned = r @ rotation.T
    # k-means wants as many rows as words: repeated rows are words twice.
    made.train(np.ascontiguousarray(np.resize(turned, (max(len(r), WORDS), r.shape[1]))))
    words = faiss.vector_to_array(made.centroids).reshape(pieces, WORDS, -1)
    return Pieces(rotation, words.copy())
