"""Vectors that were computed elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from jaxtyping import Float32

from ...errors import DocumentError
from ..pages import PageImage
from ..vectors import PageVectors

T = TypeVar("T")


@dataclass(frozen=True, slots=True, eq=False)
class PrecomputedEncoder:
    """Gives out stored vectors: of pages by `PageImage.where`, of queries by their text.

    For files of page vectors (.npz, .safetensors) no encoder is needed: the index reads them.
    """

    pages: Mapping[str, PageVectors]
    queries: Mapping[str, Float32[np.ndarray, "t d"]]
    dim: int
    fingerprint: str
    name: str = "vectors"
    grid: tuple[int, int] | None = None

    def encode_pages(self, pages: Sequence[PageImage]) -> list[PageVectors]:
        """See Encoder. Raises DocumentError for a page that is not stored."""
        return [_stored(self.pages, page.where, "page") for page in pages]

    def encode_queries(self, queries: Sequence[str]) -> list[Float32[np.ndarray, "_ d"]]:
        """See Encoder. Raises DocumentError for a query that is not stored."""
        return [_stored(self.queries, query, "query") for query in queries]


def _stored(table: Mapping[str, T], key: str, what: str) -> T:
    if key not in table:
        raise DocumentError(f"no vectors are stored for {what} {key!r}")
    return table[key]
