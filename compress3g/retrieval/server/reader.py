"""An index that several threads search while another process writes to it."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32

from ...errors import Compress3GError, ConfigError, DocumentError, FormatError
from ..catalog import DocumentRow
from ..hits import Hit
from ..index import Index
from ..search_config import SearchConfig
from .recent import Recent

_QUERIES = 256  # whose vectors are kept
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Query:
    """Vectors of a query, and the text of the token each belongs to."""

    vectors: Float32[np.ndarray, "t d"]
    tokens: Sequence[str]


@dataclass(frozen=True, slots=True)
class Found:
    """Hits best first, pages that passed the filter, and wall time by stage in seconds."""

    query: Query
    hits: Sequence[Hit]
    scanned: int
    seconds: Mapping[str, float]


class Reader:
    """Answers from one snapshot at a time, and from the next once something was committed.

    A thread that refreshes does not stop others: they finish with the snapshot they began with.
    SQLite connections belong to the thread that opened them (catalog.py): call from few threads.
    Raises ConfigError for an index that has no encoder for queries.
    """

    def __init__(self, index: Index) -> None:
        self.index = index
        encoder = index.encoder
        self._file = self._identity()
        self._refreshing = threading.Lock()
        self._queries: Recent[str, Query] = Recent(
            lambda text: Query(encoder.encode_queries([text])[0], encoder.query_tokens(text)),
            limit=_QUERIES,
        )

    def _identity(self) -> tuple[int, int]:
        about = os.stat(self.index.path / "catalog.sqlite")
        return about.st_dev, about.st_ino

    def query(self, text: str) -> Query:
        """The query encoded. Raises DocumentError for one that is empty or too long."""
        if not text.strip():
            raise DocumentError("the query is empty: give at least one word")
        return self._queries(text)

    def search(self, text: str, config: SearchConfig, *, where: str | None = None) -> Found:
        """The best pages. Raises DocumentError, ConfigError as `Index.search`, FormatError."""
        self.refresh()
        clock = time.perf_counter()
        query = self.query(text)
        encoded = time.perf_counter() - clock
        (ranking,) = rankings = self.index.rank([query.vectors], where=where, config=config)
        (hits,) = self.index.hits([query.vectors], rankings)
        return Found(query, hits, ranking.scanned, {"encode": encoded, **ranking.seconds})

    def heatmap(self, text: str, page_id: int) -> Float32[np.ndarray, "t h w"]:
        """Similarity of each token to each cell of a page, NaN for none, from the index alone.

        Raises DocumentError for a page that is not there, ConfigError without patches.
        """
        return self.index.heatmap(self.query(text).vectors, page_id)

    def locate(self, page_id: int) -> tuple[DocumentRow, int] | None:
        """Document of a page and the number within it, from 1; None without such a page."""
        self.refresh()
        return self.index.locate(page_id)

    def refresh(self) -> None:
        """Sees what was committed since. Raises FormatError when the index is not there any more.

        An index that cannot be read as it is now goes on being shown as it was.
        """
        try:
            same = self._identity() == self._file
        except OSError:
            same = False
        if not same:
            raise FormatError(
                f"{self.index.path} was removed or built anew: stop the server and start it again"
            )
        if not self.index.outdated() or not self._refreshing.acquire(blocking=False):
            return
        try:
            self.index.refresh()
        except Compress3GError as error:
            _log.warning("the index is shown as it was before the last change: %s", error)
        finally:
            self._refreshing.release()


def token_scores(heat: Float32[np.ndarray, "t h w"]) -> list[float]:
    """What each token adds to a page's score by its patches: the best similarity, 0 without one."""
    best = np.where(np.isnan(heat), -np.inf, heat).max((1, 2))
    return [float(x) if np.isfinite(x) else 0.0 for x in best]


def heat_of(hit: Hit) -> Float32[np.ndarray, "t h w"] | None:
    """The map of a hit; None when the index keeps no patches, or the page went meanwhile."""
    try:
        return hit.heatmap()
    except (ConfigError, DocumentError):
        return None
