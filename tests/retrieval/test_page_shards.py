"""A search by shards finds the pages of a search in one process, with their scores."""

from __future__ import annotations

import numpy as np
import pytest

from compress3g.retrieval.index import Index
from compress3g.retrieval.page_shards import Crew, PageShard, shards_of
from compress3g.retrieval.search import prepared, search
from compress3g.retrieval.search_config import SearchConfig

from .conftest import fill, make_query

DOCUMENTS = {f"doc{i}": [10 * i + j for j in range(1 + i % 4)] for i in range(16)}


def crew_of(index: Index, count: int) -> tuple[Crew, list[PageShard]]:
    """Shards in this process, one after another."""
    shards = shards_of(index._view, index.config, index.path, count, allow_damaged=False)
    workers = [PageShard(shard) for shard in shards]

    def ask(method, arguments):
        return [getattr(w, method)(*a) for w, a in zip(workers, arguments, strict=True)]

    return Crew(ask, len(workers)), workers


def same(left, right) -> None:
    for a, b in zip(left, right, strict=True):
        assert a.page_ids.tolist() == b.page_ids.tolist()
        assert a.scores.tolist() == b.scores.tolist()
        assert (a.scanned, list(a.seconds)) == (b.scanned, list(b.seconds))


@pytest.fixture(
    params=[("none", "none"), ("none", "pq16"), ("f16", "res2")], ids=lambda p: "-".join(p)
)
def index(request, build):
    """Three segments, one of them without a living page at its end, ties, removed pages."""
    store, residual = request.param
    made = build(dict(list(DOCUMENTS.items())[:8]), store=store, residual=residual, k=32)
    fill(made, dict(list(DOCUMENTS.items())[8:]))
    fill(made, {"again": [21, 22], "last": [33]})
    made.remove("last")
    made.remove("doc3")
    return made


@pytest.mark.parametrize("count", [1, 2, 3, 7, 100])
def test_any_number_of_shards_finds_what_one_process_finds(index, count):
    queries = [make_query(i, tokens=3 + i % 5) for i in range(20)]
    crew, workers = crew_of(index, count)
    assert len(workers) <= count
    configs = [
        SearchConfig(k=3, n1=9, n2=4),
        SearchConfig(k=5, n1=100),
        SearchConfig(k=2, query_keep=0.5),
    ]
    if index.config.store != "none":
        configs.append(SearchConfig(k=4, exact=True))
    view = index._view
    for config in configs:
        checked = prepared(view, queries, config)
        for allowed in (None, np.array([2, 3, 5, 9, 30, 31, 999]), np.zeros(0, np.int64)):
            wanted = search(view, queries, config, allowed=allowed)
            same(crew.search(view, checked, config, allowed), wanted)


def test_shards_cover_every_page_once_and_are_alike_in_size(build):
    made = build({"a": list(range(50))})
    fill(made, {"b": list(range(50, 90))})
    for count in (1, 2, 3, 8, 200):
        shards = shards_of(made._view, made.config, made.path, count, allow_damaged=False)
        covered = [p for s in shards for p in range(s.first, s.stop)]
        assert covered == list(range(90))
        assert len(shards) == min(count, 90)
        if count == 3:
            assert all(25 <= s.stop - s.first <= 35 for s in shards)
