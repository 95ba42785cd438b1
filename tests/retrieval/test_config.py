from __future__ import annotations

from dataclasses import fields

import pytest

from compress3g.errors import ConfigError
from compress3g.retrieval.config import PRESETS, IndexConfig


@pytest.mark.parametrize(
    ("option", "value"),
    [("k", 0), ("k", 65537), ("k", "many"), ("residual", "zip"), ("store", "f64"),
     ("binary", "yes"), ("pool", 0), ("pool", 1.5), ("keep", 0), ("keep", 1.01), ("keep", "some"),
     ("saliency", "none")],
)  # fmt: skip
@pytest.mark.usefixtures("unchecked")
def test_values_no_index_can_be_made_with_are_named(option, value):
    with pytest.raises(ConfigError, match=f"^--{option} {value} "):
        IndexConfig(**{option: value})


def test_residuals_need_a_code_per_patch():
    with pytest.raises(ConfigError, match="--patches"):
        IndexConfig(patches=False)
    assert not IndexConfig(patches=False, residual="none").patches


def test_codebooks_grow_with_the_corpus():
    assert [IndexConfig().centroids(n) for n in (1, 50_000, 50_001)] == [4096, 4096, 16384]
    assert IndexConfig(k=256).centroids(10**6) == 256


def test_every_option_has_help():
    assert all(f.metadata["help"].endswith(".") for f in fields(IndexConfig))


def test_presets_are_the_four_of_the_documentation():
    assert list(PRESETS) == ["paper", "tiny", "balanced", "lossless"]
    assert PRESETS["balanced"] == IndexConfig()
