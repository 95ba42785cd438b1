"""A search by shards finds the pages of a search in one process, with their scores."""

from __future__ import annotations

import numpy as np
import pytest

from compress3g.retrieval.index import Index
from compress3g.retrieval.page_shards import Crew, PageScorer, shards_of
from compress3g.retrieval.search import prepared, search
from compress3g.retrieval.search_config import SearchConfig

from .conftest import fill, make_query

DOCUMENTS = {f"doc{i}": [10 * i + j for j in range(1 + i % 4)] for i in range(16)}


def crew_of(index: Index, count: int) -> tuple[Crew, int]:
    """Shards in this process, one after another, by one scorer; and how many they are."""
    shards = shards_of(index._view, index.config, index.path, count, allow_damaged=False)
    scorer = PageScorer()

    def ask(method, arguments):
        return [getattr(scorer, method)(s, *a) for s, a in zip(shards, arguments, strict=True)]

    return Crew(ask, len(shards)), len(shards)


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


def test_any_number_of_shards_finds_what_one_process_finds(index):
    queries = [make_query(i, tokens=3 + i % 5) for i in range(17)]
    configs = [SearchConfig(k=3, n1=9, n2=4), SearchConfig(k=2, n1=100, query_keep=0.5)]
    if index.config.store != "none":
        configs.append(SearchConfig(k=4, exact=True))
    view = index._view
    for config in configs:
        checked = prepared(view, queries, config)
        for allowed in (None, np.array([2, 3, 5, 9, 30, 31, 999]), np.zeros(0, np.int64)):
            wanted = search(view, queries, config, allowed=allowed)
            for count in (1, 2, 100) if config is configs[0] and allowed is None else (3,):
                crew, shards = crew_of(index, count)
                assert shards <= count
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


def test_a_scorer_answers_about_the_view_it_is_asked_about(build):
    """Old and new in turn, as threads of a server ask that see a commit at different times."""
    made = build({"a": [1, 2], "b": [3]})
    before = shards_of(made._view, made.config, made.path, 1, allow_damaged=False)[0]
    scorer = PageScorer()
    similarity = [make_query(0) @ made._view.encoding.codebook.centroids.T]
    old = scorer.scan(before, similarity, None, 10)[0][0].tolist()
    fill(made, {"c": [4]})
    made.remove("b")
    after = shards_of(made._view, made.config, made.path, 1, allow_damaged=False)[0]
    for _ in range(2):
        assert sorted(scorer.scan(after, similarity, None, 10)[0][0].tolist()) == [0, 1, 3]
        assert scorer.scan(before, similarity, None, 10)[0][0].tolist() == old
