"""Segments that one process writes and another commits: the index is that of one process."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from compress3g.errors import ConfigError, VectorError
from compress3g.retrieval import build
from compress3g.retrieval.array_folder import ArrayFolderWriter, replace_array
from compress3g.retrieval.config import IndexConfig
from compress3g.retrieval.documents import SUFFIXES, document_of
from compress3g.retrieval.encoders import load_encoder
from compress3g.retrieval.index import Index
from compress3g.retrieval.shards import Part, ShardIntake, ShardWriter, parts_of, settings_of
from compress3g.retrieval.sources import find_sources
from compress3g.retrieval.writer import Writer

from .documents_made import MANY, TOPICS, write_pdf

pytest.importorskip("pypdfium2")


@pytest.fixture
def corpus(tmp_path):
    """Long, short and broken documents, in the order of their names."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    write_pdf(folder / "a.pdf", MANY[:3])
    (folder / "b.pdf").write_bytes(b"%PDF-1.4 cut short")
    write_pdf(folder / "c.pdf", MANY)  # two parts
    write_pdf(folder / "d.pdf", MANY[10:12])
    x = np.random.default_rng(0).standard_normal((20, 32))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    np.savez(folder / "e.npz", vectors=x.astype(np.float16), offsets=[0, 9, 20])
    return folder


def create(path: Path, encoder, **settings) -> Index:
    return Index.create(path, encoder=encoder, config=IndexConfig(k=64, **settings))


def add_in_shards(path: Path, corpus: Path, *, strict: bool = False):
    """What `index build --ray` does, by one worker in this process."""
    with Writer(path) as writer:
        intake = ShardIntake(writer)
        shards = ShardWriter(settings_of(path, writer.snapshot().meta))

        def written(file: Path):
            document = document_of(file, lambda: None, {"year": 2024})
            return replace(document, pages=lambda: map(shards.write, parts_of(document.path)))

        return build.add_documents(
            writer, map(written, find_sources([corpus], SUFFIXES)), intake, strict=strict,
            stopped=lambda: False, outcome=lambda *_: None, note=lambda *_: None,
        )  # fmt: skip


def same(left: Index, right: Index) -> None:
    """The same pages under the same numbers, and the same answers."""
    for index in (left, right):
        assert index.verify(deep=True).problems == ()
    pages = "SELECT page, document, number FROM pages WHERE deleted IS NULL ORDER BY page"
    assert left._catalog.query(pages) == right._catalog.query(pages)
    kept = [[(d.document, d.path, d.pages, d.meta) for d in i.documents()] for i in (left, right)]
    assert kept[0] == kept[1]
    queries = left.encoder.encode_queries(["net revenue", "the river", "bread 12", "gradient"])
    for a, b in zip(left.rank(queries, 20), right.rank(queries, 20), strict=True):
        assert a.page_ids.tolist() == b.page_ids.tolist()
        np.testing.assert_allclose(a.scores, b.scores, rtol=1e-6)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"store": "f16", "residual": "res2"},
        {"keep": 0.5, "saliency": "norm", "pool": 2},
        {"keep": 0.6, "saliency": "rare"},
    ],
    ids=["balanced", "store", "reduced", "rare"],
)
def test_an_index_from_shards_is_that_of_one_process(tmp_path, corpus, encoder, settings):
    if settings.get("saliency") == "norm":
        (corpus / "e.npz").unlink()  # vectors tell no saliency
    made = load_encoder(encoder.name, signals=IndexConfig(**settings).signals)
    with create(tmp_path / "one", made, **settings) as one:
        done = one.add([corpus], metadata={"year": 2024})
        create(tmp_path / "many", made, **settings).close()
        sharded = add_in_shards(tmp_path / "many", corpus)
        assert (done.pages, done.vectors, done.added) == (
            sharded.pages, sharded.vectors, sharded.added,
        )  # fmt: skip
        assert [name for name, _ in sharded.skipped] == [str(corpus / "b.pdf")]
        with Index.open(tmp_path / "many", encoder=made) as many:
            same(one, many)


def test_unchanged_documents_stay_and_changed_ones_are_replaced(tmp_path, corpus, encoder):
    with create(tmp_path / "one", encoder) as one:
        create(tmp_path / "many", encoder).close()
        for turn in range(3):
            if turn == 2:
                write_pdf(corpus / "a.pdf", [["now about rivers"]])
                write_pdf(corpus / "f.pdf", TOPICS)
            one.add([corpus], metadata={"year": 2024})
            done = add_in_shards(tmp_path / "many", corpus)
            assert (len(done.unchanged), len(done.replaced)) == ([0, 4, 3][turn], turn // 2)
            with Index.open(tmp_path / "many", encoder=encoder) as many:
                same(one, many)


def test_an_index_that_outgrows_its_codebook_by_shards_is_that_of_one_process(
    tmp_path, corpus, encoder
):
    first = write_pdf(tmp_path / "first.pdf", [["one line"]])
    for name in ("one", "many"):
        with create(tmp_path / name, encoder, store="f16") as index:
            index.add([first])
            assert index.info().growing
            few = index.info().centroids
    with Index.open(tmp_path / "one", encoder=encoder) as one:
        assert one.add([corpus], metadata={"year": 2024}).retrained
        assert add_in_shards(tmp_path / "many", corpus).retrained
        with Index.open(tmp_path / "many", encoder=encoder) as many:
            same(one, many)
            assert many.info().centroids == 64 > few
            assert many.info().waiting_pages == 0


def test_what_nobody_committed_is_removed_by_the_next_writer(tmp_path, corpus, encoder):
    create(tmp_path / "idx", encoder).close()
    add_in_shards(tmp_path / "idx", corpus)
    with Index.open(tmp_path / "idx") as index:
        shards = ShardWriter(settings_of(index.path, index._view.snapshot.meta))
        write_pdf(tmp_path / "late.pdf", TOPICS)
        late = shards.write(Part(str(tmp_path / "late.pdf")))  # and its driver is killed
        assert (index.path / late.name / "header.json").exists()
        before = index.search("the river", 5)
        index.refresh()
        assert index.search("the river", 5) == before
        assert index.verify(deep=True).problems == ()
        Writer(index.path).close()
        assert not (index.path / late.name).exists()
        assert index.verify(deep=True).problems == ()


def test_a_mistake_in_one_part_leaves_nothing_of_the_document(tmp_path, encoder):
    bad = np.ones((6, 32), np.float16)
    bad[4] = np.nan
    np.savez(tmp_path / "bad.npz", vectors=bad / 32**0.5, offsets=[0, 3, 6])
    np.savez(tmp_path / "good.npz", vectors=np.eye(32, dtype=np.float16))
    create(tmp_path / "idx", encoder).close()
    with pytest.raises(VectorError, match=r"bad\.npz page 2"):
        add_in_shards(tmp_path / "idx", tmp_path)
    names = {n for n in os.listdir(tmp_path / "idx") if n.startswith("seg-")}
    assert names == set()
    (tmp_path / "bad.npz").unlink()
    assert add_in_shards(tmp_path / "idx", tmp_path).pages == 1


def test_another_model_at_a_worker_is_refused(tmp_path, corpus, encoder):
    with create(tmp_path / "idx", encoder) as index:
        settings = settings_of(index.path, index._view.snapshot.meta)
    other = ShardWriter(replace(settings, fingerprint="another"))
    problem = other.write(Part(str(corpus / "a.pdf"))).problem
    assert isinstance(problem, ConfigError)
    assert "the same model" in str(problem)
    without = ShardWriter(replace(settings, encoder=""))
    assert "add vectors" in str(without.write(Part(str(corpus / "a.pdf"))).problem)
    assert not [n for n in os.listdir(tmp_path / "idx") if n.startswith("seg-")]


def test_an_array_is_replaced_by_one_of_its_kind_only(tmp_path):
    writer = ArrayFolderWriter(tmp_path / "x")
    writer.append("ids", np.arange(3))
    writer.append("values", np.arange(5, dtype=np.float32))
    before = writer.finish({"kind": "segment"})
    after = replace_array(tmp_path / "x", "ids", np.arange(10, 13))
    assert after.arrays["ids"].tolist() == [10, 11, 12]
    assert after.arrays["values"].tolist() == [0, 1, 2, 3, 4]
    assert list(after.damaged()) == []
    assert after.digest != before.digest
    for wrong in (np.arange(4), np.arange(3, dtype=np.int32)):
        with pytest.raises(ValueError, match="ids"):
            replace_array(tmp_path / "x", "ids", wrong)
