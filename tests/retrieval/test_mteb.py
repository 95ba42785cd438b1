"""mteb's own evaluation of our search model, on a task made here, where mteb is installed."""

from __future__ import annotations

import gc
import warnings

import pytest

from compress3g.errors import ConfigError

from .documents_made import write_tiny_bert

pytestmark = pytest.mark.filterwarnings("ignore")
CORPUS = {
    "d1": {"id": "d1", "title": "Rivers", "text": "the river carries water"},
    "d2": {"id": "d2", "title": "", "text": "net revenue rose in 2023"},
    "d3": {"id": "d3", "title": "", "text": "a network learns by descent"},
    "d4": {"id": "d4", "title": "", "text": "bake bread until golden"},
}
# A query is a document's own words: its document comes first whatever the random weights are.
QUERIES = {"q2": "net revenue rose in 2023", "q4": "bake bread until golden"}
RELEVANT = {"q2": {"d2": 1}, "q4": {"d4": 1}}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    pytest.importorskip("transformers")
    from compress3g.retrieval.encoders import load_encoder

    return load_encoder(f"text:{write_tiny_bert(tmp_path_factory.mktemp('model') / 'bert')}")


@pytest.fixture
def model(encoder):
    from compress3g.retrieval.config import IndexConfig
    from compress3g.retrieval.mteb import IndexedSearch

    return IndexedSearch(encoder, IndexConfig(k=64, residual="none", store="f16"))


def test_search_gives_scores_by_query_and_document_and_only_those_asked_for(model):
    queries = [{"id": q, "text": text} for q, text in QUERIES.items()]
    with pytest.raises(ConfigError, match="call index"):
        model.search(queries, top_k=3)
    model.index(CORPUS.values(), task_metadata=None, hf_split="test", encode_kwargs={})
    found = model.search(queries, top_k=3)
    assert {q: max(scores, key=scores.get) for q, scores in found.items()} == {
        "q2": "d2", "q4": "d4"
    }  # fmt: skip
    assert {len(scores) for scores in found.values()} == {3}
    asked = model.search(queries, top_k=3, top_ranked={"q2": ["d1", "d3"], "q4": ["d4"]})
    assert {q: set(scores) for q, scores in asked.items()} == {"q2": {"d1", "d3"}, "q4": {"d4"}}


def test_a_temporary_index_goes_with_the_model(encoder):
    from compress3g.retrieval.mteb import IndexedSearch

    model = IndexedSearch(encoder)
    folder = model._folder
    assert folder.is_dir()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        del model
        gc.collect()
    assert not folder.exists()


def test_mteb_accepts_the_model_and_measures_a_perfect_ranking(model, tmp_path):
    mteb = pytest.importorskip("mteb")
    datasets = pytest.importorskip("datasets")
    from mteb.abstasks.retrieval import AbsTaskRetrieval
    from mteb.abstasks.task_metadata import TaskMetadata
    from mteb.models import SearchProtocol

    class OwnWords(AbsTaskRetrieval):
        metadata = TaskMetadata(
            name="OwnWords", description="Queries of a document's own words.", type="Retrieval",
            category="t2t", modalities=["text"], dataset={"path": "none", "revision": "1"},
            eval_splits=["test"], eval_langs=["eng-Latn"], main_score="ndcg_at_10",
            reference=None, date=None, domains=None, task_subtypes=None, license=None,
            annotations_creators=None, dialect=None, sample_creation=None, bibtex_citation=None,
        )  # fmt: skip

        def load_data(self, *args, **kwargs):
            queries = [{"id": q, "text": text} for q, text in QUERIES.items()]
            split = {
                "corpus": datasets.Dataset.from_list(list(CORPUS.values())),
                "queries": datasets.Dataset.from_list(queries),
                "relevant_docs": RELEVANT,
                "top_ranked": None,
            }
            self.dataset = {"default": {"test": split}}
            self.data_loaded = True

    assert isinstance(model, SearchProtocol)
    results = mteb.evaluate(
        model, OwnWords(), cache=None, overwrite_strategy="always", co2_tracker=False
    )
    (task,) = results.task_results
    assert task.get_score() == pytest.approx(1.0)
