"""An index that began small: its codebook grows with it, and nobody has to know."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compress3g.errors import ConfigError
from compress3g.retrieval.codebook import Codebook, sample_size
from compress3g.retrieval.config import IndexConfig
from compress3g.retrieval.index import Index
from compress3g.retrieval.search_config import SearchConfig

from .conftest import brute_force, make_page, make_query

PAGES = 150


def made(path, *steps, **settings):
    """An index of pages 0 ... PAGES - 1, added in so many steps: of documents each."""
    config = IndexConfig(**{"k": 128, "residual": "none", **settings})
    index = Index.create(path, dimension=32, config=config)
    for first, last in pairwise((0, *steps)):
        documents = [
            index.document(f"{i}", [make_page(i)], sha256=str(i)) for i in range(first, last)
        ]
        index.add_documents(documents)
    return index


def recall(index):
    """Share of the best ten by brute force that the index has among its best ten."""
    pages = {i: make_page(i).vectors for i in range(PAGES)}
    hits = 0
    for seed in range(30):
        query = make_query(seed)
        wanted = {page for page, _ in brute_force(query, pages, 10)}
        hits += len(wanted & {h.page_id for h in index.search_vectors([query], 10)[0]})
    return hits / 300


@pytest.fixture
def whole_sample(monkeypatch):
    """Makes a sample of so many vectors a whole one."""

    def set_to(vectors):
        for module in ("codebook", "encoding"):
            monkeypatch.setattr(f"compress3g.retrieval.{module}.sample_size", lambda k: vectors)

    return set_to


def test_an_index_grown_page_by_page_ranks_like_one_built_at_once(tmp_path):
    one_by_one = (*range(1, 16), *range(20, PAGES + 1, 10))
    with (
        made(tmp_path / "once", PAGES) as once,
        made(tmp_path / "grown", *one_by_one) as grown,
        made(tmp_path / "fixed", *one_by_one, grow=False) as fixed,
    ):
        assert once.info().centroids == grown.info().centroids == 128
        assert fixed.info().centroids == 30  # of the first page alone
        # 300 hits are drawn; another seed of the codebook moves the share by .02.
        assert recall(grown) > recall(once) - 0.04
        assert recall(fixed) < recall(once) - 0.15
        assert grown.verify(deep=True).problems == ()
        every = SearchConfig(k=PAGES, n1=PAGES, n2=PAGES)
        found = {h.page_id: h.doc for h in grown.search_vectors([make_query(1)], config=every)[0]}
        assert found == {i: str(i) for i in range(PAGES)}  # numbers stay


def test_vectors_are_kept_until_the_codebook_has_seen_a_whole_sample(tmp_path, whole_sample):
    whole_sample(600)
    with made(tmp_path / "idx", 1, 19) as index:
        info = index.info()
        assert (info.growing, info.trained_on, info.arrays["store"]) == (True, 570, 570 * 32)
        index.add_vectors("19", [make_page(19)])  # 600 vectors: fewer than half as many more
        info = index.info()
        assert (info.growing, info.trained_on, "store" in info.arrays) == (False, 600, False)
        for i in range(20, 60):
            index.add_vectors(f"{i}", [make_page(i)])
        assert index.info().trained_on == 600
        assert "store" not in index.info().arrays
        with pytest.raises(ConfigError, match="keeps no vectors"):
            index.retrain()


def test_half_as_many_more_vectors_make_a_new_codebook_and_fewer_do_not(tmp_path):
    with made(tmp_path / "idx", 10) as index:
        seen = []
        for i in range(10, 30):
            done = index.add_vectors(f"{i}", [make_page(i)])
            seen.append(index.info().trained_on // 30)
            assert done.retrained == (seen[-1] == i + 1)
        assert seen == [10] * 4 + [15] * 8 + [23] * 8


def test_what_is_stored_anyway_stays_as_it_was(tmp_path, whole_sample):
    whole_sample(600)
    exact = SearchConfig(exact=True)
    with made(tmp_path / "idx", 1, 5, 30, 40, store="f16") as index:
        assert not index.info().growing
        query = make_query(2)
        wanted = brute_force(query, {i: make_page(i).vectors for i in range(40)}, 10)
        hits = index.search_vectors([query], config=exact)[0]
        assert [h.page_id for h in hits] == [page for page, _ in wanted]
        np.testing.assert_allclose([h.score for h in hits], [s for _, s in wanted], rtol=1e-5)


def test_a_large_addition_to_a_small_index_trains_once_on_all_of_it(tmp_path, whole_sample):
    whole_sample(900)
    notes = []
    with made(tmp_path / "idx", 1) as index:
        documents = [index.document(f"{i}", [make_page(i)]) for i in range(1, 100)]
        index.add_documents(documents, note=lambda *told: notes.append(told))
        info = index.info()
        assert (info.trained_on, info.growing, info.segments) == (3000, False, 1)
    assert [told for told in notes if told[0] == "retrain"] == [
        ("retrain", 0, 1),
        ("retrain", 1, 1),
    ]


def test_an_addition_to_a_damaged_index_stays_and_says_that_nothing_grew(tmp_path, caplog):
    with made(tmp_path / "idx", 4) as index:
        (file,) = index.path.glob("seg-*/store.i8")
        file.write_bytes(file.read_bytes()[:-1])
    with Index.open(tmp_path / "idx", allow_damaged=True) as index:
        documents = [index.document(f"{i}", [make_page(i)]) for i in range(4, 9)]
        assert not index.add_documents(documents).retrained
        assert [d.path for d in index.documents()] == [str(i) for i in range(9)]
        assert {h.doc for h in index.search_vectors([make_query(0)])[0]} == set("45678")
    assert "cannot grow" in caplog.text
    assert str(file) in caplog.text


def test_a_reader_keeps_its_snapshot_while_the_codebook_is_replaced(tmp_path):
    with made(tmp_path / "idx", 4) as index, Index.open(index.path) as reader:
        before = [(h.page_id, h.score) for h in reader.search_vectors([make_query(0)])[0]]
        assert index.add_documents(
            [index.document(f"{i}", [make_page(i)]) for i in range(4, 9)]
        ).retrained
        assert [(h.page_id, h.score) for h in reader.search_vectors([make_query(0)])[0]] == before
        reader.refresh()
        assert len(reader.search_vectors([make_query(0)], 100)[0]) == 9


def test_an_addition_of_nothing_new_grows_what_an_interruption_left_behind(tmp_path, monkeypatch):
    from compress3g.retrieval import build

    with made(tmp_path / "idx", 3) as index:
        documents = [index.document(f"{i}", [make_page(i)], sha256=str(i)) for i in range(9)]
        with monkeypatch.context() as patch:
            patch.setattr(build, "grow", lambda *_: False)  # killed before it
            assert not index.add_documents(documents).retrained
        assert index.info().trained_on == 90
        again = index.add_documents(documents)
        assert (again.retrained, len(again.unchanged)) == (True, 9)
        assert index.info().trained_on == 270


def test_an_index_that_nobody_wrote_down_how_it_was_trained_stays_as_it_is(
    tmp_path, monkeypatch, caplog
):
    """One of an earlier version; it can only be retrained where it stores vectors."""
    with monkeypatch.context() as patch:
        known = Codebook.to_arrays
        patch.setattr(
            Codebook,
            "to_arrays",
            lambda self: {n: a for n, a in known(self).items() if n != "seen"},
        )
        made(tmp_path / "none", 2, grow=False).close()
        stored = made(tmp_path / "f16", 2, grow=False, store="f16")
        stored.close()
    for name, grows in (("none", False), ("f16", True)):
        with Index.open(tmp_path / name) as index:
            _let_grow(index)
            documents = [index.document(f"{i}", [make_page(i)]) for i in range(2, 20)]
            assert index.add_documents(documents).retrained == grows
            assert ("store" in index.info().arrays) == grows
    assert caplog.text.count("the codebook was trained on 60 vectors") == 1


def _let_grow(index):
    """What the configuration of an older index, which does not name it, is read as."""
    config = json.loads(index._view.snapshot.meta["config"])
    del config["grow"]
    from compress3g.retrieval.catalog import Change
    from compress3g.retrieval.writer import Writer

    with Writer(index.path) as writer:
        writer.commit(Change("older", meta={"config": json.dumps(config)}))
    index.refresh()
    assert index.config.grow


def book(seen: int) -> Codebook:
    return Codebook(np.eye(8, dtype=np.float32), 4096, np.ones(8, np.int64), 0.1, seen=seen)


@given(st.lists(st.integers(1, 100_000), min_size=1, max_size=60))
def test_growing_costs_each_vector_a_bounded_number_of_trainings(sizes):
    whole, total, seen, trained = sample_size(4096), 0, 0, 0
    for size in sizes:
        total += size
        if not seen or book(seen).outgrown_by(total):
            seen = total
            trained += seen
    assert seen >= min(total / 1.5, whole)
    # Before the last training each is at most 2/3 of the next: 1 + 2 (2/3 + 4/9 + ...) at most.
    assert trained <= 4 * total
    assert book(seen).full_grown == (seen >= whole)
