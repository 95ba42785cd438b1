"""The shipped text-to-image model, and the score that it is judged by."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import linalg

import compress3g.diffusion as cd

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "pipelines" / "digits_t2i"
sys.path.insert(0, str(ROOT / "benchmarks"))
import _digits  # noqa: E402


@pytest.fixture(scope="module")
def classifier():
    return _digits.Classifier.load(FOLDER / "classifier.safetensors")


def drawn(objects, count, seed=0):
    noise = np.random.default_rng(seed)
    wanted = _digits.scenes(objects, count, noise, held_out=True)
    return wanted, _digits.draw(wanted, noise)


def test_captions_say_the_scene():
    scene = _digits.Scene("square", (("red", 7), ("blue", 3), ("green", 0), ("white", 9)))
    assert scene.caption == ("a red seven and a blue three above a green zero and a white nine")


def test_training_and_held_out_scenes_are_disjoint():
    noise = np.random.default_rng(0)
    seen = {s.caption for s in _digits.scenes(1, 300, noise, held_out=False)}
    kept = {s.caption for s in _digits.scenes(1, 300, noise, held_out=True)}
    assert seen
    assert kept
    assert not seen & kept


@pytest.mark.parametrize("objects", [1, 2, 4])
def test_true_images_score_and_wrong_ones_do_not(classifier, objects):
    wanted, images = drawn(objects, 60)
    assert float(_digits.correct(images, wanted, classifier).float().mean()) > 0.97
    shifted = images.roll(1, dims=0)  # each under another's caption
    others = [
        a.caption != b.caption for a, b in zip(wanted, wanted[-1:] + wanted[:-1], strict=True)
    ]
    assert not bool(_digits.correct(shifted, wanted, classifier)[torch.tensor(others)].any())
    assert not bool(
        _digits.correct(images.flip(1), wanted, classifier)[
            torch.tensor([any(c in ("red", "blue") for c, _ in s.objects) for s in wanted])
        ].any()
    )  # red and blue change places


def test_something_more_is_wrong(classifier):
    wanted, images = drawn(1, 40)
    images[:, :, :4] = 1
    assert not bool(_digits.correct(images, wanted, classifier).any())


def test_the_frechet_distance_is_that_of_scipy():
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(200, 5, generator=g), 0.5 + 2 * torch.randn(300, 5, generator=g)
    ca, cb = np.cov(a.double().numpy().T), np.cov(b.double().numpy().T)
    gap = (a.double().mean(0) - b.double().mean(0)).square().sum()
    expected = float(gap) + np.trace(ca + cb - 2 * linalg.sqrtm(ca @ cb).real)
    assert _digits.frechet(a, b) == pytest.approx(expected, rel=1e-6)


def test_the_shipped_model_draws_what_it_is_told(classifier):
    """A tenth of its full measurement, on scenes that training never showed."""
    pipe = cd.open_pipeline(FOLDER)
    wanted = [s for n in (1, 2, 4) for s in drawn(n, 8, seed=7)[0]]
    images = cd.generate(pipe, [s.caption for s in wanted], steps=10, guidance=3.0)
    assert float(_digits.correct(images, wanted, classifier).float().mean()) >= 0.75


def test_it_is_small_enough_to_ship():
    files = [f for f in FOLDER.rglob("*") if f.is_file()]
    assert sum(f.stat().st_size for f in files) < 8e6
    assert {f.suffix for f in files} <= {".json", ".safetensors", ".txt", ".md", ".png"}
