"""What is left of a vector after its centroid, in a few bytes: the second stage of search.

    x~ = (c + r~) / |c + r~|        <q, x~> = (<q, c> + <q, r~>) * inv_norm
    r~ = g s of pieces              <q, x~> = (<q, c> + g <q, s>) * inv_norm

| name | bytes at D = 128 | what is stored |
|---|---|---|
| none | 0 | nothing: <q, c> alone, the centroid as it is |
| res1 res2 res4 | 16 32 64 | r in 1, 2 or 4 bits a dimension, one set of levels (2112.01488) |
| pq16 pq32 | 18 34 | the direction s of r in 16 or 32 pieces, one of 256 each; g; inv_norm |
| int8 | 132 | the vector itself on a grid of its own, and its step |
| f16 | 256 | the vector itself in half precision |

On top come two bytes of inv_norm, but for pieces, and the code. The query is never rounded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol, get_args, runtime_checkable

import numpy as np
from jaxtyping import Float, Float16, Float32, Int8, Integer, UInt8

from ..errors import ConfigError, VectorError
from .codebook import Codebook
from .config import ResidualName
from .quantizers import GAINS, Buckets, Pieces, fit_buckets, fit_pieces, nearest
from .vectors import Array

Norms = Float16[np.ndarray, "n"] | None  # inverse ones, unless they are among the bytes
Encoded = tuple[UInt8[np.ndarray, "n b"], Norms]

# 1 / |c + r~| of pieces, in steps of 0.6 %.
INVERSE_NORMS = np.geomspace(0.6, 3, 256, dtype=np.float32)
_BLOCK = 1 << 15  # rows at a time
_SHORTEST = 1e-3  # of c + r~: its inverse has to fit half precision


@runtime_checkable
class ResidualCodec(Protocol):
    """How the rest of a vector is stored; made by `fit_codec` or `load_codec`."""

    @property
    def name(self) -> str:
        """As in IndexConfig.residual."""

    @property
    def bytes_per_vector(self) -> int:
        """Columns of `encode`'s bytes; the code and most often inv_norm come on top."""

    def encode(self, x: Float[np.ndarray, "n d"], codes: Integer[np.ndarray, "n"]) -> Encoded:
        """Bytes [n, B] and inv_norm [n] or None of unit vectors and their codes."""

    def decode(
        self, codes: Integer[np.ndarray, "n"], stored: UInt8[np.ndarray, "n b"],
        inv_norm: Norms,
    ) -> Float32[np.ndarray, "n d"]:  # fmt: skip
        """The vectors x~."""

    def to_arrays(self) -> dict[str, Array]:
        """What was learned, to store."""


def fit_codec(
    name: str, sample: Float[np.ndarray, "n d"], codebook: Codebook, seed: int
) -> ResidualCodec:
    """A codec for residuals of `codebook`, learned from the sample the codebook was trained on.

    Raises ConfigError for an unknown name and for a dimension that the codec cannot divide.
    """
    whole = _check(name, codebook.dimension)
    if whole is not None:
        return whole(codebook)
    sample = np.asarray(sample, np.float32)
    r = sample - codebook.centroids[codebook.assign(sample)]
    if name.startswith("pq"):
        return PiecewiseResidual(codebook, name, fit_pieces(r, int(name[2:]), seed))
    return QuantizedResidual(codebook, name, fit_buckets(r, int(name[3:])))


def load_codec(name: str, codebook: Codebook, arrays: Mapping[str, Array]) -> ResidualCodec:
    """The codec whose `to_arrays` stored these. Raises ConfigError like `fit_codec`."""
    whole = _check(name, codebook.dimension)
    if whole is not None:
        return whole(codebook)
    if name.startswith("pq"):
        pieces = Pieces(*(np.asarray(arrays[n], np.float32) for n in ("words", "rotation")))
        return PiecewiseResidual(codebook, name, pieces)
    return QuantizedResidual(codebook, name, Buckets(np.asarray(arrays["levels"], np.float32)))


def _check(name: str, dimension: int) -> type[NoResidual | ByteVectors | HalfVectors] | None:
    """The class of codecs that learn nothing, None for the others."""
    if name not in get_args(ResidualName):
        raise ConfigError(f"--residual {name}: choose from {', '.join(get_args(ResidualName))}")
    pieces = int(name[2:]) if name.startswith("pq") else 8 if name.startswith("res") else 1
    if dimension % pieces:
        raise ConfigError(
            f"--residual {name} needs vectors of a dimension divisible by {pieces}, not {dimension}"
        )
    kinds: dict[str, type[NoResidual | ByteVectors | HalfVectors]] = {
        "none": NoResidual, "int8": ByteVectors, "f16": HalfVectors,
    }  # fmt: skip
    return kinds.get(name)


@dataclass(frozen=True, eq=False)
class NoResidual:
    """Codes only: the decoded vector is the centroid as it is."""

    codebook: Codebook
    name: ClassVar[str] = "none"
    bytes_per_vector: ClassVar[int] = 0

    def encode(self, x: Float[np.ndarray, "n d"], codes: Integer[np.ndarray, "n"]) -> Encoded:
        """No bytes, and inv_norm 1."""
        return np.zeros((len(codes), 0), np.uint8), np.ones(len(codes), np.float16)

    def decode(
        self, codes: Integer[np.ndarray, "n"], stored: UInt8[np.ndarray, "n 0"],
        inv_norm: Norms,
    ) -> Float32[np.ndarray, "n d"]:  # fmt: skip
        """The centroids."""
        return np.asarray(self.codebook.centroids[codes])

    def to_arrays(self) -> dict[str, Array]:
        """Nothing."""
        return {}


@dataclass(frozen=True, eq=False)
class HalfVectors:
    """The vector itself in float16: what `--store f16` and exact search read."""

    codebook: Codebook
    name: ClassVar[str] = "f16"

    @property
    def bytes_per_vector(self) -> int:
        """Two a dimension."""
        return 2 * self.codebook.dimension

    def encode(self, x: Float[np.ndarray, "n d"], codes: Integer[np.ndarray, "n"]) -> Encoded:
        """The bytes of x in half precision, little-endian; inv_norm 1."""
        half = np.ascontiguousarray(x, "<f2")
        return half.view(np.uint8), np.ones(len(half), np.float16)

    def vectors(self, stored: UInt8[np.ndarray, "n b"]) -> Float16[np.ndarray, "n d"]:
        """The stored bytes as they are scored, without a copy where they are contiguous."""
        return np.ascontiguousarray(stored).view("<f2")

    def decode(
        self, codes: Integer[np.ndarray, "n"], stored: UInt8[np.ndarray, "n b"],
        inv_norm: Norms,
    ) -> Float32[np.ndarray, "n d"]:  # fmt: skip
        """The vectors as they were rounded."""
        return self.vectors(stored).astype(np.float32)

    def to_arrays(self) -> dict[str, Array]:
        """Nothing."""
        return {}


@dataclass(frozen=True, eq=False)
class ByteVectors:
    """The vector itself in D signed bytes and a float32 step: x ~ step * byte."""

    codebook: Codebook
    name: ClassVar[str] = "int8"

    @property
    def bytes_per_vector(self) -> int:
        """One a dimension, and four for the step."""
        return self.codebook.dimension + 4

    def encode(self, x: Float[np.ndarray, "n d"], codes: Integer[np.ndarray, "n"]) -> Encoded:
        """D bytes, then the step, little-endian; inv_norm 1."""
        x = np.asarray(x, np.float32)
        step = np.maximum(np.abs(x).max(1, keepdims=True), 1e-30) / np.float32(127)
        grid = np.rint(x / step).astype(np.int8)
        stored = np.concatenate((grid.view(np.uint8), step.astype("<f4").view(np.uint8)), 1)
        return stored, np.ones(len(x), np.float16)

    def vectors(
        self, stored: UInt8[np.ndarray, "n b"]
    ) -> tuple[Int8[np.ndarray, "n d"], Float32[np.ndarray, "n"]]:
        """The stored bytes as they are scored: signed bytes and the step of each row."""
        step = np.ascontiguousarray(stored[:, -4:]).view("<f4")[:, 0]
        return np.ascontiguousarray(stored[:, :-4]).view(np.int8), step

    def decode(
        self, codes: Integer[np.ndarray, "n"], stored: UInt8[np.ndarray, "n b"],
        inv_norm: Norms,
    ) -> Float32[np.ndarray, "n d"]:  # fmt: skip
        """The vectors as they were rounded."""
        grid, step = self.vectors(stored)
        return np.asarray(grid * step[:, None])

    def to_arrays(self) -> dict[str, Array]:
        """Nothing."""
        return {}


@dataclass(frozen=True, eq=False)
class QuantizedResidual:
    """r = x - c in a few bits a dimension, and 1 / |c + r~|, so that no scorer computes it again.

    Scoring by kernels.residual_scan: the similarity Q centroids^T, and the buckets' `levels`.
    """

    codebook: Codebook
    name: str
    quantizer: Buckets

    @property
    def bytes_per_vector(self) -> int:
        """Of the residual."""
        return self.quantizer.bytes_of(self.codebook.dimension)

    def encode(self, x: Float[np.ndarray, "n d"], codes: Integer[np.ndarray, "n"]) -> Encoded:
        """Bytes of r, and inv_norm. Raises VectorError for shapes that do not fit."""
        _check_shapes(x, codes, self.codebook.dimension)
        stored = np.empty((len(codes), self.bytes_per_vector), np.uint8)
        inv_norm = np.empty(len(codes), np.float16)
        for part, c, r in _residuals(x, codes, self.codebook):
            stored[part] = self.quantizer.pack(r)
            inv_norm[part] = _inverse_length(c + self.quantizer.unpack(stored[part]))
        return stored, inv_norm

    def decode(
        self, codes: Integer[np.ndarray, "n"], stored: UInt8[np.ndarray, "n b"],
        inv_norm: Norms,
    ) -> Float32[np.ndarray, "n d"]:  # fmt: skip
        """(c + r~) * inv_norm."""
        whole = self.codebook.centroids[codes] + self.quantizer.unpack(stored)
        return np.asarray(whole * np.asarray(inv_norm, np.float32)[:, None])

    def to_arrays(self) -> dict[str, Array]:
        """Levels of the buckets."""
        return {"levels": self.quantizer.levels}


@dataclass(frozen=True, eq=False)
class PiecewiseResidual:
    """r = x - c as pieces of its direction and a gain, and which of INVERSE_NORMS is 1 / |c + r~|.

    Scoring by kernels.residual_scan: the similarity Q centroids^T, the pieces' `tables(query)`, and
    `scales`.
    """

    scales: ClassVar[Float32[np.ndarray, "2 w"]] = np.stack((GAINS, INVERSE_NORMS))

    codebook: Codebook
    name: str
    quantizer: Pieces

    @property
    def bytes_per_vector(self) -> int:
        """Of pieces, gain and norm."""
        return self.quantizer.bytes + 1

    def encode(self, x: Float[np.ndarray, "n d"], codes: Integer[np.ndarray, "n"]) -> Encoded:
        """Bytes of r and of the norm. Raises VectorError for shapes that do not fit."""
        _check_shapes(x, codes, self.codebook.dimension)
        stored = np.empty((len(codes), self.bytes_per_vector), np.uint8)
        for part, c, r in _residuals(x, codes, self.codebook):
            packed = self.quantizer.pack(r)
            stored[part, :-1] = packed
            length = _inverse_length(c + self.quantizer.unpack(packed))
            stored[part, -1] = nearest(INVERSE_NORMS, length)
        return stored, None

    def decode(
        self, codes: Integer[np.ndarray, "n"], stored: UInt8[np.ndarray, "n b"],
        inv_norm: Norms = None,
    ) -> Float32[np.ndarray, "n d"]:  # fmt: skip
        """(c + r~) / |c + r~|."""
        whole = self.codebook.centroids[codes] + self.quantizer.unpack(stored[:, :-1])
        return np.asarray(whole * INVERSE_NORMS[stored[:, -1:]])

    def to_arrays(self) -> dict[str, Array]:
        """Words and rotation."""
        return {"words": self.quantizer.words, "rotation": self.quantizer.rotation}


def _check_shapes(
    x: Float[np.ndarray, "n d"], codes: Integer[np.ndarray, "k"], dimension: int
) -> None:
    if x.shape != (len(codes), dimension):
        raise VectorError(
            f"vectors of shape {x.shape} with {len(codes)} codes, "
            f"the codebook has dimension {dimension}"
        )


def _residuals(
    x: Float[np.ndarray, "n d"], codes: Integer[np.ndarray, "n"], codebook: Codebook
) -> Iterator[tuple[slice, Float32[np.ndarray, "k d"], Float32[np.ndarray, "k d"]]]:
    """Rows, their centroids, and what is left of them, block by block."""
    for start in range(0, len(codes), _BLOCK):
        part = slice(start, start + _BLOCK)
        c = codebook.centroids[codes[part]]
        yield part, c, np.asarray(x[part], np.float32) - c


def _inverse_length(x: Float32[np.ndarray, "n d"]) -> Float32[np.ndarray, "n"]:
    return np.asarray(1 / np.maximum(np.linalg.norm(x, axis=1), _SHORTEST), np.float32)
