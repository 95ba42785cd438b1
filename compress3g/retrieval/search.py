"""Search in stages: a scan over codes of all pages, then ever better scores of ever fewer pages.

    stage 0   one vector a page (page_graph.py), in very large collections or when asked   -> n0
    stage 1   sum_t max_j table[code_j, t], 8-bit, all living pages that pass the filter   -> n1
    stage 2   MaxSim of residual or sign codecs, or of the centroids in float              -> n2
    stage 3   MaxSim of the stored originals, where the index keeps them                   -> k

Ties go to the lower page number at every stage.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Float32, Int64

from ..errors import ConfigError, DocumentError
from ..kernels import code_scan
from .encoding import originals
from .page_graph import pooled_query
from .places import unpack_places
from .prune import keep_query_tokens
from .rescore import decoded
from .search_config import SearchConfig
from .stages import exact_stage, later_stages, positions_to_score, rescore, scan, top
from .vectors import check_vectors
from .view import View

_BATCH = 16  # queries that share a pass over the codes
GRAPH_PAGES = 500_000  # from which on --graph auto uses the graph


@dataclass(frozen=True, slots=True, eq=False)
class Ranking:
    """Pages best first, with scores. scanned: pages of stage 1. seconds: wall time per stage."""

    page_ids: Int64[np.ndarray, "k"]
    scores: Float32[np.ndarray, "k"]
    scanned: int
    seconds: dict[str, float]


def search(
    view: View,
    queries: Sequence[Float[np.ndarray, "_ d"]],
    config: SearchConfig,
    *,
    allowed: Int64[np.ndarray, "n"] | None = None,
) -> list[Ranking]:
    """The best `config.k` pages of each query; all of them when there are fewer.

    queries: unit vectors. allowed: page numbers that pass the filter, None for all; all that pass
    are scanned, graph or not. Raises DocumentError for an empty index or query, VectorError for
    vectors that cannot be used, ConfigError for exact search in an index that keeps no originals
    and for a graph that is not there.
    """
    checked = prepared(view, queries, config)
    positions = positions_to_score(view, allowed)
    by_graph = allowed is None and _wants_graph(view, config)
    rankings = []
    for start in range(0, len(checked), _BATCH):
        batch = checked[start : start + _BATCH]
        if config.exact:
            rankings += [_exact(view, q, config, positions) for q in batch]
        elif by_graph:
            rankings += [_by_graph(view, q, config) for q in batch]
        else:
            rankings += _staged(view, batch, config, positions)
    return rankings


def prepared(
    view: View, queries: Sequence[Float[np.ndarray, "_ d"]], config: SearchConfig
) -> list[Float32[np.ndarray, "_ d"]]:
    """The queries as they are searched: checked, and without the tokens that are not kept.

    Raises as `search` does.
    """
    encoding = view.encoding
    if encoding is None or len(view) == 0:
        raise DocumentError("the index is empty: add documents with `compress3g index add`")
    if config.exact and encoding.config.store == "none":
        raise ConfigError("the index keeps no vectors to score exactly: build it with --store f16")
    checked = [
        _check_query(q, f"query {i}", encoding.codebook.dimension) for i, q in enumerate(queries)
    ]
    if config.query_keep < 1:
        return [_rare_tokens(view, q, config.query_keep) for q in checked]
    return checked


def _check_query(
    query: Float[np.ndarray, "t d"], name: str, dimension: int
) -> Float32[np.ndarray, "t d"]:
    query = np.ascontiguousarray(query, np.float32)
    if query.ndim == 2 and len(query) == 0:
        raise DocumentError(f"{name} is empty: give at least one word")
    check_vectors(query, name, dimension=dimension, unit=False)
    return query


def _wants_graph(view: View, config: SearchConfig) -> bool:
    """Raises ConfigError when a graph is asked for that the index does not have."""
    assert view.encoding is not None
    there = view.encoding.config.graph
    if config.graph == "on" and not there:
        raise ConfigError("the index has no graph over its pages: build it with --graph")
    return config.graph == "on" or (config.graph == "auto" and there and len(view) >= GRAPH_PAGES)


def _by_graph(view: View, query: Float32[np.ndarray, "t d"], config: SearchConfig) -> Ranking:
    """The other stages over the pages that the graph finds."""
    clock = time.perf_counter()
    positions = view.positions_by_graph(pooled_query(query), config.graph_depth)
    seconds = time.perf_counter() - clock
    ranking = _staged(view, [query], config, positions)[0]
    return replace(ranking, seconds={"graph": seconds, **ranking.seconds})


def _staged(
    view: View,
    queries: Sequence[Float32[np.ndarray, "_ d"]],
    config: SearchConfig,
    positions: Int64[np.ndarray, "n"] | None,
) -> list[Ranking]:
    assert view.encoding is not None
    clock = time.perf_counter()
    n1, n2 = config.depths
    chosen = np.arange(len(view.page_ids)) if positions is None else positions
    similarities = [q @ view.encoding.codebook.centroids.T for q in queries]
    passed = _candidates(view, similarities, positions, chosen, n1)
    shared = (time.perf_counter() - clock) / len(queries)
    rankings = []
    for query, similarity, found in zip(queries, similarities, passed, strict=True):
        seconds = {"scan": shared}
        for stage, scorer, depth in later_stages(view, query, similarity, n2):
            clock = time.perf_counter()
            scores = rescore(view, scorer, found)
            order = top(scores, view.page_ids[found], min(depth, len(found)))
            found, scores = found[order], scores[order]
            seconds[stage] = time.perf_counter() - clock
        best = slice(0, config.k)
        rankings.append(Ranking(view.page_ids[found[best]], scores[best], len(chosen), seconds))
    return rankings


def _candidates(
    view: View,
    similarities: Sequence[Float32[np.ndarray, "_ k"]],
    positions: Int64[np.ndarray, "n"] | None,
    chosen: Int64[np.ndarray, "c"],
    n1: int,
) -> list[Int64[np.ndarray, "_"]]:
    """Stage 1: positions of the best n1 pages of each query. Few pages all pass without a scan."""
    if len(chosen) <= n1:
        return [chosen] * len(similarities)
    tables = [code_scan.quantise_table(s) for s in similarities]
    ids = view.page_ids if positions is None else view.page_ids[positions]
    return [chosen[top(total, ids, n1)] for total in scan(view, tables, positions)]


def _exact(
    view: View,
    query: Float32[np.ndarray, "t d"],
    config: SearchConfig,
    positions: Int64[np.ndarray, "n"] | None,
) -> Ranking:
    clock = time.perf_counter()
    chosen = np.arange(len(view.page_ids)) if positions is None else positions
    pages, scores = exact_stage(view, query, chosen, config.k)
    return Ranking(pages, scores, len(chosen), {"exact": time.perf_counter() - clock})


def _rare_tokens(
    view: View, query: Float32[np.ndarray, "t d"], keep: float
) -> Float32[np.ndarray, "s d"]:
    """The query without the tokens whose centroid is on most pages."""
    assert view.encoding is not None
    codes = view.encoding.codebook.assign(query)
    kept: Float32[np.ndarray, "s d"] = query[
        keep_query_tokens(codes, view.inverse_page_frequency, keep)
    ]
    return kept


def similarities(
    view: View, query: Float[np.ndarray, "t d"], page_id: int
) -> tuple[Float32[np.ndarray, "t m"], Int64[np.ndarray, "m 2"]]:
    """Similarity of each query token to each vector of a page, and the vectors' rows and columns.

    From the best vectors the index keeps; no model and no source needed. Raises DocumentError for
    a page that is not there, ConfigError for an index that keeps no patches.
    """
    positions = view.positions_of(np.asarray([page_id]))
    if not len(positions) or view.encoding is None:
        raise DocumentError(f"no page {page_id} in the index: it may have been removed")
    segment, rows, _ = next(view.split(positions))
    piece = segment.take(int(rows[0]), int(rows[0]) + 1)
    if "places" not in piece.streams:
        raise ConfigError("the index keeps no patches: build it with --patches for heat maps")
    grid = unpack_places(piece.streams["places"][0])
    store = piece.vectors.get("store")
    if store is not None:
        vectors = originals(store, piece.vectors.get("store_scale"))
    else:
        vectors = decoded(view.encoding, piece)
    checked = _check_query(query, "query", vectors.shape[1])
    return np.asarray(checked @ vectors.T), np.asarray(grid, np.int64)
