"""Stages of a search: what each passes on, and that none of them loses what it must not."""

from __future__ import annotations

from dataclasses import dataclass
from zlib import crc32

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compress3g.errors import ConfigError, DocumentError
from compress3g.retrieval.config import IndexConfig
from compress3g.retrieval.index import Index
from compress3g.retrieval.rescore import coded_scorer, decoded_scorer
from compress3g.retrieval.search_config import SearchConfig
from compress3g.retrieval.stages import top
from compress3g.retrieval.vectors import PageVectors

from .conftest import DIMENSION, make_page, make_query

DOCUMENTS = {f"doc{i}": [10 * i + j for j in range(1 + i % 4)] for i in range(12)}


@given(
    pairs=st.lists(st.tuples(st.integers(-3, 3), st.integers(0, 10**6)), unique_by=lambda p: p[1]),
    n=st.integers(1, 30),
)
def test_the_top_is_the_head_of_the_sorted_list(pairs, n):
    scores = np.asarray([s for s, _ in pairs], np.int32)
    ids = np.asarray([i for _, i in pairs], np.int64)
    wanted = sorted(pairs, key=lambda p: (-p[0], p[1]))[:n]
    assert [(int(scores[i]), int(ids[i])) for i in top(scores, ids, n)] == wanted


def test_codes_alone_rank_by_the_centroids_of_each_page(build):
    index = build(DOCUMENTS, store="none", residual="none")
    view, query = index._view, make_query(0)
    centroids = view.encoding.codebook.centroids.astype(np.float64)
    (segment,) = view.segments
    scores = []
    for row in range(len(segment)):
        codes = segment.take(row, row + 1).vectors["codes"]
        scores.append(float((query.astype(np.float64) @ centroids[codes].T).max(1).sum()))
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:5]
    ranking = index.rank([query], 5)[0]
    assert ranking.page_ids.tolist() == order
    np.testing.assert_allclose(ranking.scores, [scores[i] for i in order], rtol=1e-5)


@pytest.mark.parametrize("residual", ["res1", "res2", "res4", "pq16", "int8", "f16"])
def test_kernels_score_what_the_codecs_decode(build, residual):
    index = build(DOCUMENTS, residual=residual, store="none")
    encoding, segment = index._view.encoding, index._view.segments[0]
    rows = np.asarray([3, 0, 7, 7])
    for seed in range(3):
        query = make_query(seed)
        similarity = query @ encoding.codebook.centroids.T
        found = coded_scorer(encoding, query, similarity)(segment, rows)
        # Kernels keep half-precision factors of a few hundred terms: 1e-3 of scores of about 4.
        np.testing.assert_allclose(found, decoded_scorer(encoding, query)(segment, rows), rtol=1e-3)


def test_sign_bits_find_the_page_a_query_was_taken_from(build):
    index = build(DOCUMENTS, binary="sign", store="none", residual="none")
    for seed in (0, 31, 51):
        query = make_page(seed).vectors[:10].astype(np.float32)
        best = index.search_vectors([query], 3)[0]
        seeds = [DOCUMENTS[h.doc][h.page - 1] for h in best]
        assert seed in seeds


def test_only_n1_pages_reach_the_second_stage_and_n2_the_third(build, monkeypatch):
    from compress3g.retrieval import search

    index = build(DOCUMENTS)
    seen = []
    real = search.rescore
    monkeypatch.setattr(
        search,
        "rescore",
        lambda v, s, positions: seen.append(len(positions)) or real(v, s, positions),
    )
    index.rank([make_query(0)], config=SearchConfig(k=2, n1=9, n2=4))
    assert seen == [9, 4]


def test_depths_never_fall_below_the_hits_that_are_asked_for():
    assert SearchConfig(k=10).depths == (200, 50)
    assert SearchConfig(k=100).depths == (1000, 400)
    assert SearchConfig(k=10, n1=3, n2=2).depths == (10, 10)


def test_query_tokens_on_every_page_are_dropped_first(build):
    documents = {f"d{i}": [i] for i in range(10)}
    index = build(documents)
    query = make_query(2, tokens=8)
    same = index.rank([query], config=SearchConfig(query_keep=1.0))[0]
    fewer = index.rank([query], config=SearchConfig(query_keep=0.5))[0]
    codes = index._view.encoding.codebook.assign(query)
    rarity = index._view.inverse_page_frequency[codes]
    kept = np.sort(np.argsort(-rarity, kind="stable")[:4])
    wanted = index.rank([query[kept]])[0]
    assert fewer.page_ids.tolist() == wanted.page_ids.tolist()
    assert fewer.scores.max() < same.scores.max()


def test_heat_maps_need_patches(build):
    index = build({"a": [1]}, patches=False, store="none")
    hit = index.search_vectors([make_query(0)])[0][0]
    with pytest.raises(ConfigError, match="--patches"):
        hit.heatmap()


def test_cells_without_a_vector_are_nan_and_the_best_of_a_cell_speaks(tmp_path):
    x = np.eye(8, dtype=np.float16)[[0, 1, 2]]
    grid = np.asarray([[0, 0], [0, 0], [1, 2]], np.int16)
    with Index.create(
        tmp_path / "idx", dimension=8, config=IndexConfig(k=3, residual="none", store="f16")
    ) as index:
        index.add_vectors("a", [PageVectors(x, grid=grid)])
        query = np.asarray([[0.6, 0.8, 0, 0, 0, 0, 0, 0]], np.float32)
        heat = index.search_vectors([query])[0][0].heatmap()
    assert heat.shape == (1, 2, 3)
    assert heat[0, 0, 0] == pytest.approx(0.8, abs=1e-3)
    assert heat[0, 1, 2] == 0
    assert np.isnan(heat).sum() == 4


@dataclass
class Words:
    """An encoder of texts: a fixed vector per word."""

    fingerprint: str = "words 1"
    name: str = "words"
    dim: int = DIMENSION
    grid: tuple[int, int] | None = None

    def encode_queries(self, queries):
        return [
            np.stack(
                [make_page(crc32(w.encode()), vectors=1).vectors[0] for w in q.split()]
            ).astype(np.float32)
            for q in queries
        ]


def test_another_encoder_is_refused_naming_both(tmp_path):
    Index.create(tmp_path / "idx", encoder=Words()).close()
    Index.open(tmp_path / "idx", encoder=Words()).close()
    with pytest.raises(ConfigError, match=r"built with encoder 'words 1'.*'words 2'"):
        Index.open(tmp_path / "idx", encoder=Words(fingerprint="words 2"))


def test_queries_of_words_go_through_the_encoder(tmp_path):
    with Index.create(
        tmp_path / "idx", encoder=Words(), config=IndexConfig(k=32, residual="none")
    ) as index:
        index.add_vectors("a", [make_page(1)])
        assert index.search("net revenue")[0].doc == "a"
        assert [len(h) for h in index.search(["net", "net revenue"])] == [1, 1]
        with pytest.raises(DocumentError, match="query is empty"):
            index.search("  ")
