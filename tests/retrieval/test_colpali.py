"""Vision-language encoders, tiny ones with random weights: padding, places, saliency."""

from __future__ import annotations

import importlib.util
import itertools

import numpy as np
import pytest

from compress3g._compat.torchvision_cpu import declare_operators
from compress3g.errors import DocumentError
from compress3g.retrieval.encoders.colpali import VisionEncoder, family_of
from compress3g.retrieval.pages import page_of_image
from compress3g.retrieval.vectors import PATCH, check_vectors

from .tiny_vision import tiny_vision

for needed in ("torchvision", "colpali_engine"):
    if importlib.util.find_spec(needed) is None:
        pytest.skip(f"{needed} is not installed", allow_module_level=True)
declare_operators()

pytestmark = pytest.mark.filterwarnings("default")  # of the libraries, not ours
FAMILIES = ("colpali", "colqwen2", "colqwen2_5", "colidefics3")
SIZES = ((112, 56), (56, 140))  # width, height
CELLS = {  # rows and columns of each size
    "colpali": [(4, 4), (4, 4)],
    "colqwen2": [(2, 4), (5, 2)],
    "colqwen2_5": [(2, 4), (5, 2)],
    "colidefics3": [(2, 4), (4, 2)],
}


@pytest.fixture(scope="module", params=FAMILIES)
def made(request):
    model, processor = tiny_vision(request.param)
    return request.param, model, processor


@pytest.fixture(scope="module")
def pages():
    from PIL import Image

    noise = np.random.default_rng(0)
    return [
        page_of_image(Image.fromarray(noise.integers(0, 255, (h, w, 3), dtype=np.uint8)))
        for w, h in SIZES
    ]


def encoder_of(made, **options):
    family, model, processor = made
    return VisionEncoder(family, model, processor, name=family, **options)


def test_every_cell_of_a_page_has_one_patch(made, pages):
    for page, cells in zip(encoder_of(made).encode_pages(pages), CELLS[made[0]], strict=True):
        placed = page.grid[(page.grid >= 0).all(1)]
        assert sorted(map(tuple, placed.tolist())) == list(np.ndindex(*cells))
        assert (page.kind[(page.grid >= 0).all(1)] == PATCH).all()
        check_vectors(page.vectors, "the page", dimension=128)
        assert (page.signals["indegree"][page.patches] > 0).all()


def test_tokens_of_a_query_are_one_for_each_vector(made):
    encoder = encoder_of(made)
    tokens = encoder.query_tokens("net revenue")
    assert len(tokens) == len(encoder.encode_queries(["net revenue"])[0])
    assert "net revenue" in "".join(tokens)
    assert all(tokens)


def test_a_page_is_the_same_alone_and_in_a_batch(made, pages):
    encoder = encoder_of(made)
    for page, together in zip(pages, encoder.encode_pages(pages), strict=True):
        (alone,) = encoder.encode_pages([page])
        assert len(alone) == len(together)
        # float16, and sums of other shapes
        np.testing.assert_allclose(alone.vectors, together.vectors, atol=2e-3)
        np.testing.assert_allclose(
            alone.signals["indegree"], together.signals["indegree"], atol=1e-5
        )
        assert (alone.grid == together.grid).all()


def test_watching_attention_leaves_the_vectors_as_they_are(made, pages):
    plain = encoder_of(made, signals=()).encode_pages(pages)
    every = ("indegree", "last_indegree", "last_row", "norm")
    watched = encoder_of(made, signals=every).encode_pages(pages)
    for a, b in zip(plain, watched, strict=True):
        assert (a.vectors == b.vectors).all()
        assert a.signals == {}
        told = [b.signals[name] for name in every]
        assert not any(np.allclose(p, q) for p, q in itertools.combinations(told, 2))


def test_queries_keep_the_tokens_they_were_trained_with(made):
    encoder = encoder_of(made)
    short, long = encoder.encode_queries(["a", "a much longer question"])
    assert 10 < len(short) < len(long)  # ten of augmentation
    for x in (short, long):
        check_vectors(x, "the query", dimension=128)
    with pytest.raises(DocumentError, match="empty"):
        encoder.encode_queries([" "])


def test_fingerprint_follows_weights_and_preprocessing(made):
    import torch

    first = encoder_of(made).fingerprint
    weight = encoder_of(made)._projection.weight
    with torch.no_grad():
        weight[0, 0] += 1
        changed = encoder_of(made).fingerprint
        weight[0, 0] -= 1
    assert changed != first


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("vidore/colpali-v1.3", "colpali"),
        ("vidore/colqwen2-v1.0", "colqwen2"),
        ("vidore/colqwen2.5-v0.2", "colqwen2_5"),
        ("vidore/colSmol-256M", "colidefics3"),
        ("colqwen2:some/folder", "colqwen2"),
    ],
)
def test_names_give_the_family_away(name, family):
    assert family_of(name)[0] == family
