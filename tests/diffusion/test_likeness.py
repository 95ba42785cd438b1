"""Figures about images: those of their definitions, whatever the batch, and no others' scores."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from compress3g.diffusion import generate, prune, units_of
from compress3g.diffusion.likeness import Pictures, likeness, pictures
from compress3g.errors import ConfigError

from .tiny import captions, random_scores

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import _digits
import _digits_score as digits_score

PROMPTS = ["a red seven", "a blue three", "three above"]


def test_pictures_do_not_depend_on_the_batch(monkeypatch):
    pipe = captions()
    whole = pictures(pipe, PROMPTS, images=True, steps=2, seed=3)
    monkeypatch.setattr("compress3g.diffusion.likeness._BATCH", 2)
    parts = pictures(pipe, PROMPTS, images=True, steps=2, seed=3)
    # Other batches round differently in float32; guidance of 7.5 multiplies that.
    assert torch.allclose(whole.latents, parts.latents, atol=1e-4)
    assert torch.allclose(whole.images, parts.images, atol=1e-4)
    assert torch.equal(whole.images, generate(pipe, PROMPTS, steps=2, seed=3))


def test_figures_are_those_of_their_definitions():
    pipe, small = captions(), captions()
    prune(small, random_scores(units_of(small.unet)), ratio=0.2, round_to=1)
    a, b = (pictures(p, PROMPTS, images=True, steps=2) for p in (pipe, small))
    found = likeness(a, b, lambda images, prompts: images.mean((1, 2, 3)))
    x, y = a.latents.double(), b.latents.double()
    assert found.latent_error == pytest.approx(float(((y - x) ** 2).sum() / (x**2).sum()))
    assert found.scores == pytest.approx((float(a.images.mean()), float(b.images.mean())))
    assert "over 3 images" in str(found)
    blind = likeness(Pictures(PROMPTS, a.latents, None), b)
    assert set(blind.to_json()) == {"images", "latent_error"}


@pytest.mark.parametrize(
    ("score", "says"),
    [
        (lambda images, prompts: 1.0, "give one number for each"),
        (lambda images, prompts: ["good"] * 3, "no list of numbers"),
        (lambda images, prompts: torch.zeros(3, 2), r"shape \(3, 2\) for 3 images"),
    ],
)
def test_a_score_that_is_none_is_refused(score, says):
    made = Pictures(PROMPTS, torch.ones(3, 4), torch.rand(3, 3, 8, 8))
    with pytest.raises(ConfigError, match=says):
        likeness(made, made, score)


def test_the_shipped_models_score_is_that_of_its_benchmark():
    noise = np.random.default_rng(0)
    wanted = [s for n in (1, 2, 4) for s in _digits.scenes(n, 8, noise, held_out=True)]
    assert [digits_score.scene(s.caption) for s in wanted] == wanted
    images = _digits.draw(wanted, noise)
    texts = [s.caption for s in wanted]
    expected = _digits.correct(images, wanted, digits_score._judge()).float()
    assert torch.equal(digits_score.right(images, texts), expected)
    assert float(expected.mean()) > 0.9
    with pytest.raises(ValueError, match="no caption"):
        digits_score.scene("a red cat")
