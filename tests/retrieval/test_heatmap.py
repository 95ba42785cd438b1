"""Heat maps and snippets from similarities on cells."""

from __future__ import annotations

import numpy as np
import pytest

from compress3g.retrieval.heatmap import heat_layer, overlay, snippet, word_heat
from compress3g.retrieval.pages import page_of_image, page_of_text

GRID = (112, 80)


def heat_at(page, scores):
    """Two query tokens; words have 0 but for those of `scores`: {word: (similarities)}."""
    heat = np.full((2, 112, 80), np.nan, np.float32)
    for i, word in enumerate(page.words):
        left, top, right, bottom = word.box
        heat[:, int((top + bottom) / 2 * 112), int((left + right) / 2 * 80)] = scores.get(i, 0)
    return heat


def test_words_take_the_best_of_their_cells():
    page = page_of_text(" ".join(f"w{i}" for i in range(40)))
    values = word_heat(page.words, heat_at(page, {13: (0.2, 0.9), 14: (0.5, -0.5)}), GRID)
    assert values[13] == pytest.approx([0.2, 0.9])
    assert values[14] == pytest.approx([0.5, -0.5])
    assert (values[15:] == 0).all()
    # A map ends at its last row and column with a vector.
    cut = heat_at(page, {})[:, :20, :40]
    assert np.isnan(word_heat(page.words, cut, GRID)[35:]).all()


def test_only_the_words_that_fit_are_coloured():
    page = page_of_text(" ".join(f"w{i}" for i in range(40)))
    plain = np.asarray(page.image, np.int32)
    heat = heat_at(page, {13: (0.2, 0.9)})
    changed = np.abs(np.asarray(overlay(page, heat, grid=GRID), np.int32) - plain).max(-1) > 0
    height, width = changed.shape
    left, top, right, bottom = page.words[13].box
    rows, columns = changed.nonzero()
    assert abs(rows.min() / height - top) < 0.01
    assert abs(rows.max() / height - bottom) < 0.01
    assert abs(columns.min() / width - left) < 0.01
    assert abs(columns.max() / width - right) < 0.01


def test_patches_of_a_picture_are_coloured_where_they_fit():
    from PIL import Image

    page = page_of_image(Image.new("RGB", (400, 200), "white"))
    heat = np.zeros((1, 2, 4), np.float32)
    heat[0, 1, 3] = 1
    heat[0, 0, 0] = np.nan
    picture = np.asarray(overlay(page, heat), np.int32)
    assert (picture[175, 375] != 255).any()
    assert (picture[:50, :200] == 255).all()


def test_cells_of_a_fixed_grid_keep_their_place_without_words():
    heat = np.zeros((1, 3, 2), np.float32)  # it ends where the text does, the grid goes on
    heat[0, 2, 1] = 1
    alpha = np.asarray(heat_layer((), heat, (80, 112), grid=GRID))[..., 3]
    rows, columns = np.nonzero(alpha)
    assert (rows.min() >= 1, rows.max() <= 3) == (True, True)  # bilinear: a cell to either side
    assert (columns.min() >= 0, columns.max() <= 2) == (True, True)


def test_a_snippet_is_the_run_of_words_that_fits():
    page = page_of_text(" ".join(f"w{i}" for i in range(100)))
    text = snippet(page.words, heat_at(page, {60: (0.1, 0.9), 64: (0.9, 0.1)}), GRID, run=9)
    assert text == "… w58 w59 w60 w61 w62 w63 w64 w65 w66 …"
    assert snippet(page.words, None, GRID, run=3) == "w0 w1 w2 …"
    assert snippet((), None, GRID) == ""
