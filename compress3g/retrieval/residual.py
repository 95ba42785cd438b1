"""What is left of a vector after its centroid, in a few bytes: the second stage of search.

    x~ = (c + r~) / |c + r~|        <q, x~> = (<q, c> + <q, r~>) * inv_norm

| name | bytes at D = 128 | r~ |
|---|---|---|
| none | 0 | nothing: <q, c> alone, the centroid as it is |
| res1 res2 res4 | 16 32 64 | 1, 2 or 4 bits a dimension, one set of levels (ColBERTv2 2112.01488) |
| pq16 pq32 | 16 32 | product quantisation into 16 or 32 pieces of 256 levels, after a rotation |
| int8 | 132 | the vector itself, rounded to a grid of its own |
| f16 | 256 | the vector itself in half precision |

and two bytes of inv_norm, one or two of the code. Scoring is asymmetric: the query is never rounded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Protocol, get_args

import numpy as np
from jaxtyping import Float, Float16, Float32, Int8, Integer, UInt8

from ..errors import ConfigError, VectorError, require
from .codebook import Codebook
from .vectors import Array

ResidualName = Literal["none", "res1", "res2", "res4", "pq16", "pq32", "int8", "f16"]

_LEVELS = 256  # of a piece of a product quantiser
_BLOCK = 1 << 16  # rows at a time
Encoded = tuple[UInt8[np.ndarray, "n b"], Float16[np.ndarray, "n"]]


class ResidualCodec(Protocol):
    """How the rest of a vector is stored; made by `fit_codec` or `load_codec`."""

    @property
    def name(self) -> ResidualName:
        """As in IndexConfig.residual."""

    @property
    def bytes_per_vector(self) -> int:
        """Columns of `encode`'s bytes; the code and inv_norm come on top."""

    def encode(self, x: Float[np.ndarray, "n d"], codes: Integer[np.ndarray, "n"]) -> Encoded:
        """Bytes [n, B] and 1 / |c + r~| [n]."""

    def decode(
        self, codes: Integer[np.ndarray, "n"], stored: UInt8[np.ndarray, "n b"],
        inv_norm: Float16[np.ndarray, "n"],
    ) -> Float32[np.ndarray, "n d"]:  # fmt: skip
        """The vectors x~ that were stored."""

    def to_arrays(self) -> dict[str, Array]:
        """What was learned, as arrays to store."""


def fit_codec(
    name: ResidualName, sample: Float[np.ndarray, "n d"], codebook: Codebook, seed: int
) -> ResidualCodec:
    """A codec for residuals of `codebook`, learned from the sample the codebook was trained on.

    Raises ConfigError for an unknown name and for a dimension the codec cannot divide.
    """
    _check(name, codebook.dimension)
    if name == "none":
        return NoResidual()
    if name in ("int8", "f16"):
        return _WHOLE[name](codebook.dimension)
    r = np.asarray(sample, np.float32) - codebook.centroids[codebook.assign(sample)]
    if name.startswith("res"):
        return _fit_buckets(name, r, codebook)
    return _fit_product(name, r, codebook, seed)


def load_codec(
    name: ResidualName, codebook: Codebook, arrays: Mapping[str, Array]
) -> ResidualCodec:
    """The codec whose `to_arrays` stored these."""
    _check(name, codebook.dimension)
    if name == "none":
        return NoResidual()
    if name in ("int8", "f16"):
        return _WHOLE[name](codebook.dimension)
    learned = {key: np.asarray(value, np.float32) for key, value in arrays.items()}
    return (BucketResidual if name.startswith("res") else ProductResidual)(
        name, codebook, **learned
    )


def _check(name: str, dimension: int) -> None:
    if name not in get_args(ResidualName):
        raise ConfigError(f"--residual {name}: choose from {', '.join(get_args(ResidualName))}")
    pieces = int(name[2:]) if name.startswith("pq") else 8 if name.startswith("res") else 1
    if dimension % pieces:
        raise ConfigError(f"--residual {name} needs a dimension divisible by {pieces}: {dimension}")


@dataclass(frozen=True, slots=True)
class NoResidual:
    """Codes only; there is nothing to encode or decode, stage 1 is all there is."""

    name: ResidualName = "none"
    bytes_per_vector: int = 0
    codebook: Codebook | None = None

    def encode(self, x: Float[np.ndarray, "n d"], codes: Integer[np.ndarray, "n"]) -> Encoded:
        """No bytes; inv_norm 1, because the length of a mean says how much to trust it."""
        return np.zeros((len(codes), 0), np.uint8), np.ones(len(codes), np.float16)

    def decode(
        self, codes: Integer[np.ndarray, "n"], stored: UInt8[np.ndarray, "n 0"],
        inv_norm: Float16[np.ndarray, "n"],
    ) -> Float32[np.ndarray, "n d"]:  # fmt: skip
        """The centroids."""
        assert self.codebook is not None
        return self.codebook.centroids[codes]

    def to_arrays(self) -> dict[str, Array]:
        """Nothing was learned."""
        return {}
