"""The index as a whole: what is in it, what is found, what is refused."""

from __future__ import annotations

import multiprocessing
import os
import sqlite3
import threading

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from compress3g.errors import ConfigError, DocumentError, FormatError, LockError, VectorError
from compress3g.retrieval.config import IndexConfig
from compress3g.retrieval.index import Index
from compress3g.retrieval.search_config import SearchConfig
from compress3g.retrieval.vectors import PageVectors
from compress3g.retrieval.writer import LOCK, Writer

from .conftest import DIMENSION, brute_force, fill, make_page, make_query

DOCUMENTS = {f"doc{i}": [10 * i + j for j in range(1 + i % 4)] for i in range(12)}


def all_pages(documents=DOCUMENTS):
    """Page number -> vectors, for documents that were added in this order to a new index."""
    seeds = [seed for pages in documents.values() for seed in pages]
    return {i: make_page(seed).vectors for i, seed in enumerate(seeds)}


def found(index, query, **options):
    return [(h.page_id, h.score) for h in index.search_vectors([query], **options)[0]]


def test_search_that_passes_on_every_page_equals_brute_force(build):
    index = build(DOCUMENTS)
    for seed in range(10):
        query = make_query(seed)
        wanted = brute_force(query, all_pages(), 10)
        for config in (SearchConfig(k=10, n1=1000, n2=1000), SearchConfig(k=10, exact=True)):
            hits = found(index, query, config=config)
            assert [p for p, _ in hits] == [p for p, _ in wanted]
            # The store is in half precision, the reference reads the same halves in float64.
            np.testing.assert_allclose([s for _, s in hits], [s for _, s in wanted], rtol=1e-5)


def test_hits_name_document_page_and_metadata(build):
    index = build(DOCUMENTS, metadata={"doc3": {"year": 2003}})
    query = make_page(31).vectors[:5].astype(np.float32)  # taken from the second page of doc3
    hit = index.search_vectors([query], 1)[0][0]
    assert (hit.doc, hit.page, hit.meta) == ("doc3", 2, {"year": 2003})


def test_ties_go_to_the_lower_page_number(build):
    index = build({"a": [1], "b": [2], "c": [1], "d": [1]})
    hits = found(index, make_page(1).vectors[:4].astype(np.float32), k=3)
    assert [p for p, _ in hits] == [0, 2, 3]


def test_a_batch_answers_each_query_as_if_alone(build):
    index = build(DOCUMENTS)
    queries = [make_query(i, tokens=3 + i % 5) for i in range(20)]
    together = index.search_vectors(queries, 5)
    for query, hits in zip(queries, together, strict=True):
        assert [(h.page_id, h.score) for h in hits] == found(index, query, k=5)


def test_more_hits_than_pages_gives_all_of_them(build):
    index = build({"a": [1, 2], "b": [3]})
    assert len(index.search_vectors([make_query(0)], 50)[0]) == 3


def test_filters_keep_only_documents_that_pass(build):
    metadata = {name: {"year": 2000 + i} for i, name in enumerate(DOCUMENTS)}
    index = build(DOCUMENTS, metadata=metadata)
    hits = index.search_vectors([make_query(0)], 100, where="year >= 2008")[0]
    assert {h.doc for h in hits} == {"doc8", "doc9", "doc10", "doc11"}
    wanted = [p for p, _ in brute_force(make_query(0), all_pages(), 1000)]
    assert [h.page_id for h in hits] == [p for p in wanted if p in {h.page_id for h in hits}]
    assert index.rank([make_query(0)], where="year >= 2008")[0].scanned == len(hits)
    assert index.search_vectors([make_query(0)], where="year = 1")[0] == []


def test_adding_and_removing_ranks_like_building_without(build, tmp_path):
    first = dict(list(DOCUMENTS.items())[:8])
    rest = dict(list(DOCUMENTS.items())[8:])
    index = build(first)
    fill(index, rest)
    index.remove("doc2")
    index.remove("doc9")
    scores = {h.doc + str(h.page): h.score for h in index.search_vectors([make_query(3)], 100)[0]}
    kept = {n: s for n, s in DOCUMENTS.items() if n not in ("doc2", "doc9")}
    pages = {f"{n}{i + 1}": make_page(s).vectors for n, p in kept.items() for i, s in enumerate(p)}
    names = dict(enumerate(pages))
    wanted = brute_force(make_query(3), {i: pages[n] for i, n in names.items()}, 100)
    assert list(scores) == [names[i] for i, _ in wanted]


def test_page_numbers_survive_removal_compaction_and_retraining(build):
    index = build(DOCUMENTS)
    before = dict(found(index, make_query(1), k=100))
    removed = {
        h.page_id for h in index.search_vectors([make_query(1)], 100, where="doc = 'doc5'")[0]
    }
    index.remove("doc5")
    for change in (index.compact, index.retrain, index.compact):
        change()
        after = dict(found(index, make_query(1), k=100))
        assert set(after) == set(before) - removed
        assert all(after[p] == pytest.approx(before[p], rel=1e-5) for p in after)
    fill(index, {"new": [77]})
    assert max(p for p, _ in found(index, make_query(1), k=100)) == len(before)
    assert index.verify(deep=True).problems == ()


def test_compaction_gives_the_space_of_removed_pages_back(build):
    index = build({"keep": [1, 2], "drop": list(range(10, 40))})
    before = index.info()
    index.remove("drop")
    freed = index.compact().bytes_freed
    after = index.info()
    assert (after.pages, after.deleted_pages, after.segments) == (2, 0, 1)
    assert freed == before.bytes - after.bytes > 0.9 * before.bytes
    assert sum(p.name.startswith("seg-") for p in index.path.iterdir()) == 1


def test_unchanged_documents_are_left_alone_and_changed_ones_replaced(build):
    index = build({"a": [1, 2], "b": [3]})
    generation = index.info().generation
    fill(index, {"a": [1, 2], "b": [3]})
    assert index.info().generation == generation
    fill(index, {"a": [1, 9]})
    assert [(d.path, d.pages) for d in index.documents()] == [("b", 1), ("a", 2)]
    assert {p for p, _ in found(index, make_query(0), k=100)} == {2, 3, 4}


def test_the_same_document_twice_in_one_addition_counts_once(build):
    index = build({"other": [5]})
    index.add_documents([index.document("a", [make_page(i)], sha256=str(i)) for i in (1, 2, 2)])
    assert [(d.path, d.sha256) for d in index.documents()] == [("other", "'other' [5]"), ("a", "2")]
    assert len(index) == 2


def test_a_reader_keeps_its_snapshot_until_it_refreshes(build):
    writer = build({"a": [1, 2], "b": [3]})
    with Index.open(writer.path) as reader:
        before = found(reader, make_query(0))
        writer.remove("a")
        fill(writer, {"c": [4]})
        writer.compact()
        assert found(reader, make_query(0)) == before
        assert {h.doc for h in reader.search_vectors([make_query(0)])[0]} == {"a", "b"}
        reader.refresh()
        assert {h.doc for h in reader.search_vectors([make_query(0)])[0]} == {"b", "c"}


def test_two_writers_at_once_are_refused_naming_the_first(build):
    index = build({"a": [1]})
    with Writer(index.path), pytest.raises(LockError, match=f"process {os.getpid()} on"):
        index.remove("a")
    index.remove("a")


def test_a_lock_whose_holder_died_is_taken_over(build, caplog):
    index = build({"a": [1]})
    (index.path / LOCK).write_text('{"pid": 4194305, "host": "elsewhere"}')
    with caplog.at_level("INFO"):
        index.remove("a")
    assert "process 4194305 stopped" in caplog.text


def test_many_readers_and_a_writer_at_the_same_time(build):
    index = build({"a": [1, 2], "b": [3]})
    errors, done = [], threading.Event()

    def read():
        try:
            while not done.is_set():
                with Index.open(index.path) as reader:
                    names = {h.doc for h in reader.search_vectors([make_query(0)], 100)[0]}
                    assert "b" in names
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for i in range(8):
            fill(index, {"a": [1 + i, 2]})
            index.compact()
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert errors == []


def _search_in_child(index, query, results):
    results.put(found(index, query))


def test_an_open_index_works_in_a_forked_process(build):
    index = build(DOCUMENTS)
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    child = context.Process(target=_search_in_child, args=(index, make_query(2), results))
    child.start()
    answer = results.get(timeout=60)
    child.join()
    assert answer == found(index, make_query(2))
    assert index.verify().problems == ()  # the parent's connection still works


def test_heat_maps_come_from_the_index_alone(build):
    index = build(DOCUMENTS)
    query = make_query(4)
    hit = index.search_vectors([query], 1)[0][0]
    heat = hit.heatmap()
    vectors = all_pages()[hit.page_id].astype(np.float32)
    assert heat.shape == (6, 6, 5)
    np.testing.assert_allclose(heat.reshape(6, 30), query @ vectors.T, atol=1e-5)
    assert heat.max((1, 2)).sum() == pytest.approx(hit.score, rel=1e-5)


def test_vectors_that_cannot_be_used_are_refused_naming_document_and_page(build):
    index = build({"a": [1]})
    good = make_page(1)
    nan, zero = good.vectors.copy(), good.vectors.copy()
    nan[3, 2], zero[4] = np.nan, 0
    for bad, words in ((nan, "vector 3"), (zero, "vector 4 is zero"), (good.vectors[:, :8], "8")):
        with pytest.raises(VectorError, match=rf"bad\.pdf page 2.*{words}"):
            index.add_vectors("bad.pdf", [good, PageVectors(np.ascontiguousarray(bad))])
    assert [d.path for d in index.documents()] == ["a"]
    assert index.verify(deep=True).problems == ()


def test_documents_before_a_bad_one_are_committed(build):
    index = build({"a": [1]})
    bad = PageVectors(np.zeros((3, DIMENSION), np.float16))
    with pytest.raises(VectorError):
        index.add_documents([index.document("b", [make_page(2)]), index.document("c", [bad])])
    index.refresh()
    assert [d.path for d in index.documents()] == ["a", "b"]
    assert index.verify(deep=True).problems == ()


def test_a_document_without_pages_is_refused(build):
    index = build({"a": [1]})
    with pytest.raises(DocumentError, match=r"none\.pdf has no pages"):
        index.add_vectors("none.pdf", [])


@pytest.mark.parametrize(
    ("query", "error", "words"),
    [
        (np.zeros((0, DIMENSION), np.float32), DocumentError, "query 0 is empty"),
        (np.full((2, DIMENSION), np.nan, np.float32), VectorError, "query 0.*NaN"),
        (np.zeros((2, DIMENSION), np.float32), VectorError, "query 0.*zero"),
        (np.ones((2, 8), np.float32), VectorError, "query 0.*dimension 8"),
        (np.ones((1025, DIMENSION), np.float32), ConfigError, "1025"),
    ],
)
def test_queries_that_cannot_be_used_are_refused(build, query, error, words):
    with pytest.raises(error, match=words):
        build({"a": [1]}).search_vectors([query])


def test_numbers_out_of_range_are_refused():
    for wrong in ({"k": 0}, {"n1": 0}, {"n2": -1}, {"query_keep": 0.0}, {"query_keep": 1.5}):
        with pytest.raises(ConfigError, match=f"--{next(iter(wrong)).replace('_', '-')}"):
            SearchConfig(**wrong)


def test_an_empty_index_says_so(tmp_path):
    with (
        Index.create(tmp_path / "idx", dimension=16) as index,
        pytest.raises(DocumentError, match="empty: add documents"),
    ):
        index.search_vectors([np.ones((2, 16), np.float32)])


def test_an_index_whose_pages_were_all_removed_is_empty(build):
    index = build({"a": [1]})
    index.remove("a")
    for _ in range(2):
        with pytest.raises(DocumentError, match="empty"):
            index.search_vectors([make_query(0)])
        index.compact()
    fill(index, {"b": [2]})
    assert len(index.search_vectors([make_query(0)])[0]) == 1


def test_removing_what_is_not_there_is_an_error(build):
    index = build({"a": [1]})
    with pytest.raises(DocumentError, match="no document 'b'"):
        index.remove("b")
    with pytest.raises(DocumentError, match="no document"):
        index.remove(where="year = 3")


def test_documents_are_removed_by_condition(build):
    index = build({"a": [1], "b": [2, 3]}, metadata={"b": {"old": True}})
    assert index.remove(where="old = true") == 2
    assert [d.path for d in index.documents()] == ["a"]


def test_names_that_are_no_utf8_are_kept_byte_for_byte(build):
    name = os.fsdecode(b"caf\xe9\xff.pdf")
    index = build({name: [1], "b": [2]})
    assert {os.fsencode(h.doc) for h in index.search_vectors([make_query(0)])[0]} == {
        b"caf\xe9\xff.pdf", b"b",
    }  # fmt: skip
    assert [h.doc for h in index.search_vectors([make_query(0)], where=f"doc = '{name}'")[0]] == [
        name
    ]
    assert index.remove(where=f"doc like 'caf%{name[-5:]}'") == 1


def test_what_is_no_index_is_refused(tmp_path, build):
    with pytest.raises(FormatError, match="no such folder"):
        Index.open(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FormatError, match="is not an index"):
        Index.open(tmp_path / "empty")
    (tmp_path / "empty" / "catalog.sqlite").write_text("this is not a database, not at all" * 50)
    with pytest.raises(FormatError, match="is damaged"):
        Index.open(tmp_path / "empty")
    build({"a": [1]})
    with pytest.raises(FormatError, match="already holds an index"):
        Index.create(tmp_path / "idx", dimension=16)


def test_a_newer_format_is_refused_with_both_numbers(build):
    index = build({"a": [1]})
    index.close()
    connection = sqlite3.connect(index.path / "catalog.sqlite")
    connection.execute("PRAGMA user_version = 7")
    connection.close()
    with pytest.raises(FormatError, match="has format 7, this compress3g reads up to 1"):
        Index.open(index.path)


def test_a_folder_read_only_for_everybody_can_be_searched(build):
    index = build({"a": [1], "b": [2]})
    wanted = found(index, make_query(0))
    index.close()
    mode = index.path.stat().st_mode
    for entry in index.path.iterdir():
        if entry.name.startswith("catalog.sqlite-"):
            entry.unlink()
    index.path.chmod(0o500)
    try:
        with Index.open(index.path) as reader:
            assert found(reader, make_query(0)) == wanted
    finally:
        index.path.chmod(mode)


def test_an_index_in_memory_answers_like_a_mapped_one(build):
    index = build(DOCUMENTS)
    with Index.open(index.path, mmap=False) as other:
        assert found(other, make_query(0)) == found(index, make_query(0))


def damage(path, *, at=-1):
    data = bytearray(path.read_bytes())
    data[at] ^= 0xFF
    path.write_bytes(data)


def test_verify_names_the_damaged_file_and_its_pages(build):
    index = build({"a": [1, 2, 3]})
    segment = next(index.path.glob("seg-*"))
    assert index.verify(deep=True).problems == ()
    damage(segment / "store.f16", at=30 * DIMENSION * 2 + 5)  # in the second page
    assert index.verify(deep=False).problems == ()
    (problem,) = index.verify(deep=True).problems
    assert "store.f16" in problem
    assert "pages 0 to 2" in problem  # one block of 4 MiB holds all three


@pytest.mark.parametrize("how", ["short", "missing", "header"])
def test_a_damaged_segment_stops_search_unless_allowed(build, how):
    index = build({"a": [1, 2]})
    fill(index, {"b": [3]})
    index.close()
    segment = sorted(index.path.glob("seg-*"))[-1]
    if how == "short":
        file = segment / "unique.u8"
        file.write_bytes(file.read_bytes()[:-1])
    elif how == "missing":
        (segment / "unique.u8").unlink()
    else:
        damage(segment / "header.json", at=20)
    with pytest.raises(FormatError, match="--allow-damaged"):
        Index.open(index.path)
    with Index.open(index.path, allow_damaged=True) as rest:
        assert {h.doc for h in rest.search_vectors([make_query(0)])[0]} == {"a"}
        (problem,) = rest.verify().problems
        assert segment.name in problem
        assert "pages 2 to 2" in problem


def test_a_code_beyond_the_codebook_is_an_error_and_not_a_crash(build):
    index = build({"a": [1, 2]}, k=16)
    index.close()
    damage(next(index.path.glob("seg-*")) / "unique.u8", at=3)
    with Index.open(index.path) as again:
        with pytest.raises(ConfigError, match="code"):
            again.search_vectors([make_query(0)])
        assert any("unique" in p and "pages 0 to 0" in p for p in again.verify().problems)


def test_damaged_codebooks_are_named(build):
    index = build({"a": [1, 2]})
    damage(next(index.path.glob("codebook-*")) / "centroids.f32")
    assert any("centroids" in p for p in index.verify(deep=True).problems)


def test_an_interrupted_first_pass_goes_on_where_it_stopped(build, monkeypatch):
    from compress3g.retrieval import build as building

    index = build({})
    with monkeypatch.context() as patch:
        patch.setattr(building, "encode_waiting", lambda *_: None)  # killed before pass 2
        fill(index, {"a": [1, 2]})
    with pytest.raises(DocumentError, match="2 pages wait for a codebook"):
        index.search_vectors([make_query(0)])
    assert index.verify(deep=True).problems == ()
    fill(index, {"a": [1, 2], "b": [3]})
    assert {h.doc for h in index.search_vectors([make_query(0)])[0]} == {"a", "b"}
    assert index.info().waiting_pages == 0


@pytest.mark.parametrize("store", ["none", "int8", "f16"])
def test_what_is_kept_of_the_vectors_decides_what_can_be_done(build, store):
    index = build(DOCUMENTS, store=store)
    arrays = index.info().arrays
    assert ("store" in arrays, "store_scale" in arrays) == (store != "none", store == "int8")
    if store == "none":
        with pytest.raises(ConfigError, match="--store f16"):
            found(index, make_query(0), config=SearchConfig(exact=True))
        with pytest.raises(ConfigError, match="no vectors to train on"):
            index.retrain()
        return
    hits = found(index, make_query(0), config=SearchConfig(exact=True, k=100))
    wanted = dict(brute_force(make_query(0), all_pages(), 100))
    # int8: |error| of a vector's entry <= max / 254, of a score of 6 tokens far below 2 %.
    assert all(s == pytest.approx(wanted[p], rel=0.02) for p, s in hits)
    index.retrain()


@settings(
    deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(plan=st.lists(st.tuples(st.sampled_from("aarrc"), st.integers(0, 5)), max_size=8))
def test_any_history_leaves_exactly_the_living_documents(tmp_path_factory, plan):
    path = tmp_path_factory.mktemp("history") / "idx"
    config = IndexConfig(k=16, residual="none", store="f16")
    alive: dict[str, int] = {}
    with Index.create(path, dimension=DIMENSION, config=config) as index:
        for step, (what, which) in enumerate(plan):
            name = f"doc{which}"
            if what == "a":
                fill(index, {name: [step]})
                alive[name] = step
            elif what == "r" and name in alive:
                index.remove(name)
                del alive[name]
            elif what == "c":
                index.compact()
        assert index.verify(deep=True).problems == ()
        assert {d.path for d in index.documents()} == set(alive)
        if alive:
            hits = index.search_vectors([make_query(0)], 100)[0]
            pages = {i: make_page(seed).vectors for i, seed in enumerate(alive.values())}
            wanted = brute_force(make_query(0), pages, 100)
            assert sorted(h.score for h in hits) == pytest.approx(
                sorted(s for _, s in wanted), rel=1e-5
            )
            assert {h.doc for h in hits} == set(alive)


def test_metadata_that_filters_cannot_ask_for_is_refused(build):
    index = build({"a": [1]})
    for bad in ({"doc": 1}, {"page": 1}, {'a"b': 1}, {"": 1}, {"k": [1]}, {"k": None}):
        with pytest.raises(ConfigError, match="metadata"):
            index.add_vectors("b", [make_page(2)], metadata=bad)
