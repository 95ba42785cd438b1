"""Small indexes of random, clustered pages, and brute force over them."""

from __future__ import annotations

import numpy as np
import pytest

from compress3g.retrieval.config import IndexConfig
from compress3g.retrieval.index import Index
from compress3g.retrieval.vectors import PageVectors

from .documents_made import write_tiny_bert

DIMENSION = 32


def make_page(seed: int, *, vectors: int = 30, dimension: int = DIMENSION) -> PageVectors:
    """Unit vectors around a few of 40 topics that all pages share, on a grid five wide."""
    topics = np.random.default_rng(7).standard_normal((40, dimension))
    draw = np.random.default_rng(1000 + seed)
    chosen = topics[draw.choice(40, 4, replace=False)]
    x = chosen[draw.integers(0, 4, vectors)] + 0.5 * draw.standard_normal((vectors, dimension))
    x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float16)
    at = np.arange(vectors)
    grid = np.stack((at // 5, at % 5), 1).astype(np.int16)
    return PageVectors(x, saliency=draw.random(vectors, np.float32), grid=grid)


def make_query(seed: int, *, tokens: int = 6, dimension: int = DIMENSION) -> np.ndarray:
    page = make_page(5000 + seed, vectors=tokens, dimension=dimension)
    x = page.vectors.astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def brute_force(query: np.ndarray, pages: dict[int, np.ndarray], k: int) -> list[tuple[int, float]]:
    """Page numbers and scores by MaxSim in float64, ties by lower number."""
    scores = {
        p: float((query.astype(np.float64) @ x.astype(np.float64).T).max(1).sum())
        for p, x in pages.items()
    }
    return sorted(scores.items(), key=lambda pair: (-pair[1], pair[0]))[:k]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """Of text layers, a tiny random BERT."""
    from compress3g.retrieval.encoders import load_encoder

    return load_encoder(f"text:{write_tiny_bert(tmp_path_factory.mktemp('models') / 'bert')}")


@pytest.fixture
def build(tmp_path):
    """A function that makes an index of documents {name: [seed of each page]}."""
    made = []

    def make(documents, *, name="idx", metadata=None, dimension=DIMENSION, **settings):
        # Segments stay as they were committed; what growth does to them has tests of its own.
        settings = {"k": 64, "residual": "none", "store": "f16", "grow": False, **settings}
        index = Index.create(tmp_path / name, dimension=dimension, config=IndexConfig(**settings))
        made.append(index)
        fill(index, documents, metadata)
        return index

    yield make
    for index in made:
        index.close()


def fill(index: Index, documents, metadata=None) -> None:
    index.add_documents(
        [
            index.document(
                name,
                [make_page(seed, dimension=index.dimension) for seed in seeds],
                metadata=(metadata or {}).get(name),
                sha256=f"{name!r} {seeds}",
            )
            for name, seeds in documents.items()
        ]
    )
