"""What `--keep` and `--saliency` leave of a page, against a choice made by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest

from compress3g.cli.main import main
from compress3g.errors import VectorError
from compress3g.retrieval.encoding import kept_signals, pages_of
from compress3g.retrieval.prune import page_seed
from compress3g.retrieval.vectors import PageVectors

from .conftest import fill, make_page
from .documents_made import TOPICS, write_pdf, write_tiny_bert

FIRST, LATER = {"a": [1, 2, 3, 4, 5, 6], "b": [7]}, {"c": [8, 9]}
SEEDS = [1, 2, 3, 4, 5, 6, 7, 8, 9]


def stored(index):
    """Vectors of each page in the order of page numbers."""
    pages = {}
    for segment in index._view.segments:
        piece = segment.take(0, len(segment))
        pages |= dict(zip(piece.page_ids.tolist(), pages_of(piece), strict=True))
    return [pages[i].vectors.astype(np.float16) for i in sorted(pages)]


def best(scores, count):
    return sorted(sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:count])


def by_hand(saliency, seed, codebook):
    page = make_page(seed)
    if saliency == "random":
        draw = np.random.default_rng(page_seed(page, 0))
        scores = draw.random(len(page), np.float32)
    elif saliency == "rare":
        directions = codebook.centroids / np.linalg.norm(codebook.centroids, axis=1)[:, None]

        def nearest(page):
            return (page.vectors.astype(np.float32) @ directions.T).argmax(1)

        holding = [set(nearest(make_page(s)).tolist()) for s in (*FIRST["a"], *FIRST["b"])]
        scores = np.array([-sum(code in held for held in holding) for code in nearest(page)])
    else:
        scores = page.saliency
    return page.vectors[best(scores, 12)]


@pytest.mark.parametrize("saliency", ["random", "rare", "norm"])
def test_the_pages_of_a_build_and_of_a_later_addition_keep_what_the_saliency_says(build, saliency):
    index = build(FIRST, keep=0.4, saliency=saliency, k=32)
    fill(index, LATER)
    codebook = index._view.encoding.codebook
    for seed, found in zip(SEEDS, stored(index), strict=True):
        np.testing.assert_array_equal(found, by_hand(saliency, seed, codebook))


def test_the_random_choice_is_another_on_every_page_and_with_another_seed(build):
    page, other = make_page(1), make_page(2)
    assert len({page_seed(page, 0), page_seed(page, 1), page_seed(other, 0)}) == 3
    kept = [
        stored(build(FIRST, name=f"idx{s}", keep=0.4, saliency="random", seed=s)) for s in (0, 1)
    ]
    assert any((a != b).any() for a, b in zip(*kept, strict=True))


def test_rare_keeps_whole_pages_until_there_is_a_codebook_and_merges_after_it(build):
    index = build(FIRST, keep=0.4, saliency="rare", pool=2, k=32)
    assert {len(x) for x in stored(index)} == {6}
    assert index.verify(deep=True).problems == ()


def test_pages_without_saliency_are_named(build):
    index = build({}, keep=0.5)
    bare = PageVectors(make_page(1).vectors)
    with pytest.raises(VectorError, match="doc page 1: pruning needs saliency"):
        index.add_documents([index.document("doc", [bare])])


def test_documents_with_and_without_saliency_can_share_an_index(build):
    index = build({"a": [1, 2]})
    bare = PageVectors(make_page(3).vectors)
    index.add_documents([index.document("bare", [bare]), index.document("full", [make_page(4)])])
    index.compact()
    assert index.verify(deep=True).problems == ()
    (segment,) = index._view.segments
    pages = list(pages_of(segment.take(0, 4)))
    assert kept_signals(segment.take(0, 4)) == ["given"]
    assert np.isnan(pages[2].saliency).all()
    np.testing.assert_allclose(
        pages[3].saliency, make_page(4).saliency, rtol=1e-3
    )  # half precision


def test_eval_compares_every_signal_with_the_random_control(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bert = write_tiny_bert(tmp_path / "bert")
    (tmp_path / "pages").mkdir()
    for i, topic in enumerate(TOPICS):
        write_pdf(tmp_path / "pages" / f"d{i}.pdf", [topic])
    build = ["index", "build", "pages", "-o", "idx", "--k", "16", "--store", "f16"]
    assert main([*build, "--encoder", f"text:{bert}"]) == 0
    (tmp_path / "queries.tsv").write_text("1\triver\n2\trevenue\n")
    (tmp_path / "qrels").write_text("1 0 d0 1\n2 0 d1 1\n")
    command = ["index", "eval", "idx", "--queries", "queries.tsv", "--qrels", "qrels"]
    capsys.readouterr()
    assert main([*command, "--keep", "0.5", "--json"]) == 0
    names = [row["name"] for row in json.loads(capsys.readouterr()[0])]
    signals = ["random", "rare", "indegree", "last_row", "last_indegree", "norm"]
    assert names == ["exact", "index", *(f"exact, keep 0.5 by {s}" for s in signals)]
