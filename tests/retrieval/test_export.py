"""Exports against the stores themselves, where they are installed."""

from __future__ import annotations

import json

import numpy as np
import pytest

from compress3g.errors import ConfigError
from compress3g.retrieval.export import export, exported_pages

from .conftest import brute_force, make_page, make_query

DOCUMENTS = {"dir/a.pdf": [1, 2, 3], "dir/b.pdf": [4], "gone.pdf": [5, 6], "dir/c.pdf": [7, 8]}
SEEDS = {0: 1, 1: 2, 2: 3, 3: 4, 6: 7, 7: 8}  # of the living pages, by number
WHERE = {0: ("dir/a.pdf", 1), 1: ("dir/a.pdf", 2), 2: ("dir/a.pdf", 3), 3: ("dir/b.pdf", 1),
         6: ("dir/c.pdf", 1), 7: ("dir/c.pdf", 2)}  # fmt: skip


@pytest.fixture
def index(build):
    made = build(DOCUMENTS, metadata={"dir/b.pdf": {"year": 2024, "lang": "en"}})
    made.remove("gone.pdf")
    return made


def nearest(query):
    pages = {i: make_page(seed).vectors for i, seed in SEEDS.items()}
    return brute_force(query, pages, len(pages))


def test_pages_leave_with_their_documents_and_the_stored_vectors(index):
    found = {p.page_id: p for p in exported_pages(index)}
    assert {i: (p.doc, p.page) for i, p in found.items()} == WHERE
    assert found[3].meta == {"year": 2024, "lang": "en"}
    for i, seed in SEEDS.items():
        np.testing.assert_array_equal(found[i].vectors, make_page(seed).vectors.astype(np.float32))


def test_an_index_without_originals_exports_decoded_vectors(build):
    made = build({"a": [1, 2]}, store="none", residual="res4", k=16)
    for page, seed in zip(exported_pages(made), (1, 2), strict=True):
        # Four bits a dimension of what 16 centroids leave: a cosine above .98.
        assert (page.vectors * make_page(seed).vectors).sum(1).min() > 0.98


def test_sets_of_codes_cannot_be_exported(build):
    made = build({"a": [1]}, store="none", patches=False)
    with pytest.raises(ConfigError, match="--patches"):
        list(exported_pages(made))


@pytest.mark.filterwarnings("ignore")
def test_lancedb_ranks_the_exported_pages_like_brute_force(index, tmp_path):
    lancedb = pytest.importorskip("lancedb")
    folder = str(tmp_path / "lance")
    assert export(index, "lancedb", folder, "pages") == len(SEEDS)
    table = lancedb.connect(folder).open_table("pages")
    rows = {r["page_id"]: r for r in table.to_arrow().to_pylist()}
    assert {i: (r["doc"], r["page"]) for i, r in rows.items()} == WHERE
    assert json.loads(rows[3]["meta"]) == {"year": 2024, "lang": "en"}
    query = make_query(3)
    asked = table.search(query.tolist(), vector_column_name="vectors").metric("cosine")
    found = [r["page_id"] for r in asked.limit(6).to_list()]
    assert found == [i for i, _ in nearest(query)]
    with pytest.raises(ConfigError, match="already exists"):
        export(index, "lancedb", folder, "pages")


@pytest.mark.filterwarnings("ignore")
def test_qdrant_ranks_the_exported_pages_like_brute_force(index, tmp_path):
    qdrant = pytest.importorskip("qdrant_client")
    folder = str(tmp_path / "qdrant")
    assert export(index, "qdrant", folder, "pages") == len(SEEDS)
    client = qdrant.QdrantClient(path=folder)
    try:
        query = make_query(3)
        points = client.query_points("pages", query=query.tolist(), limit=6).points
        expected = nearest(query)
        assert [p.id for p in points] == [i for i, _ in expected]
        # Pages are half precision.
        np.testing.assert_allclose([p.score for p in points], [s for _, s in expected], rtol=1e-3)
        assert {p.id: (p.payload["doc"], p.payload["page"]) for p in points} == WHERE
        (english,) = [p.payload for p in points if p.id == 3]
        assert (english["year"], english["lang"]) == (2024, "en")
    finally:
        client.close()
    with pytest.raises(ConfigError, match="already has a collection 'pages'"):
        export(index, "qdrant", folder, "pages")
