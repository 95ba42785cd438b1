from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from compress3g.errors import VectorError
from compress3g.retrieval.vectors import PATCH, SPECIAL, PageVectors, check_vectors, normalise


def unit(n, d, seed=0):
    return normalise(np.random.default_rng(seed).standard_normal((n, d)))


@pytest.mark.usefixtures("unchecked")
def test_tensors_become_arrays_and_missing_parts_are_filled():
    page = PageVectors(torch.ones(3, 8), saliency=torch.arange(3.0))
    assert isinstance(page.vectors, np.ndarray)
    assert page.grid.tolist() == [[-1, -1]] * 3
    assert page.grid.dtype == np.int16
    assert page.kind.tolist() == [PATCH] * 3
    assert page.saliency.dtype == np.float32


def test_take_keeps_the_parts_together():
    kind = np.array([SPECIAL, PATCH, PATCH])
    page = PageVectors(unit(3, 8), np.arange(3), np.arange(6).reshape(3, 2), kind).take(
        np.array([2, 0])
    )
    assert page.saliency.tolist() == [2, 0]
    assert page.grid.tolist() == [[4, 5], [0, 1]]
    assert page.specials.tolist() == [1]
    assert page.patches.tolist() == [0]
    np.testing.assert_array_equal(page.vectors, unit(3, 8)[[2, 0]])


@pytest.mark.parametrize(
    ("part", "shape"), [("saliency", (2,)), ("grid", (3, 1)), ("kind", (3, 1))]
)
@pytest.mark.usefixtures("unchecked")
def test_parts_of_another_length_are_refused(part, shape):
    with pytest.raises(VectorError, match=part):
        PageVectors(unit(3, 8), **{part: np.zeros(shape)})


@pytest.mark.parametrize("vectors", [np.zeros((2, 3)), np.zeros(3, np.float32)])
@pytest.mark.usefixtures("unchecked")
def test_other_types_and_shapes_are_refused(vectors):
    with pytest.raises(VectorError, match="float16 or float32"):
        PageVectors(vectors)


@given(n=st.integers(1, 20), d=st.integers(1, 40), row=st.integers(0, 19), seed=st.integers(0, 99))
@pytest.mark.parametrize(
    ("value", "word"),
    [(np.nan, "NaN"), (np.inf, "NaN"), (0.0, "zero"), (0.5, "length")],
)
@pytest.mark.parametrize("kind", [np.float16, np.float32])
def test_the_first_bad_row_is_named(value, word, kind, n, d, row, seed):
    x = unit(n, d, seed).astype(kind)
    check_vectors(x, "here")
    x[row % n :] = x[row % n :] * value if value == 0.5 else value
    with pytest.raises(VectorError, match=f"^here: vector {row % n} .*{word}"):
        check_vectors(x, "here")


def test_another_dimension_and_no_vectors_are_refused():
    with pytest.raises(VectorError, match="dimension 8, the index has 16"):
        check_vectors(unit(2, 8), "a.pdf page 3", dimension=16)
    with pytest.raises(VectorError, match="no vectors"):
        check_vectors(unit(0, 8), "a.pdf page 3")
