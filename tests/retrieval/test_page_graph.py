"""Stage 0: what the graph over pages finds, and that it lives and dies with its segment."""

from __future__ import annotations

import numpy as np
import pytest

from compress3g.errors import ConfigError, FormatError
from compress3g.retrieval import page_graph, search
from compress3g.retrieval.index import Index
from compress3g.retrieval.page_graph import pooled_pages
from compress3g.retrieval.search_config import SearchConfig

from .conftest import make_page, make_query

DOCUMENTS = {f"doc{i}": [10 * i + j for j in range(8)] for i in range(12)}
ALL = SearchConfig(k=5, graph="on", n0=1000)
SCAN = SearchConfig(k=5, graph="off")


@pytest.fixture(params=["graph", "page by page"])
def kind(request, monkeypatch):
    """Segments of these tests are too small for a graph, unless any are large enough."""
    if request.param == "graph":
        monkeypatch.setattr(page_graph, "FEWEST", 4)
    return request.param


def ranked(index, config, queries=6):
    return [
        (r.page_ids.tolist(), r.scores.tolist())
        for r in index.rank([make_query(i) for i in range(queries)], config=config)
    ]


def test_a_page_is_the_direction_of_its_sum():
    pages = [make_page(i, vectors=3 + i).vectors.astype(np.float32) for i in range(4)]
    found = pooled_pages(np.concatenate(pages), np.array([len(p) for p in pages]))
    wanted = [p.astype(np.float64).sum(0) / np.linalg.norm(p.sum(0)) for p in pages]
    np.testing.assert_allclose(found, wanted, atol=1e-3)  # half precision


def test_a_page_whose_vectors_cancel_out_is_its_first():
    x = np.array([[1, 0], [-1, 0], [0, 1]], np.float32)
    np.testing.assert_array_equal(pooled_pages(x, np.array([2, 1])), [[1, 0], [0, 1]])


def test_all_pages_from_the_graph_are_all_pages_scanned(build, kind):
    index = build(DOCUMENTS, graph=True, store="none", residual="pq16")
    assert ("graph" in index._view.segments[0].arrays) == (kind == "graph")
    assert ranked(index, ALL) == ranked(index, SCAN)


def test_the_graph_finds_the_pages_of_largest_inner_product(build, kind):
    index = build(DOCUMENTS, graph=True)
    view = index._view
    pooled = view.segments[0].arrays["pooled"].astype(np.float64)
    for i in range(5):
        query = make_query(i).sum(0)
        found = view.positions_by_graph(query, 10)
        best = np.argsort(-(pooled @ query.astype(np.float64)), kind="stable")[:10]
        assert len(np.intersect1d(found, best)) >= 9  # of 96 pages with 16 links each
        assert (np.diff(found) > 0).all()


def test_only_pages_that_the_graph_passes_on_are_scanned(build, kind):
    index = build(DOCUMENTS, graph=True)
    config = SearchConfig(k=3, n1=4, n2=3, graph="on", n0=20)
    ranking = index.rank([make_query(0)], config=config)[0]
    assert ranking.scanned == 20
    assert list(ranking.seconds) == ["graph", "scan", "rescore", "exact"]
    found = index._view.positions_by_graph(make_query(0).sum(0), 20)
    assert np.isin(ranking.page_ids, index._view.page_ids[found]).all()


def test_removed_pages_are_not_found_and_added_ones_are(build, kind, tmp_path):
    index = build(DOCUMENTS, graph=True)
    index.remove("doc3")
    index.add_vectors("new", [make_page(500 + i) for i in range(6)])
    assert len(index._view.segments) == 2
    assert ranked(index, ALL) == ranked(index, SCAN)
    query = make_page(503).vectors[:8].astype(np.float32)
    config = SearchConfig(k=1, n1=8, graph="on", n0=8)
    hit = index.search_vectors([query], config=config)[0][0]
    assert (hit.doc, hit.page) == ("new", 4)
    before = ranked(index, SCAN)
    with Index.open(tmp_path / "idx") as reader:
        index.compact()
        # Its graphs are read when they are first needed: their files are gone by now.
        assert ranked(reader, ALL) == before
    assert len(index._view.segments) == 1
    assert ranked(index, ALL) == before
    assert index.verify(deep=True).problems == ()


def test_a_new_codebook_keeps_the_graph(build, kind):
    index = build(DOCUMENTS, graph=True)
    index.retrain()
    assert ("graph" in index._view.segments[0].arrays) == (kind == "graph")
    assert ranked(index, ALL) == ranked(index, SCAN)


def test_what_passes_a_filter_is_scanned_whole(build, kind):
    metadata = {name: {"year": 2000 + i} for i, name in enumerate(DOCUMENTS)}
    index = build(DOCUMENTS, metadata=metadata, graph=True)
    config = SearchConfig(k=5, n1=5, graph="on", n0=5)
    query = make_query(1)
    found = index.rank([query], where="year >= 2004", config=config)[0]
    wanted = index.rank([query], where="year >= 2004", config=SearchConfig(k=5, n1=5))[0]
    assert found.scanned == 64
    assert found.page_ids.tolist() == wanted.page_ids.tolist()


def test_the_size_of_the_index_decides_unless_it_is_said(build, kind, monkeypatch):
    index = build(DOCUMENTS, graph=True)
    few = {"k": 3, "n1": 4, "n0": 20}

    def scanned(graph):
        return index.rank([make_query(0)], config=SearchConfig(graph=graph, **few))[0].scanned

    assert (scanned("auto"), scanned("on"), scanned("off")) == (96, 20, 96)
    monkeypatch.setattr(search, "GRAPH_PAGES", 96)
    assert (scanned("auto"), scanned("off")) == (20, 96)
    index.remove("doc0")
    assert scanned("auto") == 88


def test_a_graph_that_the_disk_has_no_room_for_is_an_error(tmp_path, monkeypatch):
    builder = page_graph.GraphBuilder(16)
    monkeypatch.setattr(page_graph, "FEWEST", 4)
    x = np.random.default_rng(0).standard_normal((9, 16))
    builder.add(x.astype(np.float16))
    assert sum(len(p) for p in builder.pieces(tmp_path)) == builder._graph.index_file_size()
    assert not list(tmp_path.iterdir())
    (tmp_path / "graph.unfinished").symlink_to("/dev/full")
    with pytest.raises(OSError, match="disk may be full"):
        list(builder.pieces(tmp_path))


def test_a_damaged_graph_is_named_and_not_used(build, monkeypatch, tmp_path):
    monkeypatch.setattr(page_graph, "FEWEST", 4)
    index = build(DOCUMENTS, graph=True)
    before = ranked(index, SCAN)
    path = index._view.segments[0].folder.path / "graph.u8"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 64
    path.write_bytes(data)
    (problem,) = index.verify(deep=True).problems
    assert "graph.u8" in problem
    assert "damaged (pages 0 to 95)" in problem
    with Index.open(tmp_path / "idx") as again:
        with pytest.raises(FormatError, match=r"graph\.u8 is damaged.*--graph off"):
            ranked(again, ALL)
        assert ranked(again, SCAN) == before


def test_pages_without_their_vector_are_a_problem(build, kind):
    index = build(DOCUMENTS, graph=True)
    segment = index._view.segments[0]
    segment.arrays["pooled"] = segment.arrays["pooled"][:-1]
    assert any("95 rows for 96 pages" in p for p in segment.problems(None))


def test_an_index_without_a_graph_says_so(build):
    index = build({"a": [1]})
    assert index.rank([make_query(0)])[0].scanned == 1
    with pytest.raises(ConfigError, match="no graph over its pages: build it with --graph"):
        index.rank([make_query(0)], config=SearchConfig(graph="on"))


@pytest.mark.usefixtures("unchecked")
def test_settings_nobody_can_search_with_are_refused():
    with pytest.raises(ConfigError, match="--graph perhaps: choose from auto, on, off"):
        SearchConfig(graph="perhaps")
    with pytest.raises(ConfigError, match="--n0 0 is out of range"):
        SearchConfig(n0=0)
