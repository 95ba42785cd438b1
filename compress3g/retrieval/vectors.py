"""What an encoder makes of one page, and what is refused before anything is done with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from jaxtyping import Float, Float32, Int64, Integer, Real
from torch import Tensor

from ..errors import VectorError

Array = npt.NDArray[Any]

PATCH, SPECIAL = 0, 1  # kinds of vectors
_LENGTH = 1e-2  # how far from one a unit vector in half precision may be


@dataclass(frozen=True, slots=True, eq=False)
class PageVectors:
    """The vectors of a page, one row each; arrays or tensors in, numpy arrays inside.

    vectors: [M, D] float16 or float32, unit rows. saliency: how much each row matters, what pruning
    goes by. grid: row and column of the patch, -1 for none. kind: PATCH for a patch of the picture
    or a word-piece, SPECIAL for what the encoder adds to every page. signals: all kinds of saliency
    that the encoder tells, by name.
    Missing grid and kind: no geometry, all patches. Raises VectorError where shapes disagree.
    """

    vectors: Float[np.ndarray, "m d"]
    saliency: Real[np.ndarray, "m"] | None = None
    grid: Integer[np.ndarray, "m 2"] | None = None
    kind: Integer[np.ndarray, "m"] | None = None
    signals: Mapping[str, Real[np.ndarray, "m"]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        vectors = array(self.vectors)
        if vectors.ndim != 2 or vectors.dtype not in (np.float16, np.float32):
            raise VectorError(
                f"page vectors have shape {vectors.shape} and type {vectors.dtype}: "
                "give [vectors, dimension] in float16 or float32"
            )
        rows = len(vectors)
        grid = np.full((rows, 2), -1) if self.grid is None else array(self.grid)
        kind = np.zeros(rows, np.uint8) if self.kind is None else array(self.kind)
        saliency = None if self.saliency is None else array(self.saliency).astype(np.float32)
        signals = {name: array(s).astype(np.float32) for name, s in self.signals.items()}
        for name, found, wanted in (
            ("grid", grid.shape, (rows, 2)),
            ("kind", kind.shape, (rows,)),
            ("saliency", None if saliency is None else saliency.shape, (rows,)),
            *((f"saliency {name}", s.shape, (rows,)) for name, s in signals.items()),
        ):
            if found not in (wanted, None):
                raise VectorError(f"{name} of a page has shape {found}, its vectors need {wanted}")
        object.__setattr__(self, "vectors", vectors)
        object.__setattr__(self, "saliency", saliency)
        object.__setattr__(self, "signals", signals)
        object.__setattr__(self, "grid", grid.astype(np.int16))
        object.__setattr__(self, "kind", kind.astype(np.uint8))

    def __len__(self) -> int:
        return len(self.vectors)

    @property
    def patches(self) -> Int64[np.ndarray, "p"]:
        """Rows that are patches, ascending."""
        return np.flatnonzero(self.kind == PATCH)

    @property
    def specials(self) -> Int64[np.ndarray, "s"]:
        """Rows that are not patches, ascending."""
        return np.flatnonzero(self.kind != PATCH)

    def take(self, rows: Int64[np.ndarray, "k"]) -> PageVectors:
        """The page with only these rows, in this order."""
        assert self.grid is not None
        assert self.kind is not None
        return replace(
            self,
            vectors=self.vectors[rows],
            saliency=None if self.saliency is None else self.saliency[rows],
            grid=self.grid[rows],
            kind=self.kind[rows],
            signals={name: s[rows] for name, s in self.signals.items()},
        )


def array(x: Array | Tensor) -> Array:
    """The numpy array behind a tensor on any device; arrays pass through."""
    if isinstance(x, Tensor):
        whole: Array = x.detach().cpu().numpy()
        return whole
    return np.asarray(x)


def normalise(x: Float[np.ndarray, "n d"]) -> Float32[np.ndarray, "n d"]:
    """Rows of length one, zero rows left as they are.

    >>> normalise(np.array([[3.0, 4.0], [0.0, 0.0]]))
    array([[0.6, 0.8],
           [0. , 0. ]], dtype=float32)
    """
    x = np.asarray(x, np.float32)
    length = np.linalg.norm(x, axis=1, keepdims=True)
    return np.asarray(x / np.where(length > 0, length, 1), np.float32)


def check_vectors(
    x: Float[np.ndarray, "n d"], where: str, *, dimension: int | None = None, unit: bool = True
) -> None:
    """Raises VectorError naming `where` and the first row that cannot be used.

    A row must be finite, not zero and, with `unit`, of length one within 0.01; `dimension` is what
    the rest of the index has. A zero row would win MaxSim against every negative similarity.
    """
    if x.ndim != 2:
        raise VectorError(f"{where}: vectors have shape {x.shape}, not [vectors, dimension]")
    if dimension is not None and x.shape[1] != dimension:
        raise VectorError(
            f"{where}: vectors have dimension {x.shape[1]}, the index has {dimension}: "
            "use the encoder the index was built with"
        )
    if len(x) == 0:
        raise VectorError(f"{where}: no vectors")
    squares = np.einsum("nd,nd->n", x, x, dtype=np.float32)
    bad = ~np.isfinite(squares)
    if bad.any():
        raise VectorError(f"{where}: vector {int(bad.argmax())} holds NaN or infinity")
    bad = squares == 0
    if bad.any():
        raise VectorError(
            f"{where}: vector {int(bad.argmax())} is zero: drop the padding of the encoder's output"
        )
    bad = np.abs(np.sqrt(squares) - 1) > _LENGTH
    if unit and bad.any():
        row = int(bad.argmax())
        raise VectorError(
            f"{where}: vector {row} has length {float(squares[row]) ** 0.5:.3g}, not 1: "
            "normalise the vectors"
        )
