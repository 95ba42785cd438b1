"""Evaluation: against measures worked out by hand, and the interval against its meaning."""

from __future__ import annotations

import numpy as np
import pytest

from compress3g.errors import ConfigError, DocumentError, FormatError
from compress3g.retrieval.evaluate import evaluate, exact_run, paired_ratio
from compress3g.retrieval.judgments import Judgments, read_judgments
from compress3g.retrieval.search_config import EvalConfig

from .conftest import brute_force, make_page, make_query

DOCUMENTS = {f"dir/doc{i}.pdf": [i, 100 + i] for i in range(15)}


def judged(queries, best):
    texts = {f"q{i}": "text" for i in range(len(queries))}
    return Judgments(texts, tuple((f"q{i}", d, 1) for i, d in enumerate(best)))


def test_exact_search_ranks_like_brute_force(build):
    index = build(DOCUMENTS)
    queries = [make_query(i, tokens=4 + i) for i in range(5)]
    seeds = [s for pages in DOCUMENTS.values() for s in pages]
    pages = {i: make_page(s).vectors for i, s in enumerate(seeds)}
    for query, (ids, scores) in zip(queries, exact_run(index._view, queries), strict=True):
        wanted = brute_force(query, pages, 100)
        assert ids.tolist() == [p for p, _ in wanted]
        np.testing.assert_allclose(scores, [s for _, s in wanted], rtol=1e-5)


def test_a_query_taken_from_its_document_scores_one(build):
    index = build(DOCUMENTS)
    queries = [make_page(i).vectors[:8].astype(np.float32) for i in range(10)]
    judgments = judged(queries, [f"doc{i}" for i in range(10)])  # stems of the paths
    rows = {r.name: r for r in evaluate(index, queries, judgments, EvalConfig(keep=0.5))}
    assert rows["exact"].measures == pytest.approx(
        {"nDCG@5": 1, "nDCG@10": 1, "R@10": 1, "AP": 1, "RR": 1}
    )
    assert rows["index"].recall == 1.0  # all pages reach the exact stage
    assert {n for n in rows if "keep" in n} == {
        "exact, keep 0.5 by random", "exact, keep 0.5 by rare", "exact, keep 0.5 by given",
    }  # fmt: skip
    assert all(r.interval[0] <= r.ratio <= r.interval[1] for n, r in rows.items() if n != "exact")


def test_a_document_counts_once_at_the_rank_of_its_best_page(build):
    index = build({"a.pdf": [1, 2, 3, 4], "b.pdf": [5]})
    query = make_page(1).vectors[:8].astype(np.float32)
    rows = evaluate(index, [query], judged([query], ["b"]), EvalConfig())
    assert rows[0].measures["RR"] == pytest.approx(0.5)  # a once, then b


def test_names_that_match_nothing_are_refused(build):
    index = build(DOCUMENTS)
    with pytest.raises(DocumentError, match="no judged document is in the index"):
        evaluate(index, [make_query(0)], judged([0], ["elsewhere"]), EvalConfig())


def test_evaluation_needs_the_originals(build):
    index = build(DOCUMENTS, store="none")
    with pytest.raises(ConfigError, match="--store f16"):
        evaluate(index, [make_query(0)], judged([0], ["doc1"]), EvalConfig())


def test_the_interval_holds_the_true_ratio_as_often_as_it_says():
    draw = np.random.default_rng(0)
    inside = 0
    for seed in range(200):
        theirs = draw.uniform(0.2, 1.0, 100)
        ours = theirs * 0.9 + draw.normal(0, 0.1, 100)  # true ratio of the means: 0.9
        _, (low, high) = paired_ratio(ours, theirs, seed)
        inside += low <= 0.9 <= high
    # 95 % of 200 is 190, standard deviation 3; the bootstrap is a little narrow at n = 100.
    assert 180 <= inside <= 199


def test_judgments_are_read_in_both_layouts(tmp_path):
    (tmp_path / "beir.jsonl").write_text('{"_id": "1", "text": "a"}\n{"id": 2, "text": "b"}\n')
    (tmp_path / "plain.tsv").write_text("1\ta\n2\tb\n")
    (tmp_path / "trec.txt").write_text("1 0 d1 2\n2 0 d2 0\n")
    (tmp_path / "beir.tsv").write_text("query-id\tcorpus-id\tscore\n1\td1\t2\n2\td2\t0\n")
    read = {
        (q, j): read_judgments(tmp_path / q, tmp_path / j)
        for q in ("beir.jsonl", "plain.tsv")
        for j in ("trec.txt", "beir.tsv")
    }
    assert len({(tuple(r.texts.items()), r.triples) for r in read.values()}) == 1
    assert next(iter(read.values())).triples == (("1", "d1", 2), ("2", "d2", 0))


@pytest.mark.parametrize(
    ("queries", "qrels", "words"),
    [
        ("just words\n", "1 0 d 1\n", "queries line 1"),
        ('{"id": 1}\n', "1 0 d 1\n", "queries line 1"),
        ("1\t \n", "1 0 d 1\n", "is empty"),
        ("1\ta\n", "1 d\n", "qrels line 1"),
        ("1\ta\n", "1 0 d much\n", "qrels line 1"),
        ("1\ta\n", "7 0 d 1\n", "no query"),
    ],
)
def test_judgments_that_cannot_be_used_are_named_by_line(tmp_path, queries, qrels, words):
    (tmp_path / "queries").write_text(queries)
    (tmp_path / "qrels").write_text(qrels)
    with pytest.raises(FormatError, match=words):
        read_judgments(tmp_path / "queries", tmp_path / "qrels")
