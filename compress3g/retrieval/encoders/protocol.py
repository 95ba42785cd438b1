"""What the index asks of an encoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32

from ..pages import PageImage
from ..vectors import PageVectors


@runtime_checkable
class Encoder(Protocol):
    """Pages and queries to unit vectors that are compared by late interaction.

    name: what `load_encoder` makes the same encoder from. fingerprint: differs when the vectors
    would: weights, precision, preprocessing. dim: D. grid: rows and columns that every page is
    divided into, None when it depends on the page.
    """

    @property
    def name(self) -> str: ...  # noqa: D102

    @property
    def fingerprint(self) -> str: ...  # noqa: D102

    @property
    def dim(self) -> int: ...  # noqa: D102

    @property
    def grid(self) -> tuple[int, int] | None: ...  # noqa: D102

    def encode_pages(self, pages: Sequence[PageImage]) -> list[PageVectors]:
        """Vectors of each page, padding dropped. Raises DocumentError for what it cannot see."""
        ...

    def encode_queries(self, queries: Sequence[str]) -> list[Float32[np.ndarray, "_ d"]]:
        """Vectors of each query's tokens."""
        ...

    def query_tokens(self, query: str) -> list[str]:
        """Text of each token that `encode_queries` gives a vector; a blank before a new word."""
        ...
