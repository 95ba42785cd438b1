"""A search by many processes: each scores some of the pages, stages are merged one by one.

A shard is a range of positions of the view; its actor maps the whole index and touches its part
only. Every stage scores pages by themselves with one table for all, so the best of the best of the
shards are the best of all, ties by page number included: pages and scores are those of a search in
one process. The similarities of query and centroids are computed once and sent, lest two
processors round differently.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int32, Int64

from ..kernels import code_scan
from .catalog import Snapshot
from .config import IndexConfig
from .search import Ranking
from .search_config import SearchConfig
from .stages import exact_stage, later_stages, positions_to_score, rescore, scan, top
from .view import View, view_of

_BATCH = 16  # queries that share a pass over the codes

Queries = Sequence[Float32[np.ndarray, "_ d"]]
Similarities = Sequence[Float32[np.ndarray, "_ k"]]
Pages = Int64[np.ndarray, "_"]


@dataclass(frozen=True, slots=True)
class ShardOfPages:
    """Positions `first` to `stop` - 1 of a view, for whoever cannot see the view itself."""

    folder: str
    snapshot: Snapshot
    config: IndexConfig
    allow_damaged: bool
    first: int
    stop: int


class PageScorer:
    """Scores pages of the shard it is told; what it answers is by query.

    It keeps the view of the newest commit it was asked about, and the one before.
    """

    def __init__(self, threads: int | None = None) -> None:
        if threads is not None:
            import torch

            torch.set_num_threads(threads)
        self._views: dict[int, View] = {}

    def scan(
        self, shard: ShardOfPages, similarities: Similarities, allowed: Pages | None, depth: int
    ) -> list[tuple[Pages, Int32[np.ndarray, "_"]]]:
        """Stage 1: the best pages and their integer scores."""
        view = self._view_of(shard)
        positions = _own(shard, view, allowed)
        if not len(positions):
            return [(positions, np.zeros(0, np.int32)) for _ in similarities]
        ids = view.page_ids[positions]
        tables = [code_scan.quantise_table(s) for s in similarities]
        out = []
        for total in scan(view, tables, positions):
            best = top(total, ids, min(depth, len(ids)))
            out.append((ids[best], total[best]))
        return out

    def rescore(
        self,
        shard: ShardOfPages,
        stage: int,
        queries: Queries,
        similarities: Similarities,
        pages: Sequence[Pages],
    ) -> list[Float32[np.ndarray, "_"]]:
        """One of the later stages: scores of these pages, all of which are of the shard."""
        view = self._view_of(shard)
        out = []
        for query, similarity, ids in zip(queries, similarities, pages, strict=True):
            _, scorer, _ = later_stages(view, query, similarity, 0)[stage]
            order = np.argsort(ids)
            scores = np.empty(len(ids), np.float32)
            scores[order] = rescore(view, scorer, view.positions_of(ids[order]))
            out.append(scores)
        return out

    def exact(
        self, shard: ShardOfPages, queries: Queries, allowed: Pages | None, k: int
    ) -> list[tuple[Pages, Float32[np.ndarray, "_"]]]:
        """The best pages by stored vectors, and their scores."""
        view = self._view_of(shard)
        return [exact_stage(view, q, _own(shard, view, allowed), k) for q in queries]

    def _view_of(self, shard: ShardOfPages) -> View:
        generation = shard.snapshot.generation
        if generation not in self._views:
            view = view_of(
                Path(shard.folder), shard.snapshot, shard.config,
                map=True, allow_damaged=shard.allow_damaged,
            )  # fmt: skip
            self._views = {**dict(list(self._views.items())[-1:]), generation: view}
        return self._views[generation]


def _own(shard: ShardOfPages, view: View, allowed: Pages | None) -> Pages:
    """Positions of the shard that are to be scored."""
    positions = positions_to_score(view, allowed)
    if positions is None:
        return np.arange(shard.first, shard.stop)
    first, stop = np.searchsorted(positions, (shard.first, shard.stop))
    return positions[first:stop]


def shards_of(
    view: View, config: IndexConfig, folder: Path, count: int, *, allow_damaged: bool
) -> list[ShardOfPages]:
    """Ranges of about as many codes each; fewer than `count` where there are fewer pages."""
    lengths = [np.diff(s.arrays["unique_offsets"]) for s in view.segments]
    ends = np.cumsum(np.concatenate([np.zeros(0, np.int64), *lengths]))
    total = int(ends[-1]) if len(ends) else 0
    inner = np.searchsorted(ends, np.arange(1, count) * total / count, side="left") + 1
    edges = np.unique(np.clip([0, *inner, len(ends)], 0, len(ends))).tolist()
    return [
        ShardOfPages(str(folder.absolute()), view.snapshot, config, allow_damaged, a, b)
        for a, b in pairwise(edges)
    ]


class Crew:
    """The shards of one view at work.

    ask: calls a method of `PageScorer` for each shard, with arguments of its own after the shard.
    """

    def __init__(self, ask: Callable[[str, Sequence[tuple[Any, ...]]], list[Any]], count: int):
        self._ask, self._count = ask, count

    def search(
        self, view: View, queries: Queries, config: SearchConfig, allowed: Pages | None
    ) -> list[Ranking]:
        """As `search.search` does, of queries that were checked."""
        rankings: list[Ranking] = []
        for start in range(0, len(queries), _BATCH):
            batch = queries[start : start + _BATCH]
            run = self._exact if config.exact else self._staged
            rankings += run(view, batch, config, allowed)
        return rankings

    def _every(self, method: str, *arguments: Any) -> list[Any]:
        return self._ask(method, [arguments] * self._count)

    def _exact(
        self, view: View, queries: Queries, config: SearchConfig, allowed: Pages | None
    ) -> list[Ranking]:
        clock = time.perf_counter()
        parts = self._every("exact", queries, allowed, config.k)
        scanned = _scanned(view, allowed)
        seconds = {"exact": (time.perf_counter() - clock) / len(queries)}
        merged = [_merged([part[i] for part in parts], config.k) for i in range(len(queries))]
        return [Ranking(ids, scores, scanned, seconds) for ids, scores, _ in merged]

    def _staged(
        self, view: View, queries: Queries, config: SearchConfig, allowed: Pages | None
    ) -> list[Ranking]:
        assert view.encoding is not None
        clock = time.perf_counter()
        n1, n2 = config.depths
        similarities = [q @ view.encoding.codebook.centroids.T for q in queries]
        parts = self._every("scan", similarities, allowed, n1)
        found = [_merged([part[i] for part in parts], n1) for i in range(len(queries))]
        seconds = {"scan": (time.perf_counter() - clock) / len(queries)}
        stages = later_stages(view, queries[0], similarities[0], n2)
        for stage, (name, _, depth) in enumerate(stages):
            clock = time.perf_counter()
            found = self._rescored(stage, queries, similarities, found, depth)
            seconds[name] = (time.perf_counter() - clock) / len(queries)
        scanned = _scanned(view, allowed)
        return [
            Ranking(ids[: config.k], scores[: config.k], scanned, seconds)
            for ids, scores, _ in found
        ]

    def _rescored(
        self, stage: int, queries: Queries, similarities: Similarities,
        found: Sequence[tuple[Pages, Any, Pages]], depth: int,
    ) -> list[tuple[Pages, Any, Pages]]:  # fmt: skip
        asked = [
            (stage, queries, similarities, [ids[owner == shard] for ids, _, owner in found])
            for shard in range(self._count)
        ]
        parts = self._ask("rescore", asked)
        return [
            _merged(
                [(a[3][i], part[i]) for a, part in zip(asked, parts, strict=True)],
                depth,
            )
            for i in range(len(queries))
        ]


def _scanned(view: View, allowed: Pages | None) -> int:
    return len(view) if allowed is None else len(view.positions_of(allowed))


def _merged(parts: Sequence[tuple[Pages, Any]], depth: int) -> tuple[Pages, Any, Pages]:
    """The best pages of all shards with scores, and the shard of each."""
    ids = np.concatenate([p for p, _ in parts])
    scores = np.concatenate([s for _, s in parts])
    owner = np.repeat(np.arange(len(parts)), [len(p) for p, _ in parts])
    best = top(scores, ids, min(depth, len(ids)))
    return ids[best], scores[best], owner[best]
