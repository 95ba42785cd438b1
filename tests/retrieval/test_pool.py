from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.cluster.hierarchy import fcluster, linkage

from compress3g.errors import ConfigError
from compress3g.retrieval.pool import clusters, pool
from compress3g.retrieval.vectors import PageVectors, normalise


def unit(n, d, seed=0):
    return normalise(np.random.default_rng(seed).standard_normal((n, d)))


def reference(x, factor):
    """colpali-engine's pooling as it describes itself: rows of 1 - X X^T as features of Ward."""
    features = 1 - x.astype(np.float64) @ x.T.astype(np.float64)
    tree = linkage(features, metric="euclidean", method="ward")
    label = fcluster(tree, t=max(len(x) // factor, 1), criterion="maxclust")
    means = [x[label == c].mean(0) for c in range(1, label.max() + 1)]
    return normalise(np.array(means)), label - 1


@settings(max_examples=40, deadline=None)
@given(
    m=st.integers(2, 60), d=st.sampled_from([4, 16, 64]), factor=st.integers(2, 9),
    seed=st.integers(0, 999),
)  # fmt: skip
def test_clusters_equal_ward_on_rows_of_similarities(m, d, factor, seed):
    x = unit(m, d, seed)
    expected, label = reference(x, factor)
    np.testing.assert_array_equal(clusters(x, factor), label)
    # float32 sums in another order
    np.testing.assert_allclose(pool(PageVectors(x), factor).vectors, expected, atol=1e-6)


def test_equal_to_the_pooler_of_colpali_engine():
    file = "compression/token_pooling/hierarchical_token_pooling.py"
    pooler = _colpali_pooler(file)
    import torch

    for m, factor in ((2, 2), (64, 2), (100, 3), (150, 7)):
        x = unit(m, 32, m)
        theirs = pooler.pool_embeddings([torch.from_numpy(x)], pool_factor=factor)[0].numpy()
        np.testing.assert_allclose(pool(PageVectors(x), factor).vectors, theirs, atol=1e-6)


def _colpali_pooler(file):
    """The class without its package, whose import needs torchvision."""
    import importlib.util
    import types

    found = importlib.util.find_spec("colpali_engine")
    if found is None or found.origin is None:
        pytest.skip("colpali-engine is not installed")
    root = Path(found.origin).parent
    name = "colpali_engine"
    made = {}
    for part in (name, f"{name}.utils", f"{name}.compression", f"{name}.compression.token_pooling"):
        made[part] = types.ModuleType(part)
        made[part].__path__ = [str(root / "/".join(part.split(".")[1:]))]
    before = {k: sys.modules.pop(k) for k in list(sys.modules) if k.split(".")[0] == name}
    sys.modules.update(made)
    try:
        module = importlib.import_module(f"{name}." + file.removesuffix(".py").replace("/", "."))
    finally:
        for key in [k for k in sys.modules if k.split(".")[0] == name]:
            del sys.modules[key]
        sys.modules.update(before)
    return module.HierarchicalTokenPooler()


def test_planted_groups_are_found_and_carry_their_place_and_saliency():
    centres = np.eye(16, dtype=np.float32)[:4]
    x = normalise(np.repeat(centres, 3, 0) + 0.01 * unit(12, 16))
    grid = np.stack((np.arange(12), np.zeros(12, np.int64)), 1)
    page = pool(PageVectors(x, np.arange(12), grid), 3)
    assert len(page) == 4
    group = (page.vectors @ centres.T).argmax(1)
    assert sorted(group) == [0, 1, 2, 3]
    assert (page.grid[:, 0] // 3 == group).all()
    np.testing.assert_allclose(page.saliency, 3 * group + 1, rtol=1e-6)  # mean of its three


def test_specials_are_not_merged():
    page = PageVectors(unit(9, 8), kind=np.array([1, 0, 0, 0, 0, 0, 0, 0, 1]))
    small = pool(page, 7)
    assert small.kind.tolist() == [1, 1, 0]
    np.testing.assert_array_equal(small.vectors[:2], page.vectors[[0, 8]])


@pytest.mark.parametrize(("m", "factor"), [(0, 2), (1, 2), (1, 1), (5, 1)])
def test_nothing_to_merge(m, factor):
    page = PageVectors(unit(m, 8))
    assert pool(page, factor) is page
    assert clusters(page.vectors, factor).tolist() == list(range(m))


def test_equal_vectors_become_one():
    page = pool(PageVectors(np.repeat(unit(2, 8), 5, 0)), 2)
    assert len(page) == 2
    np.testing.assert_allclose(np.linalg.norm(page.vectors, axis=1), 1, rtol=1e-6)


def test_opposite_vectors_leave_no_zero_row():
    x = np.array([[1, 0], [-1, 0]], np.float32)
    merged = pool(PageVectors(x), 2).vectors
    assert len(merged) == 1
    assert abs(merged[0, 0]) == 1


def test_half_precision_stays():
    assert pool(PageVectors(unit(8, 8).astype(np.float16)), 2).vectors.dtype == np.float16


def test_factor_zero_is_refused():
    with pytest.raises(ConfigError, match="--pool 0"):
        pool(PageVectors(unit(1, 8)), 0)
