"""Sign bits of centred, rotated vectors: the binary mode that keeps a ranking.

    y = R (x - mu)    bits = y > 0    x ~ mu + scale R^T sign(y)

Without centring the common mean of embeddings decides most bits (2506.21601 has no such mode; its
bits of centroid numbers are in paper.py, for comparison). MaxSim over bits is the least Hamming
distance; a query in floating point against bits is much better and costs little.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float16, Float32, UInt64

from ..errors import VectorError
from .vectors import Array, check_vectors, normalise

_ITERATIONS = 50  # of ITQ


@dataclass(frozen=True, slots=True, eq=False)
class SignCodec:
    """mean [D] and rotation [D, D]: D bits a vector, in ceil(D / 64) words, spare bits zero."""

    mean: Float32[np.ndarray, "d"]
    rotation: Float32[np.ndarray, "d d"]

    @property
    def words(self) -> int:
        """64-bit words of a vector."""
        return -(-len(self.mean) // 64)

    def encode(
        self, x: Float[np.ndarray, "n d"]
    ) -> tuple[UInt64[np.ndarray, "n w"], Float16[np.ndarray, "n"]]:
        """Bits of every row, dimension d in bit d mod 64 of word d // 64, and its scale.

        scale = |y|^2 / |y|_1, which makes <y, scale sign(y)> = |y|^2 (RaBitQ, 2405.12497). The mean
        of |y_d|, which makes scale sign(y) the nearest to y, ranks worse: Cranfield R@10 .833
        against .848. A vector equal to the mean has scale 0.
        """
        y = self._turned(x)
        total = np.abs(y).sum(1)
        scale = np.einsum("nd,nd->n", y, y) / np.maximum(total, np.float32(1e-30))
        return _packed(y > 0), scale.astype(np.float16)

    def encode_query(
        self, query: Float[np.ndarray, "t d"]
    ) -> tuple[UInt64[np.ndarray, "t w"], Float32[np.ndarray, "t d"]]:
        """The query twice: as bits for Hamming distances, and R q for the asymmetric score.

        <q, x> ~ <q, mu> + scale <R q, sign(y)>. The first term is the same for all pages and left
        out of scores.
        """
        return _packed(self._turned(query) > 0), np.asarray(query, np.float32) @ self.rotation.T

    def signs(self, bits: UInt64[np.ndarray, "n w"]) -> Float32[np.ndarray, "n d"]:
        """+1 and -1 of every dimension."""
        flat = np.unpackbits(_bytes(bits), axis=1, count=len(self.mean), bitorder="little")
        return flat.astype(np.float32) * 2 - 1

    def to_arrays(self) -> dict[str, Array]:
        """Mean and rotation, to store."""
        return {"mean": self.mean, "rotation": self.rotation}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Array]) -> SignCodec:
        """The codec that `to_arrays` stored."""
        return cls(*(np.asarray(arrays[name], np.float32) for name in ("mean", "rotation")))

    def _turned(self, x: Float[np.ndarray, "n d"]) -> Float32[np.ndarray, "n d"]:
        if x.ndim != 2 or x.shape[1] != len(self.mean):
            raise VectorError(f"vectors of shape {x.shape}, the sign codec has {len(self.mean)}")
        return np.asarray((np.asarray(x, np.float32) - self.mean) @ self.rotation.T)


def fit_signs(sample: Float[np.ndarray, "n d"], seed: int, *, itq: bool = False) -> SignCodec:
    """A sign codec with the sample's mean and a random rotation, or with `itq` a learned one.

    itq: iterative quantisation (Gong & Lazebnik, CVPR 2011), which turns the sample towards the
    corners of a cube. Better on clustered vectors, no better on text: off. Raises VectorError.
    """
    sample = np.asarray(sample, np.float32)
    check_vectors(sample, "training sample")
    mean = sample.mean(0, dtype=np.float64).astype(np.float32)
    rotation = random_rotation(sample.shape[1], seed)
    if itq:
        rotation = _itq(sample - mean, rotation)
    return SignCodec(mean, rotation)


def random_rotation(d: int, seed: int) -> Float32[np.ndarray, "d d"]:
    """A random orthogonal matrix, uniform over all of them.

    >>> r = random_rotation(8, 0)
    >>> bool(np.allclose(r @ r.T, np.eye(8), atol=1e-6))
    True
    """
    q, r = np.linalg.qr(np.random.default_rng(seed).standard_normal((d, d)))
    # Without the signs of r the factorisation prefers some rotations.
    return (q * np.sign(np.diag(r))).astype(np.float32)


def _itq(
    centred: Float32[np.ndarray, "n d"], rotation: Float32[np.ndarray, "d d"]
) -> Float32[np.ndarray, "d d"]:
    """Alternates bits = sign(x R^T) and the rotation nearest to them (orthogonal Procrustes)."""
    x = normalise(centred)
    for _ in range(_ITERATIONS):
        signs = np.where(x @ rotation.T > 0, np.float32(1), np.float32(-1))
        left, _, right = np.linalg.svd(signs.T @ x)
        rotation = left @ right
    return rotation.astype(np.float32)


def _packed(bits: Bool[np.ndarray, "n d"]) -> UInt64[np.ndarray, "n w"]:
    packed = np.packbits(bits, axis=1, bitorder="little")
    words = np.zeros((len(bits), -(-bits.shape[1] // 64) * 8), np.uint8)
    words[:, : packed.shape[1]] = packed
    return words.view("<u8").astype(np.uint64, copy=False)


def _bytes(words: UInt64[np.ndarray, "n w"]) -> Array:
    return np.ascontiguousarray(words, "<u8").view(np.uint8).reshape(len(words), -1)
